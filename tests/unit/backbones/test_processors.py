from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import tokenization_utils_base

from tests.tiny import FAMILIES, QWEN
from vlsi_cli.engine.backbones import processors
from vlsi_cli.engine.backbones.compatibility import image_token_count
from vlsi_cli.engine.backbones.load import describe
from vlsi_cli.engine.backbones.processors import copy_processor_files, load_processor
from vlsi_cli.errors import ConfigError, ModelError


def ask(processor, images=1):
    parts = [{"type": "image"}] * images
    return processor.apply_chat_template(
        [{"role": "user", "content": [*parts, {"type": "text", "text": "Red?"}]}], add_generation_prompt=True
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_text_and_pictures_become_inputs(family, folders):
    described = describe(str(folders(family)))
    processor = described.processor
    pictures = [Image.new("RGB", (40, 24), "red"), Image.new("RGB", (16, 16), "blue")]
    inputs = processor(text=[ask(processor, 2)], images=pictures, return_tensors="pt")
    [count] = described.family.image_tokens(described.config, inputs)
    assert count > 0
    assert inputs["pixel_values"].isfinite().all()
    if family in QWEN:
        assert count == int((inputs["image_grid_thw"].prod(1) // 4).sum())
        assert int(inputs["mm_token_type_ids"].sum()) == count
    assert processor.tokenizer.decode(inputs["input_ids"][0]).count("Red?") == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stock_processor_that_lacks_a_package_is_stood_in_for(family, folders, monkeypatch):
    """With torchvision but without num2words, say: whichever processor comes out writes the same tokens."""
    without = load_processor(folders(family))
    monkeypatch.setattr(processors, "torchvision_works", lambda: True)
    budget = {"max_pixels": 1024} if family in QWEN else {}
    stock = load_processor(folders(family), **budget)
    picture = Image.new("RGB", (40, 24), "red")
    ids = [
        p(text=[ask(p)], images=[picture], return_tensors="pt")["input_ids"].tolist()
        for p in (without, stock)
    ]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_text_alone_needs_no_picture(family, folders):
    processor = load_processor(folders(family))
    inputs = processor(text=["Hello there"], return_tensors="pt")
    assert set(inputs) <= {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"}


def test_smolvlm_writes_images_as_its_own_processor_does(folders):
    """The image-only route uses Idefics3's processor: the written image must be what SmolVLM's would be."""
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    processor = load_processor(folders("smolvlm"))
    for size, grid in (((40, 24), (2, 2)), ((8, 8), (2, 2))):
        text = ask(processor)
        inputs = processor(text=[text], images=[[Image.new("RGB", size)]], return_tensors="pt")
        written = get_image_prompt_string(*grid, 4, "<fake_token_around_image>", "<image>", "<global-img>")
        expected = processor.tokenizer(text.replace("<image>", written, 1))["input_ids"]
        assert inputs["input_ids"][0].tolist() == expected


def test_tiles_of_internvl_are_counted_picture_by_picture(folders):
    """Four tokens a tile of 16 pixels, and one tile more of the whole where there are several."""
    described = describe(str(folders("internvl")))
    assert [image_token_count(described, size) for size in ((16, 16), (32, 16), (48, 32))] == [4, 12, 28]
    pictures = [Image.new("RGB", size) for size in ((32, 16), (16, 16))]
    inputs = described.processor(text=[ask(described.processor, 2)], images=pictures, return_tensors="pt")
    assert described.family.image_tokens(described.config, inputs) == [16]
    assert len(inputs["pixel_values"]) == 4


def test_a_pixel_budget_bounds_the_image_tokens(folders):
    folder = str(folders("qwen2_vl"))
    assert image_token_count(describe(folder), (96, 96)) == 16  # 1024 pixels in squares of 8
    assert image_token_count(describe(folder, max_pixels=256), (96, 96)) == 4
    assert image_token_count(describe(folder, min_pixels=1024), (8, 8)) == 16


@pytest.mark.parametrize(("low", "high"), [(0, None), (None, -5), (100, 50)])
def test_a_budget_that_is_none(folders, low, high):
    with pytest.raises(ConfigError, match="not a range"):
        load_processor(folders("qwen2_vl"), min_pixels=low, max_pixels=high)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("llava_onevision", "LLaVA-OneVision cuts pictures into tiles"),
        ("gemma4", "Gemma 4 resizes pictures to a number of image tokens"),
    ],
)
def test_a_budget_for_a_family_without(family, why, folders):
    with pytest.raises(ConfigError, match=why):
        load_processor(folders(family), max_pixels=1000)


def _copy(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target / "copy"))


@pytest.mark.parametrize("place", ["chat_template.json", "tokenizer_config.json"])
def test_older_places_of_the_chat_template(folders, tmp_path, place):
    path = _copy(folders("qwen2_vl"), tmp_path)
    template = (path / "chat_template.jinja").read_text()
    (path / "chat_template.jinja").unlink()
    settings = json.loads((path / place).read_text()) if (path / place).exists() else {}
    (path / place).write_text(json.dumps(settings | {"chat_template": template}))
    processor = load_processor(path)
    assert ask(processor) == ask(load_processor(folders("qwen2_vl")))


def test_no_chat_template_is_an_error(folders, tmp_path):
    path = _copy(folders("qwen2_vl"), tmp_path)
    (path / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        load_processor(path, shown="some/base-model")


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
def test_a_folder_without_processor_files(folders, tmp_path, name):
    path = _copy(folders("qwen2_vl"), tmp_path)
    (path / name).unlink()
    with pytest.raises(ModelError, match="processor of 'some/model' cannot be loaded"):
        load_processor(path, shown="some/model")


def test_processor_files_are_copied_byte_for_byte(folders, tmp_path):
    source = folders("qwen2_vl")
    names = copy_processor_files(source, tmp_path)
    assert {"tokenizer.json", "chat_template.jinja", "preprocessor_config.json"} <= set(names)
    assert not {"config.json", "model.safetensors"} & set(names)
    assert all((tmp_path / n).read_bytes() == (source / n).read_bytes() for n in names)


def test_loading_says_nothing(folders, capsys):
    folder = folders("qwen2_vl")
    capsys.readouterr()
    load_processor(folder)
    assert capsys.readouterr() == ("", "")
    assert torch.is_grad_enabled()


def test_a_long_text_is_not_warned_of(folders, monkeypatch):
    """How long a record may be is `data.max_length`, and the record is counted where it is longer."""
    warned = []
    monkeypatch.setattr(tokenization_utils_base.logger, "warning", lambda *told: warned.append(told))
    tokenizer = load_processor(folders("qwen2_vl")).tokenizer
    assert len(tokenizer("a " * 5000)["input_ids"]) > tokenizer.model_max_length
    assert not warned
