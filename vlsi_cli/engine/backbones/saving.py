"""Write a trained small model as a stock checkpoint, and prove that plain transformers reads the same model back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.lora import has_lora
from vlsi_cli.engine.backbones.processors import copy_processor_files, load_processor
from vlsi_cli.engine.backbones.quiet import quiet_transformers
from vlsi_cli.engine.files import new_folder
from vlsi_cli.errors import CheckpointError


def save_student(backbone: Backbone, target: Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write weights, config, generation config and processor files to ``target``, all of it or nothing.

    The files are written to a temporary folder beside ``target``, flushed to the disk and renamed, so a crash never
    leaves half a model under the final name. A tied head is stored once. Processor and template files are copied
    from the folder the model came from, byte for byte, and so are config and generation config, but for the precision:
    whatever loads the base then loads the student, also programs that do not know how the installed transformers writes
    a config today.

    Args:
        target: the folder to make; one that exists is replaced.
        dtype: what to store floating-point weights in; None keeps what they are trained in.

    Raises:
        CheckpointError: the model still has adapters (merge them first).
        OutputError: the folder cannot be written, or the disk is full.
    """
    if has_lora(backbone):
        raise CheckpointError(
            f"'{backbone.id}' still has adapters: merge them before saving a stock checkpoint"
        )
    with new_folder(target) as partial:
        _write(backbone, partial, dtype)
    return target


def verify_student(
    folder: Path,
    backbone: Backbone,
    *,
    probes: Sequence[dict[str, Any]] | None = None,
    tolerance: float = 0.0,
) -> float:
    """Load a saved folder with plain transformers and compare it with the model in memory.

    Every weight must equal the one in memory (rounded to the stored dtype), the tokenizer must give the same ids,
    and the logits must agree. With weights stored as they are held, the logits are equal bit for bit on a CPU; where
    they are stored in fewer bits, or where other kernels may be chosen, the caller gives a ``tolerance``. It is a share
    of the largest logit: in half precision one unit in the last place of a logit of 20 is 0.1 already.

    Args:
        folder: what :func:`save_student` wrote.
        backbone: the model it was written from.
        probes: model inputs to compare logits on; default one with a picture and one without.
        tolerance: largest difference allowed between two logits, over the largest logit of the probe.

    Returns:
        The largest difference there is, in the same measure.

    Raises:
        CheckpointError: the folder does not load, or is not the same model.
    """
    from transformers import AutoModelForImageTextToText

    processor = load_processor(folder)
    attention = backbone.config.get_text_config()._attn_implementation
    texts = [*_PROBE_TEXTS, render_probe(processor, image=True)]
    if processor.tokenizer(texts)["input_ids"] != backbone.tokenizer(texts)["input_ids"]:
        raise CheckpointError(f"the saved tokenizer in {folder} gives other ids than the one trained with")
    try:
        with quiet_transformers():
            saved = AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype="auto",
                attn_implementation=backbone.family.attention(attention, backbone.id),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
            )
    except Exception as error:  # damaged files raise errors of many unrelated kinds
        raise CheckpointError(f"the saved model in {folder} does not load: {error}") from error
    held = backbone.model.state_dict()
    stored = saved.state_dict()
    if set(held) != set(stored):
        raise CheckpointError(
            f"the saved model in {folder} has other weights: {sorted(set(held) ^ set(stored))[0]}"
        )
    for name, tensor in stored.items():
        if not torch.equal(held[name].detach().to(device="cpu", dtype=tensor.dtype), tensor):
            raise CheckpointError(f"the saved model in {folder} differs from the trained one in {name}")
    saved = saved.to(device=backbone.device).eval()
    for parameter in saved.parameters():
        # not saved.to(dtype): that would round the rotary frequencies, which are buffers and stay fp32
        parameter.data = parameter.data.to(backbone.dtype)
    worst = 0.0
    backbone.train(False)
    try:
        for inputs in probes if probes is not None else default_probes(backbone):
            found = _largest_difference(backbone, saved, inputs)
            worst = worst if found <= worst else found  # what is not a number is the worst
    finally:
        backbone.train()
    if not worst <= tolerance:
        raise CheckpointError(
            f"the saved model in {folder} gives logits that are up to {worst:.3g} of the largest one away from the "
            f"trained one's, where {tolerance:.3g} of it is allowed"
        )
    return worst


