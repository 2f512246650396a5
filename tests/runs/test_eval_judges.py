"""Judged benchmarks, by the harness's own code on synthetic rows, with a judge on this machine in every mood."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation import LocalJudge, local_judge, needs_harness, with_rows
from vlsi_cli.config.benchmarks import Benchmark, table
from vlsi_cli.config.evaluating import Asked, EvaluationPlan
from vlsi_cli.config.evaluation import EvaluationConfig, JudgeConfig
from vlsi_cli.engine.evaluation.generation import Answerer, Question, Reply
from vlsi_cli.engine.evaluation.judge import Judge
from vlsi_cli.engine.runs.evaluate import EvaluationReport, run
from vlsi_cli.errors import EvaluationError
from vlsi_cli.events import ignore

pytestmark = needs_harness

#: What a judge says that finds the answers right, and the score that follows; the model says some colour and shape.
RIGHT = {
    "mmvet": ("1.0", 100.0),
    "mmvet_v2": ("0.5", 50.0),
    "hallusionbench": ("correct", 100.0),
    "mathvista": ("(A) cat", 100.0),
    "mmbench_en": ("A", 100.0),
    "mmbench_cn": ("B", 0.0),
    "llava_wilder": ("10 8", 80.0),
}


@pytest.fixture
def judge(request: pytest.FixtureRequest) -> Iterator[LocalJudge]:
    with local_judge("") as found:
        yield found


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Benchmark]:
    folder = tmp_path_factory.mktemp("judged")
    return {name: with_rows(name, folder / name) for name in RIGHT}


def evaluate(
    benchmark: Benchmark, judge: LocalJudge | None, output: Path, *, timeout: float = 120
) -> EvaluationReport:
    setting = None
    if judge is not None:
        setting = JudgeConfig(model="some-model", url=judge.url, timeout=timeout, attempts=2)
    config = EvaluationConfig(models=("demo/small",), judge=setting, output=output)
    return run(config, EvaluationPlan((Asked("demo/small", None),), (benchmark,), ()), ignore)


@pytest.mark.parametrize("name", list(RIGHT))
def test_a_judge_that_works(
    name: str,
    benchmarks: dict[str, Benchmark],
    judge: LocalJudge,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLSI_JUDGE_KEY", "a-key")
    judge.verdict, score = RIGHT[name]
    report = evaluate(benchmarks[name], judge, tmp_path)
    (result,) = report.results
    assert (result.score, result.n) == (pytest.approx(score), 2)
    assert result.judge is not None
    assert (result.judge["answers as"], result.judge["asked"]) == ("local-judge", len(judge.asked) - 1)
    assert {body["model"] for body in judge.asked} == {
        "some-model"
    }  # whatever the task itself would have asked for
    assert set(judge.keys) == {"Bearer a-key"}
    (verdicts,) = tmp_path.rglob("verdicts.jsonl")
    kept = [json.loads(line) for line in verdicts.read_text("utf-8").splitlines()]
    assert all(line["prompt"] and line["judge"] == "local-judge" for line in kept)
    assert "a-key" not in "".join(f.read_text("utf-8") for f in tmp_path.rglob("*.json*"))
    asked = len(judge.asked)
    again = evaluate(benchmarks[name], judge, tmp_path).results[0]
    assert again.score == pytest.approx(score)
    assert len(judge.asked) == asked + 1  # the probe alone: verdicts are kept


def test_the_judge_sees_the_picture(
    benchmarks: dict[str, Benchmark], judge: LocalJudge, tmp_path: Path
) -> None:
    judge.verdict = "10 8"
    evaluate(benchmarks["llava_wilder"], judge, tmp_path)
    for body in judge.asked:
        (picture,) = [part for part in body["messages"][-1]["content"] if part["type"] == "image_url"]
        assert picture["image_url"]["url"].startswith("data:image/")


@pytest.mark.parametrize("name", list(RIGHT))
def test_a_judge_that_refuses_ends_the_run(
    name: str, benchmarks: dict[str, Benchmark], judge: LocalJudge, tmp_path: Path
) -> None:
    judge.mode = "refuses"
    with pytest.raises(
        EvaluationError, match=r"the judge some-model at http://127\.0\.0\.1:\d+/.+ failed: HTTP 401"
    ):
        evaluate(benchmarks[name], judge, tmp_path)
    assert len(judge.asked) == 2  # the probe, and the first answer to judge
    (answers,) = tmp_path.rglob("answers.jsonl")
    assert len(answers.read_text("utf-8").splitlines()) == 2  # nothing that was answered is lost


def test_a_judge_that_stalls_ends_the_run(
    benchmarks: dict[str, Benchmark], judge: LocalJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge.mode = "stalls"
    monkeypatch.setattr(Judge, "probe", lambda self, pictures: "local-judge")  # it may be slow here
    with pytest.raises(EvaluationError, match=r"MM-Vet: the judge .* failed: no answer within 0\.5 s"):
        evaluate(benchmarks["mmvet"], judge, tmp_path, timeout=0.5)


def test_an_answer_that_is_cut_off_is_asked_for_again(judge: LocalJudge) -> None:
    """Nor does a task learn of it, which would score 0."""
    judge.mode, judge.verdict = "cut-off-once", "1.0"
    asked = Judge("some-model", judge.url, timeout=120, attempts=2, pause=0)
    asked.probe(pictures=False)
    question = [{"role": "user", "content": "Is it right?"}]
    assert asked.ask(question, max_tokens=8, temperature=0.0) == ("1.0", "local-judge")
    assert len(judge.asked) == 3


def test_a_judge_that_is_busy_is_asked_again(
    benchmarks: dict[str, Benchmark], judge: LocalJudge, tmp_path: Path
) -> None:
    judge.mode, judge.verdict = "busy-once", "1.0"
    assert evaluate(benchmarks["mmvet"], judge, tmp_path).results[0].score == 100


@pytest.mark.parametrize("mode", ["prose", "out-of-range"])
@pytest.mark.parametrize("name", [name for name in RIGHT if name != "mathvista"])
def test_verdicts_that_cannot_be_used_make_no_score(
    name: str, mode: str, benchmarks: dict[str, Benchmark], judge: LocalJudge, tmp_path: Path
) -> None:
    judge.mode = mode
    (result,) = evaluate(benchmarks[name], judge, tmp_path).results
    assert result.score is None
    assert result.missing is not None
    assert "verdicts of the judge could not be used (the first: " in result.missing
    assert len(judge.asked) <= 8  # the harness's own loop does not end here


@pytest.mark.parametrize(("mode", "verdict"), [("prose", ""), ("works", "I cannot say")])
def test_extractions_of_nothing_make_no_score(
    mode: str, verdict: str, benchmarks: dict[str, Benchmark], judge: LocalJudge, tmp_path: Path
) -> None:
    judge.mode, judge.verdict = mode, verdict
    (result,) = evaluate(benchmarks["mathvista"], judge, tmp_path).results
    assert result.score is None
    assert result.filled == 2  # the harness takes the nearest choice


def test_a_dead_judge_is_found_before_any_question(
    benchmarks: dict[str, Benchmark], judge: LocalJudge, tmp_path: Path
) -> None:
    judge.url = "http://127.0.0.1:9/v1"
    with pytest.raises(EvaluationError, match="before any question was asked") as caught:
        evaluate(benchmarks["mmvet"], judge, tmp_path)
    assert "--judge-url" in str(caught.value.hint)
    assert not list(tmp_path.rglob("answers.jsonl"))


def test_what_is_said_to_need_no_judge_is_held_to_it(
    benchmarks: dict[str, Benchmark], judge: LocalJudge, tmp_path: Path
) -> None:
    """MM-Vet's code under the claim that it needs none; a judge that is configured for others is not asked either."""
    claimed: Any = replace(benchmarks["mmvet"], judge="none")
    with pytest.raises(EvaluationError, match="MM-Vet asked for a judge, though it is said to need none"):
        evaluate(claimed, judge, tmp_path)
    assert not judge.asked


