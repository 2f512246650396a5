"""`vlsi match-layers` through its real entry point: a pair, a run, its history, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests import pairs
from tests.runs.conftest import lines, short
from tests.tiny import tiny_folder
from vlsi_cli.app import app
from vlsi_cli.config.loading import Resolved, load_saved, resolve
from vlsi_cli.engine.losses import divergence
from vlsi_cli.engine.matching import best_matching, expected_matching
from vlsi_cli.engine.runs import match_layers
from vlsi_cli.engine.runs.match_history import read_history
from vlsi_cli.engine.runs.match_reports import MatchReport, Survey
from vlsi_cli.errors import CheckpointError, CompatibilityError, ConfigError, DataError, OutputError
from vlsi_cli.events import ignore


def compare(resolved: Resolved, **options: Any) -> MatchReport:
    return match_layers.run(resolved, **{"events": ignore, "samples": 6, "draws": 20, **options})


def surveyed(resolved: Resolved, **options: Any) -> Survey:
    found = compare(resolved, **options).survey
    assert found is not None
    return found


@pytest.fixture(scope="module")
def bare(pair: tuple[Path, Path]) -> MatchReport:
    """The tiny pair without verbalizers."""
    return compare(short(pair), batch_size=2)


def test_a_pair_without_verbalizers_is_read_by_the_logit_lens(
    pair: tuple[Path, Path], bare: MatchReport
) -> None:
    """The matrix is that of norm and head on every target layer, taken here pair by pair from other parts."""
    survey, small, large = bare.survey, bare.small, bare.large
    assert survey is not None
    assert small is not None
    assert large is not None
    assert (small.layers, large.layers) == ((1, 2, 3), (1, 2, 3, 4, 5))
    assert (small.depth, large.depth) == (4, 6)
    assert "logit lens" in small.reading
    assert "logit lens" in large.reading
    assert (survey.records, survey.batches, survey.batch_size) == (6, 3, 2)

    resolved = short(pair)
    reader = match_layers._Pair(resolved, ignore, None, None, "end")
    batch = next(iter(reader._batches(reader.readers["small"].backbone, 6, 6, match_layers.DataReport())))
    states = {}
    for side in ("small", "large"):
        backbone = pairs.load(pair[side == "small"])
        with torch.no_grad(), backbone.tap(reader.targets[side], rows=batch.rows, cols=batch.cols) as tapped:
            backbone.forward_base(batch.inputs)
            states[side] = [backbone.final_norm(tapped[layer]) for layer in reader.targets[side]]
    heads = [reader.readers[side].head for side in ("small", "large")]
    words = reader.readers["small"].backbone.tokenizer_length
    for s, x_s in enumerate(states["small"]):
        for t, x_t in enumerate(states["large"]):
            wanted = divergence(x_s, heads[0], x_t, heads[1], vocabulary=words).mean()
            assert survey.divergence[s][t] == pytest.approx(wanted.item(), rel=1e-5)


def test_what_is_said_follows_from_the_matrix(bare: MatchReport) -> None:
    survey = bare.survey
    assert survey is not None
    matrix = torch.tensor(survey.divergence, dtype=torch.float64)
    assert torch.equal(torch.tensor(survey.expected, dtype=torch.float64), expected_matching(matrix))
    assert survey.best == tuple(place + 1 for place in best_matching(matrix))
    chosen = [survey.divergence[s][layer - 1] for s, layer in enumerate(survey.best)]
    assert survey.best_divergence == pytest.approx(sum(chosen) / 3)
    assert [sum(row) for row in survey.drawn] == pytest.approx([1.0] * 3)
    assert [sum(row) for row in survey.probabilities] == pytest.approx([1.0] * 3)
    assert len(survey.temperature) == 3
    json.dumps(survey.expected)


def test_the_same_seed_gives_the_same_report_and_any_layers_may_be_targets(
    pair: tuple[Path, Path], bare: MatchReport
) -> None:
    assert surveyed(short(pair), batch_size=2) == bare.survey
    other = compare(short(pair, "teacher.targets.layers=[2,5]", "student.targets.layers=[3]"), batch_size=2)
    assert bare.survey is not None
    assert other.survey is not None
    assert other.small is not None
    assert other.small.layers == (3,)
    wanted = [bare.survey.divergence[2][layer - 1] for layer in (2, 5)]
    assert list(other.survey.divergence[0]) == pytest.approx(wanted, rel=1e-6)


# ------------------------------------------------------------------ a run


def test_a_run_is_read_with_its_own_verbalizers_and_its_own_small_model(
    whole: Path, bare: MatchReport
) -> None:
    resolved = load_saved(whole)
    end, start = (compare(resolved, run_folder=whole, at=at) for at in ("end", "start"))
    assert end.small is not None
    assert start.small is not None
    assert end.small.reading.endswith("verbalizers/small-after")
    assert start.small.reading.endswith("verbalizers/small")
    assert end.small.state == f"as the interaction of {whole} ended"
    assert start.small.state == f"as the interaction of {whole} began"
    assert end.survey is not None
    assert start.survey is not None
    assert end.survey.batch_size == 2, "as in the run's interaction"
    assert end.survey.divergence != start.survey.divergence
    # Sets that are named are the same as those of the run, and bring their own target layers.
    sets = whole / "verbalizers"
    named = resolve(
        "demo",
        [f"student.id={resolved.config.student.id}", "data.sources.0.turns=3", "student.targets.stride=3"],
        {"teacher.id": resolved.config.teacher.id, "teacher.verbalizers": str(sets / "large")},
    )
    named = Resolved(named.config, dict.fromkeys(named.origins, "recipe"), None)
    again = surveyed(named, student_verbalizers=sets / "small", batch_size=2)
    assert again.divergence == start.survey.divergence


def test_the_history_is_what_the_run_logged(whole: Path) -> None:
    past = read_history(whole, ends=0.2)
    assert (past.small_layers, past.large_layers, past.steps) == ((1, 2, 3), (1, 2, 3, 4, 5), 5)
    assert (past.start.first, past.start.last, past.start.draws) == (1, 1, 2)
    assert (past.end.first, past.end.last) == (5, 5)
    assert (past.whole.draws, past.whole.first, past.whole.last) == (10, 1, 5)
    logged: list[dict[str, list[int]]] = [
        draw for line in lines(whole / "matches.jsonl") for draw in line["matched"]
    ]
    for s, layer in enumerate(("1", "2", "3")):
        taken = [draw[layer][0] for draw in logged]
        assert past.whole.mean[s] == pytest.approx(sum(taken) / 10)
        assert past.whole.shares[s] == pytest.approx([taken.count(large) / 10 for large in range(1, 6)])
        assert past.start.mean[s] == pytest.approx(sum(taken[:2]) / 2)
    assert read_history(whole, ends=0.0).start == past.start, "at least one step"


def test_several_matches_of_one_layer_count_their_share(whole: Path, tmp_path: Path) -> None:
    """As bottom-k logs them. The last line was cut by a kill."""
    run = tmp_path / "run"
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("*.safetensors"))
    line = {"stage": "interaction", "step": 1, "matched": [{"1": [2, 5], "2": [3, 5], "3": [5, 1]}]}
    (run / "matches.jsonl").write_text(json.dumps(line) + '\n{"stage": "interaction", "st', "utf-8")
    past = read_history(run)
    assert past.steps == 1
    assert past.whole.mean == (3.5, 4.0, 3.0)
    assert past.whole.shares[0] == (0.0, 0.5, 0.0, 0.0, 0.5)


def test_a_history_alone_loads_no_model(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match_layers.models, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    report = compare(load_saved(whole), run_folder=whole, history_only=True, svg=tmp_path / "a.svg")
    assert report.history == read_history(whole)
    assert report.survey is None
    assert (tmp_path / "a.svg").stat().st_size > 1000
    shown = CliRunner().invoke(app, ["match-layers", "--run", str(whole), "--history"], prog_name="vlsi")
    assert shown.exit_code == 0, shown.output
    assert report.history is not None
    for before, after in zip(report.history.start.mean, report.history.end.mean, strict=True):
        assert re.search(rf"{before:.2f} +{after:.2f} +{re.escape(f'{after - before:+.2f}')}", shown.stdout)


def test_pictures_and_a_page_of_everything(whole: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / f"a.{name}" for name in ("png", "svg", "html")}
    report = compare(load_saved(whole), run_folder=whole, **files)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "a.png", "a.svg"]
    text = files["html"].read_text("utf-8")
    assert text.count("<svg") == 5
    assert "<script" not in text
    assert not re.search(r'(?:src|href)="(?!#|data:)', text), "nothing is fetched"
    assert report.survey is not None
    for row in report.survey.divergence:
        for value in row:
            assert f"{value:.3f}" in text
    assert str(whole) in text


# ------------------------------------------------------------------ refusals


def test_a_pair_that_does_not_fit(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = tiny_folder("qwen2_vl", tmp_path / "other", layers=6, tokenizer_text="zebra quux xylophone " * 9)
    with pytest.raises(CompatibilityError) as raised:
        compare(short((other, pair[1])))
    assert str(other) in raised.value.message
    assert str(pair[1]) in raised.value.message
    with pytest.raises(CompatibilityError, match="only 1"):
        compare(short(pair, "teacher.targets.layers=[2]"))
    with pytest.raises(ConfigError, match="no large model"):
        compare(short(pair, "teacher=null", "interaction=null", "verbalization=null"))


def test_data_that_cannot_be_read(pair: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "none.jsonl"
    file.write_text("", "utf-8")
    with pytest.raises(DataError, match=r"none\.jsonl holds no record"):
        compare(short(pair, f"data={{sources: [{{kind: messages, path: {file}}}]}}"))


def test_verbalizers_of_another_model(pair: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is 64 wide; .* is 32 wide"):
        compare(short(pair), student_verbalizers=whole / "verbalizers" / "large")
    with pytest.raises(CheckpointError, match="no verbalizers in"):
        compare(short(pair), student_verbalizers=tmp_path)


def test_runs_that_have_nothing_to_show(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("*.safetensors"))
    progress = json.loads((run / "progress.json").read_text("utf-8"))
    del progress["stages"]["interaction"]
    (run / "progress.json").write_text(json.dumps(progress), "utf-8")
    with pytest.raises(CheckpointError, match="has not completed interaction") as raised:
        compare(load_saved(run), run_folder=run)
    assert "--history" in (raised.value.hint or "")

    (run / "matches.jsonl").write_text('{"stage": "interaction", "step": 1}\n{}\n', "utf-8")
    with pytest.raises(CheckpointError, match=r"matches\.jsonl:1 is damaged"):
        read_history(run)
    (run / "matches.jsonl").unlink()
    with pytest.raises(CheckpointError, match="no matched layers yet"):
        read_history(run)

    saved = (run / "config.yaml").read_text("utf-8")
    for text, why in (
        (re.sub(r"(?m)^interaction:\n(?:  .*\n)+", "interaction: null\n", saved), "no interaction stage"),
        (saved.replace("intermediate: kld", "intermediate: none"), r"intermediate: none"),
    ):
        (run / "config.yaml").write_text(text, "utf-8")
        with pytest.raises(ConfigError, match=why):
            compare(load_saved(run), run_folder=run)
    with pytest.raises(CheckpointError, match="is not a run folder"):
        read_history(tmp_path)


def test_files_are_refused_before_anything_is_computed(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(match_layers, "_Pair", lambda *_: pytest.fail("models were loaded first"))
    (tmp_path / "file").write_text("")
    for files, kind, message in (
        ({"png": tmp_path / "a.jpg"}, ConfigError, r"a\.jpg ends in '\.jpg'.*\.png"),
        ({"svg": tmp_path / "a.png"}, ConfigError, r"is written as \.svg"),
        ({"html": tmp_path / "a.txt"}, ConfigError, r"a page is written as \.html"),
        ({"png": tmp_path / "file" / "a.png"}, OutputError, "file is not a folder"),
    ):
        with pytest.raises(kind, match=message):
            compare(short(pair), **files)
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        compare(short(pair), svg=tmp_path / "folder.svg")
