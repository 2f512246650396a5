"""Reading a model that is in memory: the same numbers as by its name, and nothing of it is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForImageTextToText,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import vlsi_cli as vlsi
from tests.pairs import tiny_pair, verbalizers
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.backbones.processors import load_processor
from vlsi_cli.engine.verbalizing import head_fingerprint, save_verbalizers
from vlsi_cli.errors import CheckpointError, ConfigError, ModelError

RED = Image.new("RGB", (24, 16), "red")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def model(pair: tuple[Path, Path]) -> Any:
    return AutoModelForImageTextToText.from_pretrained(pair[1], dtype=torch.float32)


@pytest.fixture(scope="module")
def processor(pair: tuple[Path, Path]) -> Any:
    return load_processor(pair[1])


@pytest.fixture(scope="module")
def sets(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random set for each of the pair."""
    found = {}
    for name, folder, layers in zip(("large", "small"), pair, ((2, 4), (1, 3)), strict=True):
        backbone = load_backbone(str(folder))
        found[name] = tmp_path_factory.mktemp("sets") / name
        save_verbalizers(
            found[name],
            verbalizers(backbone, layers),
            base_id=name,
            base_revision=None,
            head_sha256=head_fingerprint(backbone.head.weight),
            training={},
        )
    return found


def as_it_is(model: Any) -> dict[str, Any]:
    """All that reading could change."""
    return {
        "modes": [module.training for module in model.modules()],
        "own": [sorted(vars(module)) for module in model.modules()],
        "hooks": [
            (list(module._forward_hooks.items()), list(module._forward_pre_hooks.items()))
            for module in model.modules()
        ],
        "weights": [(each.data_ptr(), each._version, each.requires_grad) for each in model.parameters()],
        "gradients": [each.grad for each in model.parameters()],
        "offsets": model.model.rope_deltas,
    }


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    gradients = zip(before.pop("gradients"), after.pop("gradients"), strict=True)
    return before == after and all(a is b for a, b in gradients)


@pytest.mark.parametrize("words", [True, False])
def test_a_model_in_memory_is_read_as_by_its_name_and_left_as_it_was(
    pair: tuple[Path, Path], model: Any, processor: Any, sets: dict[str, Path], words: bool
) -> None:
    """In the middle of a training: part frozen, in train mode with dropout, with gradients and somebody's hook."""
    given = {"verbalizers": sets["small"]} if words else {"logit_lens": True}
    named = vlsi.load_layers(pair[1], **given)
    heard: list[int] = []
    model.train()
    model.model.visual.eval().requires_grad_(False)
    model.model.language_model.layers[0].self_attn.attention_dropout = 0.9
    model.model.language_model.layers[1].register_forward_hook(lambda *_: heard.append(1))
    texts = processor.tokenizer("three circles", return_tensors="pt")
    model(**texts, labels=texts["input_ids"]).loss.backward()
    model.model.rope_deltas = 5  # as in the middle of a generation
    before = as_it_is(model)
    assert len({*before["modes"]}) == 2
    assert any(gradient is not None for gradient in before["gradients"])
    heard.clear()

    reader = vlsi.load_layers(model, processor=processor, **given)
    assert (reader.model, reader.processor) == (model, processor)
    assert (reader.name, reader.layers) == (str(pair[1]), (1, 3, 4) if words else (1, 2, 3, 4))
    assert reader.verbalizers == (sets["small"] if words else None)
    ask = {"max_new_tokens": 3, "place": 1, "top_k": 2}
    assert reader.answers(RED, "Which colour?", **ask) == named.answers(RED, "Which colour?", **ask)
    assert same(before | {}, as_it_is(model))
    ours, theirs = (each.read(RED, "Which colour?", "It is red.") for each in (reader, named))
    assert torch.equal(ours.states, theirs.states)
    assert not ours.states.requires_grad
    for each, other in zip(
        *(each.read_data("patterns", samples=2, batch_size=1) for each in (reader, named)), strict=True
    ):
        assert torch.equal(each.log_probabilities(), other.log_probabilities())
        assert torch.is_grad_enabled()
        assert same(before | {}, as_it_is(model))
    assert heard  # hooks of others are at work
    with pytest.raises(vlsi.VlsiError):
        reader.read(None, "a", " ")

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    with model.model.language_model.layers[1].register_forward_hook(broken):
        for fail in (lambda: reader.read(None, "a", "b"), lambda: reader.answers(None, "a")):
            with pytest.raises(ZeroDivisionError):
                fail()
    assert same(before, as_it_is(model))
    first = ours.log_probabilities()
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)  # trained on: the very weights are read, not a copy
    assert not torch.equal(first, reader.read(RED, "Which colour?", "It is red.").log_probabilities())


