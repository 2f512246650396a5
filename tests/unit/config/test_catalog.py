from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import EXPERTS, tiny_folder
from vlsi_cli.config import catalog
from vlsi_cli.config.catalog import ENTRIES, facts_of, find, resolve_alias
from vlsi_cli.config.facts import ModelFacts, facts_from_folder
from vlsi_cli.errors import ConfigError

# Totals that the checkpoints' own index files state, or that their cards round to.
TOTALS = {
    "Qwen2-VL-2B": 2_208_985_600,
    "Qwen2-VL-7B": 8_291_375_616,
    "Qwen2-VL-72B": 73_405_560_320,
    "Qwen2.5-VL-3B": 3_754_622_976,
    "Qwen3-VL-8B": 8_767_123_696,
    # the cards' 0.87, 9.65 and 27.78 billion without the head for a second token: 20, 243 and 424 million
    "Qwen3-VL-30B-A3B": 31_070_754_032,
    "Qwen3-VL-235B-A22B": 235_670_022_896,
    "Qwen3.5-0.8B": 852_985_920,
    "Qwen3.5-9B": 9_409_813_744,
    "Qwen3.5-27B": 27_356_728_560,
    "Qwen3.5-35B-A3B": 35_107_181_936,
    "Qwen3.5-122B-A10B": 122_562_817_776,
    "Qwen3.5-397B-A17B": 396_802_360_816,
    "LLaVA-OV-7B": 8_030_807_584,
    "SmolVLM-256M": 256_484_928,
    # of 15.9 and 30.3 GB in bf16, and what the cards round to: 78.4, 1.1, 4.7 and 38.4 billion
    "InternVL3-8B": 7_944_373_760,
    "InternVL3-14B": 15_117_256_704,
    "InternVL3-78B": 78_408_318_336,
    "InternVL3.5-1B": 1_060_897_792,
    "InternVL3.5-4B": 4_732_489_216,
    "InternVL3.5-38B": 38_390_405_504,
    "InternVL3.5-30B-A3B": 30_848_730_112,
    "InternVL3.5-241B-A28B": 240_699_370_368,
    # 4.3, 12.2 and 27.4 billion in its report
    "Gemma-3-4B": 4_300_079_472,
    "Gemma-3-12B": 12_187_325_040,
    "Gemma-3-27B": 27_432_406_640,
    # 5.1 and 8 billion of its card, and 30.7 without the vision tower
    "Gemma-4-E2B": 5_104_297_504,
    "Gemma-4-E4B": 7_941_100_832,
    "Gemma-4-31B": 31_273_086_512,
    "Gemma-4-26B-A4B": 25_805_933_872,
    # 3.4, 8.4 and 13.5 billion of language and 0.4 of vision on their cards
    "Ministral-3-3B": 3_849_090_048,
    "Ministral-3-8B": 8_918_026_240,
    "Ministral-3-14B": 13_945_031_680,
}


def facts(name: str) -> ModelFacts:
    entry = find(name)
    assert entry is not None
    return entry.facts


@pytest.mark.parametrize(("name", "total"), TOTALS.items())
def test_totals(name: str, total: int) -> None:
    assert facts(name).parameters == total


def test_what_a_token_meets_is_in_the_name() -> None:
    """In billions, embeddings and vision side included; 3B are 3.3 without them."""
    for entry in ENTRIES:
        if entry.facts.experts is not None:
            active = (entry.facts.parameters - entry.facts.idle_parameters) / 1e9
            assert active == pytest.approx(int(entry.size.split("-a")[1][:-1]), abs=1)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("Qwen2-VL-2B", (28, 1536, 8960, 12, 2, 151936, True)),
        ("Qwen2-VL-7B", (28, 3584, 18944, 28, 4, 152064, False)),
        ("Qwen2-VL-72B", (80, 8192, 29568, 64, 8, 152064, False)),
        ("LLaVA-OV-0.5B", (24, 896, 4864, 14, 2, 152000, True)),
        ("LLaVA-OV-7B", (28, 3584, 18944, 28, 4, 152128, False)),
        ("LLaVA-OV-72B", (80, 8192, 29568, 64, 8, 152128, False)),
    ],
)
def test_the_papers_backbones(name: str, row: tuple[int, ...]) -> None:
    one = facts(name)
    assert (one.layers, one.hidden, one.ffn, one.heads, one.kv_heads, one.vocab, one.tied) == row


