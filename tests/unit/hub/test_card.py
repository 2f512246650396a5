"""The card as the hub reads it, and what it must and must not say."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.hub_store import metadata_errors
from vlsi_cli.engine.hub.card import Base, Benchmark, Facts, HeldOut, StageLine, make_card, own_card
from vlsi_cli.engine.hub.licences import Licence
from vlsi_cli.errors import ModelError

SMALL = Base("own/small", "own/small", "v2", 28, 1536, 2_208_985_600, (2, 6), Licence("apache-2.0"))
LARGE = Base(
    "own/large",
    "own/large",
    None,
    80,
    8192,
    None,
    (2, 6, 10),
    Licence("other", "their-terms", "https://x.org/l"),
)
FACTS = Facts(
    repo="me/thing",
    family="qwen2_vl",
    student=SMALL,
    teacher=LARGE,
    licence=SMALL.licence,
    stages=[StageLine("interaction", "small model", 100, 256, "loss kld | matching multinomial", 90.0, 1.25)],
    scores=[
        HeldOut("small after", 0.25, 0.5, 101),
        HeldOut("small before", 0.2, 0.6, 101),
        HeldOut("large", None, 0.4, 101),
    ],
    held_out="`patterns`",
    held_out_id="vlsi-patterns",
    datasets=["own/data"],
    data=["[own/data](https://huggingface.co/datasets/own/data), split train"],
    recipe="training/recipe.yaml",
    versions={"vlsi": "0.1.0", "torch": "2.13.0"},
)  # fmt: skip


def test_metadata() -> None:
    text = make_card(FACTS)
    assert metadata_errors(text) == []
    data = ModelCard(text).data
    assert (data.base_model, data.base_model_relation) == ("own/small", "finetune")
    assert (data.license, data.datasets, data.library_name) == ("apache-2.0", ["own/data"], "transformers")
    assert data.pipeline_tag == "image-text-to-text"
    assert set(data.tags) == {"vlsi", "knowledge-distillation", "vision-language-model", "qwen2_vl"}
    assert data.model_name == "thing"
    accuracy, loss = data.eval_results
    assert (accuracy.metric_type, accuracy.metric_value, loss.metric_value) == ("accuracy", 0.25, 0.5)
    assert accuracy.dataset_name == "patterns, the built-in picture puzzles"
    # sqrt(0.25 * 0.75 / 100), by hand
    assert accuracy.metric_args == {"questions": 101, "standard_error": 0.043301}


def test_standard_error() -> None:
    assert HeldOut("large", 0.5, None, 5).standard_error == pytest.approx(math.sqrt(0.25 / 4))
    assert HeldOut("large", 1.0, None, 5).standard_error == 0.0
    assert HeldOut("large", 0.5, None, 1).standard_error is None
    assert HeldOut("large", None, 0.1, 5).standard_error is None


def test_the_page_says_how_it_was_made() -> None:
    text = make_card(FACTS)
    for line in (
        "| small | [own/small](https://huggingface.co/own/small) at `v2` | 28 | 1536 | 2.21 billion | 2, 6 |",
        "| large | [own/large](https://huggingface.co/own/large) | 80 | 8192 | ? | 2, 6, 10 | their-terms |",
        "| interaction | small model | 100 | 256 | loss kld \\| matching multinomial | 1.5 min | 1.2500 |",
        "| **this model** | 25.0 % | 4.3 % | 0.5000 | 101 |",
        "| large | - | - | 0.4000 | 101 |",
        'from_pretrained("me/thing")',
        "hf download me/thing training/recipe.yaml --local-dir .",
        "vlsi 0.1.0, torch 2.13.0",
        "claims none of the paper's scores",
    ):
        assert line in text, line
    assert "on no hub" not in text
    assert "\n\n\n" not in text
    assert "matched-layers" not in text
    assert "onnx" not in text.casefold()


@pytest.mark.parametrize(
    ("small", "large", "said", "silent"),
    [
        (
            Licence("mit"),
            Licence("mit"),
            "under the licence mit, which is that of its small base",
            "The bases differ",
        ),
        (
            Licence("mit"),
            Licence("other", "theirs"),
            "The bases differ: the large one",
            "No licence is stated",
        ),
        (Licence("mit"), None, "No licence is stated for the large base", "The bases differ"),
        (None, Licence("mit"), "No licence is stated for its small base", "under the licence"),
    ],
)
def test_licences(small: Licence | None, large: Licence | None, said: str, silent: str) -> None:
    facts = replace(
        FACTS, student=replace(SMALL, licence=small), teacher=replace(LARGE, licence=large), licence=small
    )
    text = make_card(facts)
    assert said in text
    assert silent not in text
    assert ModelCard(text).data.license == (small.id if small else None)
    assert metadata_errors(text) == []


def test_a_licence_with_a_name_of_its_own() -> None:
    text = make_card(replace(FACTS, licence=LARGE.licence))
    data = ModelCard(text).data
    assert (data.license, data.license_name, data.license_link) == ("other", "their-terms", "https://x.org/l")
    assert metadata_errors(text) == []


def test_bases_that_are_on_no_hub() -> None:
    local = replace(SMALL, name="demo/small", hub_id=None, revision=None)
    text = make_card(replace(FACTS, student=local, teacher=replace(LARGE, hub_id=None), datasets=[]))
    data = ModelCard(text).data
    assert data.base_model is None
    assert "base_model" not in text.split("---")[1]
    assert "| small | `demo/small` |" in text
    assert "The small base is on no hub" in text
    assert metadata_errors(text) == []


def test_the_papers_figures_stand_beside_measured_ones_only() -> None:
    marks = [
        Benchmark("MM-Vet", "x/mmvet", "score", 40.0, 1.5, 218, best=100, paper=(75.2, 75.8), paper_model="VLsI-7B"),
        Benchmark("AI2D", "x/ai2d", "exact_match", 60.04, None, 300, split="test", best=100, limit=300,
                  remarks="first 300 only"),
    ]  # fmt: skip
    text = make_card(replace(FACTS, benchmarks=marks, measured=["lmms-eval 0.7.3, greedy decoding, fp32"]))
    assert metadata_errors(text) == []
    assert "Measured with `vlsi eval` (lmms-eval 0.7.3, greedy decoding, fp32)." in text
    assert "| questions | remarks | printed in the paper |" in text
    assert "| MM-Vet | score, of 100 | 40.0 | 1.50 | 218 | - | 75.2, 75.8 (VLsI-7B) |" in text
    assert "| AI2D | exact_match, of 100 | 60.0 | - | 300 | first 300 only | - |" in text
    assert "It was not measured here, and this\nmodel is not the paper's." in text
    found = {result.dataset_name: result for result in ModelCard(text).data.eval_results}
    assert (found["MM-Vet"].metric_value, found["AI2D"].metric_value) == (40.0, 60.04)
    assert found["MM-Vet"].metric_args == {"questions": 218, "standard_error": 1.5}
    assert found["AI2D"].metric_args == {"questions": 300, "limit": 300}
    assert (found["AI2D"].dataset_type, found["AI2D"].dataset_split) == ("x/ai2d", "test")
    assert "75.2" not in text.split("---")[1], "metadata hold what was measured, and nothing of the paper's"
    plain = make_card(replace(FACTS, benchmarks=marks[1:]))
    assert "in the paper" not in plain


def test_a_model_that_no_run_made_and_plain_fine_tuning() -> None:
    bare = make_card(Facts(repo="me/thing", family="qwen2_vl", versions={"vlsi": "0.1.0"}))
    assert metadata_errors(bare) == []
    assert "## How" not in bare
    assert "arxiv" not in bare.casefold()
    assert "enable_thinking" not in bare
    thinks = make_card(Facts(repo="me/thing", family="qwen3_5", versions={"vlsi": "0.1.0"}))
    assert 'return_tensors="pt",\n    enable_thinking=False,  # as it was trained\n)' in thinks
    tuned = make_card(replace(FACTS, teacher=None))
    assert "fine-tuned with vlsi" in tuned
    assert "| large | [" not in tuned


def test_what_travels_along_is_named() -> None:
    facts = replace(
        FACTS, picture="matched-layers.png", verbalizers=["large", "small"], onnx=["int8"], metrics=True
    )
    text = make_card(facts)
    assert "](matched-layers.png)" in text
    assert "`--set teacher.verbalizers=me/thing`" in text
    assert "hf download me/thing --include 'onnx/int8/*'" in text
    assert "`training/`" in text


def test_a_card_that_is_there_already(tmp_path: Path) -> None:
    assert own_card(tmp_path) is None
    (tmp_path / "README.md").write_text("# without metadata\n", encoding="utf-8")
    assert own_card(tmp_path) == "# without metadata\n"
    for damaged in (b"---\nlicense: [\n---\n", b"\xff\xfe"):
        (tmp_path / "README.md").write_bytes(damaged)
        with pytest.raises(ModelError, match=r"the card .* cannot be read"):
            own_card(tmp_path)