def test_in_half_precision_and_with_a_processor_by_its_name(pair: tuple[Path, Path]) -> None:
    model = AutoModelForImageTextToText.from_pretrained(pair[1], dtype=torch.bfloat16)
    reader = vlsi.load_layers(model, processor=pair[1], layers=[2])
    named = vlsi.load_layers(pair[1], layers=[2], precision="bf16")
    ours, theirs = (each.read(RED, "Which colour?", "It is red.") for each in (reader, named))
    assert ours.states.dtype == torch.bfloat16
    assert torch.equal(ours.states, theirs.states)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_another_attention_is_followed_by_whole_passes(pair: tuple[Path, Path], processor: Any) -> None:
    """The branches of one prompt share a mask that other kernels do not take: here one that is the usual one by another
    name."""
    AttentionInterface.register("somebodys", AttentionInterface()["sdpa"])
    AttentionMaskInterface.register("somebodys", AttentionMaskInterface()["sdpa"])
    found = {}
    for kernel in ("sdpa", "somebodys"):
        model = AutoModelForImageTextToText.from_pretrained(pair[1], attn_implementation=kernel)
        reader = vlsi.load_layers(model, processor=processor, layers=[2])
        found[kernel] = reader.answers(None, "Why?", max_new_tokens=3)
    texts = [[each.text for each in answers.layers] for answers in found.values()]
    assert texts[0] == texts[1]
    assert found["sdpa"].layer_tokens < found["somebodys"].layer_tokens


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
def test_adapters_of_a_model_in_memory_are_at_work(
    pair: tuple[Path, Path], model: Any, processor: Any
) -> None:
    plain = vlsi.load_layers(model, processor=processor, layers=[2]).read(RED, "a", "b").states
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    with pytest.raises(ModelError, match="a PeftModel is neither") as caught:
        vlsi.load_layers(adapted, processor=processor)
    assert "get_base_model()" in str(caught.value.hint)
    reader = vlsi.load_layers(adapted.get_base_model(), processor=processor, layers=[2])
    assert not torch.allclose(plain, reader.read(RED, "a", "b").states)


@pytest.mark.parametrize(
    ("change", "kind", "message", "hint"),
    [
        (lambda m, p: (m, {}), ConfigError, "read with its processor, and there is none", "AutoProcessor"),
        (lambda m, p: (m, {"processor": p.tokenizer}), ModelError, "is no processor .* has no tokenizer", ""),
        (lambda m, p: (m, {"processor": p, "device": "cpu"}), ConfigError, "has a device and a precision", ""),
        (lambda m, p: (m, {"processor": p, "layers": [5]}), ConfigError, "there is no layer 5", ""),
        (lambda m, p: (m, {"processor": "./nowhere"}), ModelError, "nowhere", ""),
        (lambda m, p: ("demo/small", {"processor": p}), ConfigError, "belongs to a model in memory", ""),
        (lambda m, p: (m.model, {"processor": p}), ModelError, "a Qwen2VLModel, without the language head", ""),
        (lambda m, p: (m.to("meta"), {"processor": p}), ModelError, "lies on meta", ""),
        (lambda m, p: (torch.nn.DataParallel(m), {"processor": p}), ModelError, "a DataParallel is", "model.module"),
        (lambda m, p: (SimpleNamespace(_model=m), {"processor": p}), ModelError, "SimpleNamespace", "model._model"),
        (lambda m, p: (7, {"processor": p}), ModelError, "a int is neither", "AutoModelForImageTextToText"),
        (lambda m, p: (text_only(), {"processor": p}), ModelError, "a text-only model", ""),
        (lambda m, p: (m, {"processor": of_other_words(p)}), ModelError, "writes a picture with token", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said(
    model: Any,
    processor: Any,
    change: Callable[[Any, Any], tuple[Any, dict[str, Any]]],
    kind: type[Exception],
    message: str,
    hint: str,
) -> None:
    model, settings = change(model, processor)
    with pytest.raises(kind, match=message) as caught:
        vlsi.load_layers(model, **settings)
    assert "\n" not in str(caught.value)
    assert hint in str(getattr(caught.value, "hint", ""))


def text_only() -> Any:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 8}
    return Qwen2ForCausalLM(Qwen2Config(num_attention_heads=2, num_key_value_heads=1, **shape))


def of_other_words(processor: Any) -> Any:
    import copy

    other = copy.copy(processor)
    other.image_token_id, other.image_token_ids = processor.image_token_id - 1, None
    return other


def test_verbalizers_of_another_model_are_refused(
    model: Any, processor: Any, sets: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="were trained on large, through another language head"):
        vlsi.load_layers(model, processor=processor, verbalizers=sets["large"])
    both = vlsi.load_layers(model, processor=processor, verbalizers=[sets["small"]])
    assert both.layers == (1, 3, 4)