def test_verbalizers_of_the_7b_are_the_papers_269_million() -> None:
    """7 target layers x 3 x 3584^2 = 269.7M, which the paper prints as 269M."""
    assert 7 * facts("Qwen2-VL-7B").verbalizer_parameters("verb-ffn") == 269_746_176


def test_other_architectures() -> None:
    one = facts("Qwen2-VL-2B")
    assert one.verbalizer_parameters("verb-ffn-x2") == 2 * 3 * 1536**2
    assert one.verbalizer_parameters("ffn") == 3 * 1536 * 8960
    assert one.verbalizer_parameters("mlp") == 1536**2
    assert one.verbalizer_parameters("decoder") == one.layer_parameters


def test_lora_parameters_by_hand() -> None:
    """One layer of the 2B: q and o 1536+1536, k and v 1536+256, three maps of 1536+8960, times the rank."""
    per_rank = 2 * (1536 + 1536) + 2 * (1536 + 256) + 3 * (1536 + 8960)
    assert facts("Qwen2-VL-2B").lora_parameters(64) == 28 * 64 * per_rank


def test_language_model_counts_match_transformers() -> None:
    """The formula against the real class, at a size that costs nothing, with and without bias, norm and tie."""
    torch = pytest.importorskip("torch")
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    shape = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6}
    shape |= {"num_key_value_heads": 2, "vocab_size": 99}
    for config_class, model_class in ((Qwen2Config, Qwen2ForCausalLM), (Qwen3Config, Qwen3ForCausalLM)):
        new = config_class is Qwen3Config
        for tied in (True, False):
            config = config_class(**shape, tie_word_embeddings=tied, **({"head_dim": 16} if new else {}))
            with torch.device("meta"):
                model = model_class(config)
            counted = ModelFacts("x", "x", 3, 48, 80, 6, 2, 16 if new else 8, 99, tied, not new, new, None)
            assert counted.language_parameters == sum(one.numel() for one in model.parameters())


@pytest.mark.parametrize(
    ("family", "size", "id"),
    [
        ("qwen3_vl_moe", "2b", "Qwen/Qwen3-VL-2B-Instruct"),
        ("qwen3_5", "2b", "Qwen/Qwen3.5-2B"),
        ("qwen3_5_moe", "2b", "Qwen/Qwen3.5-2B"),
        ("internvl", "2b", "OpenGVLab/InternVL3_5-2B-HF"),
        ("gemma3", "4b", "google/gemma-3-4b-it"),
        ("gemma4", "e4b", "google/gemma-4-E4B-it"),
        ("gemma4 dense", "E2B", "google/gemma-4-E2B-it"),
        ("gemma4_moe", "e4b", "google/gemma-4-E4B-it"),
        ("mistral3", "3b", "mistralai/Ministral-3-3B-Instruct-2512-BF16"),
    ],
)
def test_a_folder_is_counted_whole(family: str, size: str, id: str, tmp_path: Path) -> None:
    """Decoder, LoRA and vision side, against the model that the folder holds; and which family its sizes are of."""
    pytest.importorskip("torch")
    from vlsi_cli.engine.backbones.load import load_backbone
    from vlsi_cli.engine.backbones.lora import add_lora

    backbone = load_backbone(str(tiny_folder(family, tmp_path, layers=5)))
    assert resolve_alias(size, str(tmp_path)) == id
    known, counts = facts_from_folder(tmp_path), backbone.parameter_counts()
    assert known is not None
    assert known.parameters == sum(counts.values())
    assert known.decoder_parameters == counts["layers"]
    assert known.vision == counts["vision"] + counts["projector"]
    assert known.unread == counts.get("audio", 0)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in backbone.layers]
    assert known.layer_parameters == max(sizes)
    assert (max(sizes) > min(sizes)) == family.startswith(("qwen3_5", "gemma4"))
    if family in EXPERTS:
        idle = sum(p[2:].numel() for name, p in backbone.layers.named_parameters() if ".experts." in name)
        assert known.idle_parameters == idle > 0
        assert known.ffn == backbone.intermediate_size
        return
    assert known.idle_parameters == 0
    pytest.importorskip("peft")
    assert known.lora_parameters(3) == sum(p.numel() for _, p in add_lora(backbone, rank=3))