#: What a model that always gives the first answer reaches on two questions, every second answered otherwise.
ALWAYS_THE_FIRST = {
    **dict.fromkeys(
        ("qbench", "ai2d", "chartqa", "mmmu", "mmstar", "seedbench_2_plus", "blink", "cvbench"), 50.0
    ),
    "pope": 200 / 3,  # F1 of "yes": precision 1/2, recall 1
    "mme": 50.0,  # of each picture's two questions: half right (50), and not both (0)
}


@pytest.mark.parametrize("name", list(ALWAYS_THE_FIRST))
def test_benchmarks_without_a_judge_ask_none(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness's own code for every one of them: the scale is right, and nothing is asked of anyone."""
    first = "Yes" if name in ("pope", "mme") else "A"

    def answer(self: Answerer, questions: Iterable[Question]) -> Iterator[tuple[Question, Reply]]:
        yield from ((question, Reply(first, tokens=1)) for question in questions)

    monkeypatch.setattr(Answerer, "answer", answer)
    benchmark = with_rows(name, tmp_path / "rows")
    if name == "mme":  # two questions are one picture; of its two sums one is empty
        benchmark = replace(benchmark, metrics=benchmark.metrics[:1])
    (result,) = evaluate(benchmark, None, tmp_path / "out").results
    assert (result.missing, result.score) == (None, pytest.approx(ALWAYS_THE_FIRST[name], abs=1e-3))
    assert (result.judge, result.filled) == (None, 0)


def test_an_answer_that_is_no_option_is_counted(tmp_path: Path) -> None:
    """Q-Bench and MMMU draw an option for it."""
    for name in ("qbench", "mmmu"):
        (result,) = evaluate(with_rows(name, tmp_path / name), None, tmp_path / f"{name}-out").results
        assert result.filled == 2


def test_the_table_is_covered() -> None:
    assert {*RIGHT, *ALWAYS_THE_FIRST, "patterns"} == set(table())
