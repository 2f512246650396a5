"""One model on one benchmark, through the harness, with everything kept on disk as it comes.

Only imported where lmms-eval is installed (:mod:`vlsi_cli.engine.evaluation.harness`).
"""

from __future__ import annotations

import json
import time
import traceback
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

from vlsi_cli.config.benchmarks import Benchmark
from vlsi_cli.engine.evaluation.adapter import Adapter, Answered
from vlsi_cli.engine.evaluation.generation import Answerer
from vlsi_cli.engine.evaluation.guard import scoring
from vlsi_cli.engine.evaluation.harness import one_process
from vlsi_cli.engine.evaluation.journal import Journal
from vlsi_cli.engine.evaluation.judge import Judge, JudgeFailure, Session
from vlsi_cli.engine.evaluation.scores import (
    Result,
    Sample,
    TaskScore,
    Unscored,
    combine,
    nearest_choices,
    read_task,
)
from vlsi_cli.engine.evaluation.sharing import open_journal
from vlsi_cli.engine.evaluation.tasks import Task
from vlsi_cli.engine.evaluation.verdicts import FORMATS
from vlsi_cli.engine.files import new_file, scratch, write_json
from vlsi_cli.errors import EvaluationError, VlsiError
from vlsi_cli.events import AnswersDone, BenchmarkEnded, Events, ScoringStarted

_MOSTLY = 0.5
"""Share of extractions out of which no answer can be read, beyond which the judge and not the model is at fault."""


@dataclass
class Evaluated:
    """A result and its samples."""

    result: Result
    samples: list[Sample] = field(default_factory=list)


def run_benchmark(
    benchmark: Benchmark,
    tasks: Sequence[Task],
    answerer: Answerer,
    folder: Path,
    *,
    model: str,
    paper: list[float],
    judge: Judge | None,
    limit: int | None,
    longest: int | None,
    code: Sequence[Path],
    events: Events,
) -> Evaluated | None:
    """Answer and score a benchmark; answers and verdicts that the folder holds are not asked for again.

    Of several processes, each answers its share and the first one scores; for the others, nothing is returned.

    Args:
        tasks: its tasks, with their data.
        folder: of this model and benchmark; `answers.jsonl`, `verdicts.jsonl`, `samples.jsonl` and `result.json`.
        model: what to call the model.
        paper: what the paper prints for it.
        judge: None when none is configured.
        limit: questions of each task.
        longest: overrides the length of answers.
        code: folders of the tasks' code, whose random draws are counted.

    Raises:
        EvaluationError: the judge failed, or was asked by a benchmark said to need none; or the task's own scoring
            failed.
    """
    started = time.perf_counter()
    by_name = {str(task.task_name): task for task in tasks}
    total = sum(asked(task, limit) for task in tasks)
    before = 0
    answers, sharing = open_journal(folder)
    with answers, Journal(folder / "verdicts.jsonl") as verdicts:
        session = Session(
            benchmark.title,
            _judge_for(benchmark, judge),
            benchmark.verdict,
            verdicts,
            samples=total,
            known=benchmark.known,
        )
        adapter = Adapter(
            answerer,
            answers,
            sharing=sharing,
            tasks=by_name,
            longest=longest,
            # the shares are alike, and the others are about as far
            told=lambda done, _: events(AnswersDone(min(before + done * sharing.size, total), total)),
        )

        answered: set[str] = set()

        def announce() -> None:
            answered.add(name)
            if session.judge is not None:
                events(ScoringStarted(benchmark.title))

        scored: list[TaskScore] = []
        problem: str | None = None
        filled = 0
        unread: list[str] = []
        for name, task in by_name.items():
            with (
                scratch(folder) as room,
                scoring(session, code) as fills,
                one_process(),
            ):
                adapter.on_scoring([fills.restart, announce])
                try:
                    raw = simple_evaluate(
                        model=adapter,
                        tasks=[task],
                        task_manager=TaskManager(include_defaults=False),
                        limit=limit,
                        bootstrap_iters=0,
                        log_samples=True,
                        # a folder of its own: HallusionBench keeps verdicts in it without the model's name
                        cli_args=Namespace(
                            output_path=str(room), process_with_media=False, reasoning_tags=None
                        ),
                        verbosity="ERROR",
                        process_docs_parallel=1,
                    )
                except Answered:
                    before += asked(task, limit)
                    continue
                except JudgeFailure as failure:
                    raise EvaluationError(
                        f"{benchmark.title}: {failure}",
                        hint="the answers are kept: when the judge answers again, the same command goes on from here",
                    ) from None
                except VlsiError:
                    raise
                except Exception as failed:
                    if name not in answered:
                        raise  # a defect of ours
                    traceback.print_exc()  # into the harness's log
                    raise EvaluationError(
                        f"{benchmark.title}: lmms-eval's own scoring failed: {type(failed).__name__}: {failed}",
                        hint="the answers are kept; harness.log in the output folder has the traceback"
                        + ("; scoring needs more questions, perhaps: raise --limit" if limit else ""),
                    ) from failed
            unread += nearest_choices(raw["samples"].get(name, []))
            filled += fills.count
            before += asked(task, limit)
            try:
                scored.append(
                    read_task(
                        benchmark,
                        name,
                        raw,
                        task.aggregation(),
                        limited=limit is not None,
                        rising=task.higher_is_better(),
                    )
                )
            except Unscored as unscored:
                problem = f"{name}: {unscored}"
        if not sharing.scores:
            return None
        keys = adapter.keys
        reused = sum(key in sharing.known for key in keys)
        value, error, samples = None, None, [sample for task_score in scored for sample in task_score.samples]
        if problem is None:
            try:
                value, error, samples = combine(benchmark, scored)
            except Unscored as unscored:
                problem = str(unscored)
        problem = problem or _unusable(session, unread)
        cut = sum(bool(answers.lines[key].get("cut")) for key in keys)
        result = Result(
            benchmark=benchmark.name,
            title=benchmark.title,
            model=model,
            score=None if problem else value,
            n=len(samples),
            missing=problem,
            paper=list(paper),
            error=None if problem else error,
            metrics={key: figure for task_score in scored for key, figure in task_score.metrics.items()}
            if len(scored) == 1
            else {},
            filled=filled + len(unread),
            cut=cut,
            generated=len(keys) - reused,
            reused=reused,
            judge=_judged(session),
            settings={
                "tasks": list(by_name),
                "versions": {name: str(task.VERSION) for name, task in by_name.items()},
                "limit": limit,
                "generation": [asdict(settings) for settings in sorted(adapter.settings, key=str)],
                "not done": sorted(adapter.ignored),
            },
            notes=[benchmark.notes] if benchmark.notes else [],
            seconds=time.perf_counter() - started,
            higher_is_better=scored[0].higher_is_better if scored else None,
        )
    _write(folder, result, samples)
    events(BenchmarkEnded(model, result.title, result.score, result.n, result.reused, result.missing))
    return Evaluated(result, samples)


