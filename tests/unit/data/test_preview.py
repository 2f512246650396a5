from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.tiny import tiny_folder
from tests.unit.data.kit import conversation, processor_of
from vlsi_cli.config.run import DataConfig, LlavaSource, MessagesSource, PatternsSource
from vlsi_cli.engine.data.preview import Piece, pieces
from vlsi_cli.engine.data.report import DataReport
from vlsi_cli.engine.data.template import ChatEncoder
from vlsi_cli.engine.runs import data as run_data
from vlsi_cli.engine.runs import preview
from vlsi_cli.errors import DataError, ModelError

HI = [{"from": "human", "value": "<image>\nHi"}, {"from": "gpt", "value": "Hello."}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("qwen2_vl", tmp_path_factory.mktemp("model"), layers=1, hidden=32)


def data_of(folder: Path, **settings: object) -> DataConfig:
    Image.new("RGB", (16, 16), "red").save(folder / "a.png")
    lines = [
        json.dumps({"id": "one", "image": "a.png", "conversations": HI}),
        '{"id": "two", ',
        json.dumps({"id": "three", "image": "../a.png", "conversations": HI}),
    ]
    (folder / "x.jsonl").write_text("\n".join(lines))
    return DataConfig.model_validate({"sources": [LlavaSource(path=folder / "x.jsonl")], **settings})


def test_pieces(tmp_path: Path) -> None:
    coder = ChatEncoder(processor_of("qwen2_vl", tmp_path))
    encoded = coder.encode(conversation("Où?", "日本", images=1))
    shown = pieces(encoded, coder.tokenizer, coder.image_token_ids)
    assert Piece("<|image_pad|>", 4, False, image=True) in shown
    assert sum(piece.tokens for piece in shown) == len(encoded.input_ids)
    # each of the two characters is three bytes, and here three tokens
    assert [piece for piece in shown if piece.trained] == [
        Piece("日", 3, True),
        Piece("本", 3, True),
        Piece("<|im_end|>", 1, True),
    ]
    text = "".join(piece.text * (piece.tokens if piece.image else 1) for piece in shown)
    assert text == coder.tokenizer.decode(encoded.input_ids)


def test_run(tmp_path: Path, model: Path) -> None:
    report = preview.run(data_of(tmp_path), model=str(model))
    assert (report.record, report.where, report.records) == ("one", f"{tmp_path}/x.jsonl:1", 3)
    assert report.image_tokens == 4
    assert report.trained_tokens == sum(piece.tokens for piece in report.pieces if piece.trained)
    assert "".join(piece.text for piece in report.pieces if piece.trained) == "Hello.<|im_end|>"
    assert report.tensors == {"pixel_values": (16, 96), "image_grid_thw": (1, 3)}


def test_run_uses_the_pixel_budget(tmp_path: Path, model: Path) -> None:
    (tmp_path / "one").mkdir()
    report = preview.run(data_of(tmp_path / "one", min_pixels=1024, max_pixels=1024), model=str(model))
    assert report.image_tokens == 16


def test_run_refuses(tmp_path: Path, model: Path) -> None:
    data = data_of(tmp_path)
    with pytest.raises(DataError, match=r"x\.jsonl:2: .*not valid JSON"):
        preview.run(data, model=str(model), index=1)
    with pytest.raises(DataError, match=r"x\.jsonl:3: record 'three' .*leaves the image folder"):
        preview.run(data, model=str(model), index=2)
    with pytest.raises(DataError, match="no record 3: it holds 3"):
        preview.run(data, model=str(model), index=3)
    with pytest.raises(DataError, match="no source 1"):
        preview.run(data, model=str(model), source=1)
    with pytest.raises(ModelError):
        preview.run(data, model=str(tmp_path / "nothing"))


def test_puzzles_of_a_config(model: Path) -> None:
    report = preview.run(DataConfig(sources=(PatternsSource(turns=2),)), model=str(model), index=12345)
    assert report.records is None
    assert report.image_tokens > 0


def test_streams_of_a_config(tmp_path: Path, model: Path) -> None:
    (tmp_path / "chat.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho."}]})
    )
    base = data_of(tmp_path)
    data = base.model_copy(update={"sources": (*base.sources, MessagesSource(path=tmp_path / "chat.jsonl"))})
    coder = ChatEncoder(processor_of("qwen2_vl", model))
    report = DataReport()
    stream = run_data.training_stream(data, coder, seed=0, report=report)
    assert stream.records_per_epoch == 4
    batch = stream.next_batch(4)
    assert set(batch.records) == {"one", "chat.jsonl:1"}
    assert report.reasons == {"broken-json": 1, "image-escape": 1}
    again = run_data.training_stream(data, coder, seed=0)
    assert torch.equal(again.next_batch(4).inputs["input_ids"], batch.inputs["input_ids"])
    prompts = run_data.prompt_stream(data, coder, seed=0)
    assert sorted(prompt.reference for prompt in prompts.one_pass()) == ["Hello.", "Ho."]
    strict = run_data.training_stream(data.model_copy(update={"on_bad_record": "refuse"}), coder, seed=0)
    with pytest.raises(DataError, match=r"x\.jsonl:[23]"):
        strict.next_batch(4)
