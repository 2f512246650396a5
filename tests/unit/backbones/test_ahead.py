"""What the host knows of pictures: the same state, bit for bit, and the device is asked for hardly anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch

from tests.tiny import FAMILIES, QWEN
from tests.unit.data.kit import picture
from vlsi_cli.engine.backbones import ahead
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.data.collate import collate, collate_prompts
from vlsi_cli.engine.data.records import Message, make_record
from vlsi_cli.engine.data.template import ChatEncoder

Load = Callable[..., Backbone]
#: Pictures of each record of a batch, by what is told apart.
KINDS = {"padded": (2, 0, 1), "one": (1,), "text": (0, 0)}
SIZES = ((40, 24), (16, 32))


def batch_of(backbone: Backbone, kind: str) -> Batch:
    """Records with two pictures of two sizes, without any, and with one; or of one kind alone."""
    records = []
    for number, count in enumerate(KINDS["padded" if kind == "left" else kind]):
        talk = [
            Message("user", (*range(count), "What is missing here?" * (1 + number))),
            Message("assistant", ("A red one.",)),
        ]
        records.append(make_record(f"r{number}", talk, [picture(*size) for size in SIZES[:count]]))
    encoder = ChatEncoder(backbone.processor)
    batch = collate([encoder.encode(record) for record in records], encoder.pad_id)
    if kind != "left":
        return batch
    prompts = collate_prompts([encoder.encode_prompt(record) for record in records], encoder.pad_id)
    return Batch(prompts.inputs, batch.rows, batch.cols, batch.targets, batch.records)


def states(backbone: Backbone, run: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
    """What two layers and the last one say, and the gradient of a loss of all three by everything that trains."""
    with backbone.tap([1, 2]) as tapped:
        last = run()
        found = [tapped[1], tapped[2], last]
    sum(state.square().sum() for state in found).backward()  # type: ignore[union-attr]
    grads = [p.grad for p in backbone.model.parameters() if p.grad is not None]
    backbone.model.zero_grad(set_to_none=True)
    assert len(grads) > 20
    return [*found, *grads]


@pytest.mark.parametrize("kind", [*KINDS, "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_state_and_gradient_bit_for_bit(family: str, kind: str, load: Load) -> None:
    backbone = load(family)
    backbone.set_trainable(("layers", "embeddings", "vision", "projector"))
    backbone.set_gradient_checkpointing(kind == "padded")
    batch = batch_of(backbone, kind)
    assert bool(batch.inputs["attention_mask"].all()) == (kind == "one")
    plain = states(backbone, lambda: backbone.forward_base(batch.inputs))
    ours = states(backbone, lambda: backbone.forward_batch(batch))
    assert len(plain) == len(ours)
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))


class Far(torch.Tensor):
    """A tensor as on a device: whoever reads a number of it, or makes a size of its numbers, is counted."""

    asked: ClassVar[Counter[str]] = Counter()
    READ = (
        "item",
        "tolist",
        "cpu",
        "numpy",
        "nonzero",
        "__bool__",
        "__int__",
        "__index__",
        "__float__",
        "__format__",
    )
    READ += ("repeat_interleave", "unique_consecutive", "masked_select")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        index = args[1] if name in ("__getitem__", "__setitem__") else ()
        masks = [each for each in (index if isinstance(index, tuple) else (index,)) if isinstance(each, Far)]
        if name in cls.READ or any(mask.dtype == torch.bool for mask in masks):
            cls.asked[name] += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def far(batch: Batch) -> Batch:
    """The batch as ``batch.to`` a device leaves it."""
    away = {name: value.as_subclass(Far) for name, value in batch.inputs.items()}
    return Batch(away, batch.rows, batch.cols, batch.targets, batch.records, host=batch.on_host)


#: The check that features and image tokens match, and its message: 2 each; a mask of a batch with padding: 2.
LEFT = {
    "qwen2_vl": 4,
    "qwen2_5_vl": 4,
    "qwen3_vl": 6,
    "llava_onevision": 4,
}  # Qwen3-VL: 2 a layer with features


@pytest.mark.parametrize("family", LEFT)
def test_who_still_asks_the_device(family: str, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load(family)
    asked: ClassVar[Counter[str]] = Counter()
    monkeypatch.setattr(Far, "asked", asked)
    batch = far(batch_of(backbone, "padded"))
    with torch.no_grad():
        before = backbone.forward_base(batch.inputs)
        waits = asked.total()
        asked.clear()
        after = backbone.forward_batch(batch)
    assert torch.equal(before, after)
    assert waits > 2 * LEFT[family]
    assert asked.total() == LEFT[family], asked
    if family in QWEN:
        asked.clear()
        with torch.no_grad():
            backbone.forward_batch(far(batch_of(backbone, "one")))
        assert asked.total() == LEFT[family] - 2, asked


def test_flash_attention_is_told_the_ends_and_the_longest(load: Load) -> None:
    """Its kernels take the ends of pictures on the device, and the longest picture as a number."""
    backbone = load("qwen2_5_vl")
    inputs = ahead.host_known(backbone.base, batch_of(backbone, "padded"))
    plain = ahead._tower_arguments(backbone.base, inputs)
    backbone.base.visual.config._attn_implementation = "flash_attention_2"  # type: ignore[union-attr]
    flash = ahead._tower_arguments(backbone.base, inputs)
    longest = {name: flash.pop(name) for name in ("image_max_seqlen", "image_max_window_seqlen")}
    assert longest == {
        "image_max_seqlen": 6 * 10,
        "image_max_window_seqlen": 16,
    }  # patches of 4 pixels, windows of 4 x 4
    assert flash.keys() == plain.keys()


@pytest.mark.parametrize("family", QWEN)
def test_two_towers_that_are_alike_share_what_is_made_of_sizes(family: str, load: Load) -> None:
    """As of a large and a small model on one batch; never of another batch, and never of unlike towers."""
    large, small = load(family), load(family)
    batch, other = batch_of(large, "padded"), batch_of(large, "padded")

    def made(backbone: Backbone, of: Batch) -> dict[str, Any]:
        return ahead._tower_arguments(backbone.base, ahead.host_known(backbone.base, of))

    first, second, third = made(large, batch), made(small, batch), made(small, other)
    assert first.keys() == second.keys()
    assert all(first[name] is second[name] is not third[name] for name in first)
    made(large, batch)
    small.base.visual.spatial_merge_size = 1  # type: ignore[union-attr]
    assert all(value is not first[name] for name, value in made(small, batch).items())


def test_a_batch_that_was_put_together_on_a_device_is_given_as_it_is(load: Load) -> None:
    backbone = load("qwen2_vl")
    batch = batch_of(backbone, "padded")
    elsewhere = Batch(
        {name: value.to("meta") for name, value in batch.inputs.items()},
        batch.rows,
        batch.cols,
        batch.targets,
        (),
    )
    assert elsewhere.on_host == {}
    assert ahead.host_known(backbone.base, elsewhere).keys() == batch.inputs.keys()


def test_a_moved_batch_keeps_what_is_small_on_the_host(load: Load) -> None:
    batch = batch_of(load("qwen2_vl"), "padded")
    moved = batch.to("meta").to("meta")
    assert {name for name in batch.inputs if name not in moved.host} == {"pixel_values"}
    assert all(torch.equal(moved.host[name], batch.inputs[name]) for name in moved.host)
    assert all(value.device.type == "meta" for value in moved.inputs.values())


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_gpu(family: str, load: Load) -> None:
    backbone = load(family)
    backbone.model.to("cuda")
    for kind in (*KINDS, "left"):
        batch = batch_of(backbone, kind).to("cuda")
        with torch.no_grad():
            assert torch.equal(backbone.forward_batch(batch), backbone.forward_base(batch.inputs))
