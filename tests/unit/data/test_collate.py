from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch

from tests.tiny import FAMILIES, GEMMA4, QWEN, tiny_folder
from tests.unit.data.kit import conversation, picture
from vlsi_cli.engine.backbones.processors import load_processor
from vlsi_cli.engine.data.collate import collate, collate_prompts, merge
from vlsi_cli.engine.data.records import Message, Record, make_record
from vlsi_cli.engine.data.template import ChatEncoder, Encoded
from vlsi_cli.errors import ModelError


@cache
def parts(family: str) -> tuple[ChatEncoder, Any]:
    from transformers import AutoModelForImageTextToText

    folder = tiny_folder(family, Path(mkdtemp()), layers=2, hidden=32)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    return ChatEncoder(load_processor(folder)), model.eval()


def records() -> list[Record]:
    """A picture, text alone, and three pictures of other sizes in two turns, one of a single pixel."""
    return [
        conversation("What is it?", "A red circle.", images=1),
        conversation("Hi", "Hello there.", "Who are you?", "A model."),
        make_record(
            "many",
            [
                Message("user", (0, "and", 1, "?")),
                Message("assistant", ("Two.",)),
                Message("user", ("And", 2)),
                Message("assistant", ("Three.",)),
            ],
            [picture(20, 30), picture(40, 8, "blue"), picture(1, 1, "green")],
        ),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_its_records(family: str) -> None:
    """A model's states of a batch are those of each record alone, whatever the others bring."""
    coder, model = parts(family)
    encoded = [coder.encode(record) for record in records()]
    for order in ([0, 1, 2], [2, 0], [1, 1], [1, 2]):
        batch = collate([encoded[i] for i in order], coder.pad_id)
        with torch.no_grad():
            together = model.model(**batch.inputs).last_hidden_state
            if hasattr(model.model, "rope_deltas"):
                model.model.rope_deltas = None
            for row, i in enumerate(order):
                alone = model.model(**collate([encoded[i]], coder.pad_id).inputs).last_hidden_state[0]
                # fp32 sums in another order, two layers deep
                torch.testing.assert_close(together[row, : len(alone)], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_batches_are_one_of_all_records(family: str) -> None:
    coder, _ = parts(family)
    encoded = [coder.encode(record) for record in records()]
    for cut in ([0], [1], [2], [1, 1]), ([1, 1], [0, 2]), ([2, 0], [1]), ([1], [1]):
        once = collate([encoded[i] for part in cut for i in part], coder.pad_id, digests=True)
        merged = merge([collate([encoded[i] for i in part], coder.pad_id, digests=True) for part in cut])
        assert (merged.records, merged.digests) == (once.records, once.digests)
        real = once.inputs["attention_mask"].bool()
        assert set(merged.inputs) == set(once.inputs)
        for name, value in once.inputs.items():
            held = merged.inputs[name]
            assert held.shape == value.shape, name
            assert torch.equal(held[real], value[real]) if name == "input_ids" else torch.equal(held, value)
        for name in ("rows", "cols", "targets"):
            assert torch.equal(getattr(merged, name), getattr(once, name)), name


@pytest.mark.parametrize("family", FAMILIES)
def test_text_alone_brings_no_pixels(family: str) -> None:
    coder, _ = parts(family)
    batch = collate([coder.encode(records()[1])], coder.pad_id)
    types = (
        {"mm_token_type_ids"}
        if family in (*QWEN, *GEMMA4)
        else {"token_type_ids"}
        if family == "gemma3"
        else set()
    )
    assert set(batch.inputs) == {"input_ids", "attention_mask"} | types
    assert "pixel_values" not in batch.inputs


def test_shift_by_hand() -> None:
    """Trained tokens 7 and 8 stand at 2 and 3, so states 1 and 2 predict them; in the second record 9 stands at 1."""
    first = Encoded("a", torch.tensor([5, 6, 7, 8, 6]), torch.tensor([0, 0, 1, 1, 0]).bool(), None, {})
    second = Encoded("b", torch.tensor([5, 9]), torch.tensor([0, 1]).bool(), None, {})
    batch = collate([first, second], pad_id=0)
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 6], [5, 9, 0, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch.rows.tolist() == [0, 0, 1]
    assert batch.cols.tolist() == [1, 2, 0]
    assert batch.targets.tolist() == [7, 8, 9]
    assert (batch.num_tokens, batch.num_input_tokens, batch.records) == (3, 7, ("a", "b"))
    # A first token cannot be predicted from anything.
    only = Encoded("c", torch.tensor([5, 6]), torch.tensor([1, 1]).bool(), None, {})
    assert collate([only], pad_id=0).targets.tolist() == [6]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_padded_on_the_left(family: str) -> None:
    coder, model = parts(family)
    prompts = [coder.encode_prompt(record) for record in records()]
    batch = collate_prompts(prompts, coder.pad_id)
    longest = max(len(prompt.input_ids) for prompt in prompts)
    for row, prompt in enumerate(prompts):
        assert torch.equal(
            batch.inputs["input_ids"][row, longest - len(prompt.input_ids) :], prompt.input_ids
        )
        assert int(batch.inputs["attention_mask"][row].sum()) == len(prompt.input_ids)
        assert int(batch.inputs["attention_mask"][row, -1]) == 1
    assert batch.references == ("A red circle.", "A model.", "Three.")
    with torch.no_grad():
        answers = model.generate(**batch.inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
        for row, prompt in enumerate(prompts):
            alone = collate_prompts([prompt], coder.pad_id).inputs
            answer = model.generate(**alone, max_new_tokens=3, min_new_tokens=3, do_sample=False)
            assert answers[row, -3:].tolist() == answer[0, -3:].tolist()


def test_moving_keeps_everything() -> None:
    coder, _ = parts("qwen2_vl")
    batch = collate([coder.encode(records()[0])], coder.pad_id)
    moved = batch.to("meta")
    assert moved.inputs.keys() == batch.inputs.keys()
    assert {
        value.device.type for value in (*moved.inputs.values(), moved.rows, moved.cols, moved.targets)
    } == {"meta"}
    assert moved.records == batch.records


def test_tensors_that_do_not_fit_together_are_refused() -> None:
    def encoded(**tensors: torch.Tensor) -> Encoded:
        return Encoded("a", torch.tensor([1]), torch.tensor([True]), None, tensors)

    with pytest.raises(ModelError, match="different tensors"):
        collate([encoded(a=torch.ones(1, 2)), encoded(b=torch.ones(1, 2))], 0)
    with pytest.raises(ModelError, match="grid differs in shape"):
        collate([encoded(grid=torch.ones(1, 2)), encoded(grid=torch.ones(1, 3))], 0)
