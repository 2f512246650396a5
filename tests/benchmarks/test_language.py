"""The comparison on a real language model, without its weights: conversion, records, and what is run in which order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.language import material
from benchmarks.language.__main__ import RATES, RESULTS, SETTINGS, TUNING_SEED, LanguageGrid, arms, stored
from benchmarks.language.laboratory import LanguageLaboratory
from benchmarks.language.report import DOCUMENT, report
from benchmarks.proof.grid import Tuning
from benchmarks.proof.results import Store
from benchmarks.proof.settings import Run
from tests.invariants.tree import ROOT
from tests.tiny import tiny_tokenizer
from vlsi_cli.engine.backbones.load import load_backbone

WORDS = 416  # of the tiny tokenizer and its pictures' tokens, with rows to spare


@pytest.fixture(scope="module")
def decoder() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def folder(decoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair as the program writes it, of six layers and three, and records."""
    folder = tmp_path_factory.mktemp("language")
    words = tiny_tokenizer("qwen2_vl")
    for side, layers in (("large", range(6)), ("small", material.spread(6, 3))):
        material.write_model(folder / side, words, decoder, layers, rows=WORDS)
    library = folder / "library"
    (library / "test").mkdir(parents=True)
    (library / "test/left_out.py").write_text(
        'def f():\n    "This one is no documentation of a library at all."\n'
    )
    for number in range(20):
        told = f"Give back the number {number} and {number} letters more: {'ab' * number}."
        text = f'class C:\n    """{told}"""\n    def f(self):\n        """{told} Twice."""\n    def g(self): ...\n'
        (library / f"m{number}.py").write_text(text, encoding="utf-8")
    material.write_records(folder, library, held_out=4)
    return folder


def test_the_large_model_says_what_the_decoder_says(decoder: Any, folder: Path) -> None:
    large = load_backbone(str(folder / "large"), dtype=torch.float32, device=torch.device("cpu"))
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        wanted, got = decoder(ids).logits, large.model(input_ids=ids).logits
    torch.testing.assert_close(got[..., :320], wanted)


def test_the_small_model_has_layers_of_the_large_one(decoder: Any, folder: Path) -> None:
    small = load_backbone(str(folder / "small"), dtype=torch.float32, device=torch.device("cpu"))
    kept = [layer.mlp.up_proj.weight for layer in small.model.model.text_model.layers]
    for mine, theirs in zip(kept, (0, 2, 5), strict=True):
        assert torch.equal(mine, decoder.model.layers[theirs].mlp.up_proj.weight)


def test_layers_are_spread_from_the_first_to_the_last() -> None:
    assert material.spread(30, 15) == [0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29]


def test_records_are_docstrings_that_no_two_splits_share(folder: Path) -> None:
    told, names = {}, set()
    for split in ("train", "validation", "test"):
        records = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text("utf-8").splitlines()]
        names |= {record["id"] for record in records}
        told[split] = {record["messages"][1]["content"] for record in records}
    assert len(told["test"]) == len(told["validation"]) == 4
    assert names == {f"m{number}.C{inner}" for number in range(20) for inner in ("", ".f")}
    assert not told["train"] & (told["test"] | told["validation"])
    assert not told["validation"] & told["test"]
    assert all(40 <= len(text) <= 240 for texts in told.values() for text in texts)


@pytest.mark.parametrize(
    ("text", "shortened"),
    [
        ("One line.", "One line."),
        ("One\n    line.\n\nAnother one.", "One line.\nAnother one."),
        ("One line.\n\n" + "x" * 50, "One line."),
        ("A sentence of its own. " + "x" * 50, "A sentence of its own."),
        ("x" * 50, ""),
    ],
)
def test_an_answer_is_cut_where_something_ends(text: str, shortened: str) -> None:
    assert material._shortened(text, 40) == shortened


def test_rates_come_first_and_the_better_one_is_everybodys(tmp_path: Path) -> None:
    store = Store(tmp_path / "results.jsonl", SETTINGS, {"large": "a"})
    grid = LanguageGrid(store, Tuning(RATES, (100,)), seeds=2)
    trials = grid.runs()
    assert [run.rate for run in trials] == list(RATES)
    for run, loss in zip(trials, (3.0, 2.0), strict=True):
        store.add(run, {"loss": loss})
    rows = grid.runs()[len(trials) + 2 :]
    assert {run.rate for run in rows} == {RATES[1]}
    assert [run.seed for run in rows] == [0] * 8 + [1] * 8
    assert {run.interaction_steps + run.reinforcement_steps for run in rows} == {150}
    only = replace(grid, labels=["SFT"]).runs()
    assert only == [*trials, *grid.runs()[2:4], *grid.rows()["SFT"]]


def test_the_page_is_what_the_stored_results_say() -> None:
    grid = LanguageGrid(stored(RESULTS), Tuning(RATES, (TUNING_SEED,)), seeds=3)
    assert (ROOT / DOCUMENT).read_text("utf-8") == report(grid.store, grid.rows(), grid.trials())


def test_a_run_lowers_the_loss(folder: Path) -> None:
    """Of the whole method, on a pair of toys: the laboratory reads these records and measures on those."""
    short = {"interaction_steps": 6, "reinforcement_steps": 4, "verbalization_steps": 3, "warmup_steps": 1}
    settings = replace(SETTINGS, **short, start=1, stride=2, asked=4, asked_together=2, batch_size=4)
    laboratory = LanguageLaboratory(settings, folder)
    before = laboratory.run(Run(intermediate="none", last="none", rate=0.0))
    after = laboratory.run(replace(arms(settings)["VLsI"], rate=1e-2))
    assert after["loss"] < before["loss"]
    assert set(after["seconds"]) == {"interaction", "large", "reinforcement", "measurement"}
    rows = after["draws"]["0"]
    assert len(rows) == len(after["draws"]["6"]) == 1
    assert 0 <= rows[0]["nearest"] <= rows[0]["farthest"]
    assert 0 < rows[0]["evenness"] <= 1.0001
