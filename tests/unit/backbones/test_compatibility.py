from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.tiny import FAMILIES
from vlsi_cli.engine.backbones.compatibility import check_pair
from vlsi_cli.engine.backbones.load import describe, load_backbone
from vlsi_cli.errors import CompatibilityError, ModelError


@pytest.fixture
def pair(folders):
    def two(family="qwen2_vl"):
        large = describe(str(folders(family, layers=6, hidden=96, vocabulary_rows=448, tied=False)))
        return large, describe(str(folders(family)))

    return two


def edited(description, tmp_path, name, edit):
    """A description of a copy of the folder with one JSON file changed."""
    path = Path(shutil.copytree(description.folder, tmp_path / "edited"))
    content = json.loads((path / name).read_text())
    edit(content)
    (path / name).write_text(json.dumps(content))
    return describe(str(path))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fitting_pair_gives_facts(family, pair):
    large, small = pair(family)
    facts = check_pair(large, small, (1, 2, 4), (1, 3))
    assert any(
        f"{small.tokenizer_length} tokens; vocabulary rows 448 (large) and 384 (small)" in f for f in facts
    )
    assert any("640x480: " in f for f in facts)
    assert any("2 small target layers 1,3 find partners among 3 large ones 1,2,4" in f for f in facts)


def test_loaded_models_are_checked_alike(folders):
    backbone = load_backbone(str(folders("qwen2_vl")))
    assert check_pair(backbone, backbone, (1, 2), (1, 2)) == check_pair(
        describe(backbone.id), describe(backbone.id), (1, 2), (1, 2)
    )


def refused(large, small, large_targets=(1, 2), small_targets=(1,)) -> str:
    with pytest.raises(CompatibilityError) as error:
        check_pair(large, small, large_targets, small_targets)
    message = str(error.value)
    assert large.id in message
    assert small.id in message
    assert error.value.exit_code == 5
    assert error.value.hint
    return message


def test_another_tokenizer(folders, pair):
    large, _ = pair()
    other = describe(
        str(folders("qwen2_vl", tokenizer_text="zebra zebra quartz quartz vex vex jump jump " * 3))
    )
    assert "their tokenizers differ in" in refused(large, other)


def test_the_same_tokens_merged_in_another_order(pair, tmp_path):
    large, small = pair()

    def reorder(content):
        content["model"]["merges"] = content["model"]["merges"][::-1]

    assert "merge them in another order" in refused(large, edited(small, tmp_path, "tokenizer.json", reorder))


@pytest.mark.parametrize(
    "rule",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "NFC"}},
        {
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            }
        },
    ],
    ids=["lower-case", "unicode-form", "prefix-space"],
)
def test_the_same_tokens_cut_by_other_rules(pair, tmp_path, rule):
    large, small = pair()
    assert "but cut" in refused(large, edited(small, tmp_path, "tokenizer.json", lambda c: c.update(rule)))


def test_another_video_token(pair, tmp_path):
    """A folder whose image token is another than its tokenizer's is refused by itself (tests/inputs)."""
    large, small = pair()
    other = edited(small, tmp_path, "config.json", lambda c: c.update(video_token_id=300))
    assert "video_token_id of" in refused(large, other)


def test_a_base_teacher_of_an_instruct_student(pair, tmp_path):
    """Another end of text and no chat template (the base checkpoint of the same family) are no obstacle."""
    large, small = pair()
    base = edited(large, tmp_path, "tokenizer_config.json", lambda c: c.update(eos_token="<|endoftext|>"))
    (base.folder / "chat_template.jinja").unlink()
    base = describe(str(base.folder), chat_template=small.processor.chat_template)
    facts = check_pair(base, small, (1, 2), (1,))
    assert any("ends a text with <|endoftext|>" in fact for fact in facts)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_mean", [0.4, 0.5, 0.5]),
        ("size", {"shortest_edge": 64, "longest_edge": 4096}),
        ("resample", 2),
    ],
)
def test_images_prepared_differently(pair, tmp_path, key, value):
    large, small = pair()
    other = edited(small, tmp_path, "preprocessor_config.json", lambda c: c.update({key: value}))
    message = refused(large, other)
    assert f"images are prepared differently: {key} is" in message
    assert ("data.max_pixels" in message) is (key == "size")


def test_images_cut_otherwise_than_the_vision_tower_wants(pair, tmp_path):
    with pytest.raises(ModelError, match="merge_size 1, and its vision tower was made for 2"):
        edited(pair()[1], tmp_path, "preprocessor_config.json", lambda c: c.update(merge_size=1))


def test_features_cut_differently(pair, tmp_path):
    large, small = pair("llava_onevision")
    other = edited(small, tmp_path, "config.json", lambda c: c.update(image_grid_pinpoints=[[16, 16]]))
    assert "image_grid_pinpoints is" in refused(large, other)


def test_other_counts_of_image_tokens(pair, monkeypatch):
    large, small = pair()
    from vlsi_cli.engine.backbones import compatibility

    monkeypatch.setattr(compatibility, "image_token_count", lambda side, size: 4 if side is large else 5)
    assert "a picture of 32x32 takes 4 image tokens" in refused(large, small)


def test_other_families_have_other_tokenizers(folders):
    large, small = (describe(str(folders(f))) for f in ("qwen2_vl", "llava_onevision"))
    assert "their tokenizers differ" in refused(large, small)


@pytest.mark.parametrize(
    ("large_targets", "small_targets", "message"),
    [
        ((1, 2), (1, 2, 3), "has 3 target layers and"),
        ((), (1,), "no target layer among them"),
        ((1, 6), (1,), "leave 1..5"),
        ((0, 2), (1,), "leave 1..5"),
        ((2, 1), (1,), "do not ascend"),
        ((1, 2), (1, 4), "leave 1..3"),
    ],
)
def test_target_layers(pair, large_targets, small_targets, message):
    assert message in refused(*pair(), large_targets, small_targets)


def test_every_failed_check_is_named(pair, tmp_path):
    large, small = pair()
    other = edited(small, tmp_path, "preprocessor_config.json", lambda c: c.update(image_std=[1, 1, 1]))
    message = refused(large, other, (1,), (1, 2))
    assert "image_std" in message
    assert "has 2 target layers" in message


def test_too_few_vocabulary_rows(pair, monkeypatch):
    large, small = pair()
    monkeypatch.setattr(small.config.get_text_config(), "vocab_size", 100)
    assert "has 100 vocabulary rows for a tokenizer of" in refused(large, small)