def asked(task: Task, limit: int | None) -> int:
    """How many questions of a task a limit leaves."""
    whole = len(task.eval_docs)
    return whole if limit is None else min(whole, limit)


def _judge_for(benchmark: Benchmark, judge: Judge | None) -> Judge | None:
    """None for a benchmark that is said to need no judge, which so proves it. Other tasks may ask the one there is."""
    return None if benchmark.known and benchmark.judge == "none" else judge


def _unusable(session: Session, unread: Sequence[str]) -> str | None:
    """Why the verdicts make no score, or None. One bad verdict voids a score; extractions only when most are bad,
    since out of an answer that says nothing no judge can read anything."""
    bad, all_of_them = list(session.unusable), session.asked + session.reused
    if session.verdict == "extraction":
        bad += [text for text in unread if text in session.texts and text != FORMATS["extraction"].stand_in]
    if len(bad) <= (_MOSTLY * all_of_them if session.verdict == "extraction" else 0):
        return None
    return f"{len(bad)} of {all_of_them} verdicts of the judge could not be used (the first: {bad[0][:60]!r})"


def _judged(session: Session) -> dict[str, Any] | None:
    if session.judge is None or not session.asked + session.reused:
        return None
    return {
        "model": session.judge.model,
        "answers as": session.name,
        "address": session.judge.address,
        "asked": session.asked,
        "reused": session.reused,
        "unusable": len(session.unusable),
    }


def _write(folder: Path, result: Result, samples: Sequence[Sample]) -> None:
    with new_file(folder / "samples.jsonl") as part, part.open("w", encoding="utf-8") as file:
        for sample in samples:
            file.write(json.dumps(asdict(sample), ensure_ascii=False, default=str) + "\n")
    write_json(folder / "result.json", asdict(result))