@pytest.mark.parametrize(
    ("word", "teacher", "meaning"),
    [
        ("2b", "Qwen/Qwen2-VL-72B", "Qwen/Qwen2-VL-2B-Instruct"),
        ("2B", "Qwen/Qwen2-VL-7B-Instruct", "Qwen/Qwen2-VL-2B-Instruct"),
        ("0.5b", "llava-hf/llava-onevision-qwen2-72b-ov-hf", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"),
        ("2b", "Qwen/Qwen3.5-27B", "Qwen/Qwen3.5-2B"),
        ("8b", "OpenGVLab/InternVL3-78B-hf", "OpenGVLab/InternVL3-8B-hf"),
        ("2b", "OpenGVLab/InternVL3_5-38B-HF", "OpenGVLab/InternVL3_5-2B-HF"),
        ("4b", "google/gemma-3-27b-it", "google/gemma-3-4b-it"),
        ("e4b", "google/gemma-4-31B-it", "google/gemma-4-E4B-it"),
        ("3b", "mistralai/Ministral-3-14B-Reasoning-2512", "mistralai/Ministral-3-3B-Instruct-2512-BF16"),
        ("256m", "HuggingFaceTB/SmolVLM-Instruct", "HuggingFaceTB/SmolVLM-256M-Instruct"),
        ("small", "demo/large", "demo/small"),
        ("Qwen2-VL-2B", None, "Qwen/Qwen2-VL-2B-Instruct"),
        ("Qwen/Qwen2-VL-72B", None, "Qwen/Qwen2-VL-72B"),
        ("someone/else", None, "someone/else"),
    ],
)
def test_aliases(word: str, teacher: str | None, meaning: str) -> None:
    assert resolve_alias(word, teacher) == meaning


def test_the_home_folder_is_written_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_alias("~/models/mine") == str(tmp_path / "models/mine")


@pytest.mark.parametrize(
    ("word", "teacher", "message", "hint"),
    [
        ("3b", "Qwen/Qwen2-VL-72B", "the family Qwen2-VL has no size '3b'", "2b, 7b, 72b"),
        ("2b", None, "no teacher is given", "--teacher"),
        ("2b", "someone/else", "is not in the catalogue", "hub id or folder"),
        ("Qwen2-VL-2", None, "no model is named 'Qwen2-VL-2'", "did you mean Qwen2-VL-2B?"),
    ],
)
def test_wrong_aliases(word: str, teacher: str | None, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_alias(word, teacher)
    assert hint in (caught.value.hint or "")


def test_a_local_folder_has_its_own_facts_and_family(tmp_path: Path) -> None:
    text = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 16}
    text |= {"vocab_size": 11, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl", "text_config": text}))
    found = facts_of(str(tmp_path))
    assert found is not None
    assert (found.layers, found.kv_heads, found.head_dim, found.tied, found.vision) == (3, 2, 4, True, None)
    assert resolve_alias("7b", str(tmp_path)) == "Qwen/Qwen2-VL-7B-Instruct"


def test_vision_parameters_come_from_the_headers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    test_a_local_folder_has_its_own_facts_and_family(tmp_path)
    tensors = {"model.visual.a": torch.zeros(3, 4), "model.language_model.b": torch.zeros(5)}
    save_file(tensors, tmp_path / "model.safetensors")
    found = facts_from_folder(tmp_path)
    assert found is not None
    assert found.vision == 12


@pytest.mark.parametrize("text", ["", "[]", '{"model_type": "x"}', '{"hidden_size": 0}'])
def test_a_folder_that_says_too_little_has_no_facts(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert facts_from_folder(tmp_path) is None


def test_names_are_unique() -> None:
    names = [name.casefold() for entry in ENTRIES for name in (entry.facts.name, *entry.ids)]
    assert len(names) == len(set(names))
    assert catalog.facts_of("someone/else") is None