#: What two files of one configuration may differ in.
_INCIDENTAL = frozenset({"dtype", "torch_dtype", "transformers_version", "_name_or_path"})
_PROBE_TEXTS = ("What is in the picture? 3 red circles.", "Größe 12,5 – 日本語 🙂\n\n\t  end")


def render_probe(processor: Any, *, image: bool) -> str:
    """A user's question through the chat template, with or without a picture in front."""
    parts = [{"type": "image"}] if image else []
    message = {"role": "user", "content": [*parts, {"type": "text", "text": _PROBE_TEXTS[0]}]}
    return str(processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False))


def default_probes(backbone: Backbone) -> list[dict[str, Any]]:
    """Two model inputs on the backbone's device: a question about a drawn picture, and one without picture."""
    from PIL import Image

    picture = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    probes = []
    for images in ([picture], None):
        text = [render_probe(backbone.processor, image=images is not None)]
        inputs = backbone.processor(text=text, images=images, return_tensors="pt")
        probes.append({k: v.to(backbone.device) for k, v in inputs.items() if isinstance(v, Tensor)})
    return probes


@torch.no_grad()
def _largest_difference(backbone: Backbone, saved: Any, inputs: dict[str, Any]) -> float:
    """Largest difference of logits over the largest one, at the last 64 positions only (no wider tensor is needed)."""
    ours = backbone.logits(backbone.forward_base(inputs)[:, -64:]).float()
    # asked for by their places: of a number, some models compute only so many rows, which rounds otherwise
    last = torch.arange(inputs["input_ids"].shape[1], device=backbone.device)[-64:]
    theirs = saved(**inputs, use_cache=False, logits_to_keep=last).logits.float()
    return float((ours - theirs).abs().max() / ours.abs().max().clamp_min(torch.finfo(ours.dtype).tiny))


def _write(backbone: Backbone, folder: Path, dtype: torch.dtype | None) -> None:
    model = backbone.model
    held = model.config.dtype
    state = None
    if dtype is not None:
        # without the tied head: cast apart, the two would no longer be one tensor and be stored twice
        state = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in model.state_dict().items()
            if not (backbone.head_tied and name == "lm_head.weight")
        }
    try:
        with quiet_transformers():
            model.save_pretrained(folder, state_dict=state)
    finally:
        model.config.dtype = held
    _keep_config(backbone, folder, str(dtype).removeprefix("torch.") if dtype is not None else None)
    copy_processor_files(backbone.folder, folder)


def _keep_config(backbone: Backbone, folder: Path, dtype: str | None) -> None:
    """Give a saved folder the config files of the base, unless the model in memory has another configuration.

    Args:
        dtype: of the stored weights; None: what transformers has written.
    """
    path, base = folder / "config.json", backbone.folder / "config.json"
    own = json.loads(path.read_text(encoding="utf-8"))
    dtype = dtype or own["dtype"]
    made = type(backbone.config)
    if base.is_file() and _meaning(made.from_pretrained(base)) == _meaning(made.from_pretrained(path)):
        own = json.loads(base.read_text(encoding="utf-8"))
        generation = base.with_name("generation_config.json")
        if generation.is_file():
            shutil.copyfile(generation, folder / generation.name)
    path.write_text(json.dumps(_with_dtype(own, dtype), indent=2) + "\n", encoding="utf-8")


def _meaning(config: Any) -> dict[str, Any]:
    """A configuration without its precision and without who wrote it and where."""

    def stripped(values: dict[str, Any]) -> dict[str, Any]:
        named = {k: stripped(v) if isinstance(v, dict) else v for k, v in values.items()}
        return {k: v for k, v in named.items() if k not in _INCIDENTAL}

    return stripped(config.to_dict())


def _with_dtype(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A config whose own and nested dtype is ``name``: transformers writes the dtype of the model in memory."""
    changed = {k: _with_dtype(v, name) if isinstance(v, dict) else v for k, v in config.items()}
    return changed | {key: name for key in ("dtype", "torch_dtype") if isinstance(config.get(key), str)}
