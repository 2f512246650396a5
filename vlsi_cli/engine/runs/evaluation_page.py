"""The page of an evaluation: its figures, and questions with their pictures and every model's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlsi_cli.config.evaluating import EvaluationPlan
from vlsi_cli.engine.evaluation.generation import Settings
from vlsi_cli.engine.evaluation.questions import question_from, shown_parts
from vlsi_cli.engine.evaluation.scores import Sample
from vlsi_cli.engine.reports.page import write_page
from vlsi_cli.engine.runs import evaluation_report as shown

if TYPE_CHECKING:
    from vlsi_cli.engine.evaluation.tasks import Task
    from vlsi_cli.engine.runs.evaluate import EvaluationReport

SHOWN = 100
"""Questions of each benchmark on the page: with their pictures inside, more would make it slow to open."""


def write(
    path: Path,
    report: EvaluationReport,
    loaded: Mapping[str, Sequence[Task]],
    samples: Mapping[tuple[str, str], Sequence[Sample]],
    plan: EvaluationPlan,
) -> None:
    """Write the page; questions on which the models differ come first.

    Raises:
        OutputError: it cannot be written.
    """
    models = [asked.id for asked in plan.models]
    parts = []
    for benchmark in plan.benchmarks:
        tasks = {str(task.task_name): task for task in loaded[benchmark.name]}
        answered = [samples[model, benchmark.name] for model in models]
        rows = list(zip(*answered, strict=True)) if len({len(s) for s in answered}) == 1 else []
        rows.sort(key=lambda row: len({sample.score for sample in row}) < 2)
        questions = [_question(row, tasks) for row in rows[:SHOWN]]
        parts.append(
            {"title": benchmark.title, "questions": questions, "all": len(rows), "notes": benchmark.notes}
        )
    write_page(
        path,
        "evaluation",
        title="Evaluation",
        models=models,
        results=report.results,
        pairs=report.pairs,
        requirements=report.requirements,
        parts=parts,
        settings=report.settings,
        paper=shown.PAPER if any(result.paper for result in report.results) else "",
        shown=shown,
    )


def _question(row: Sequence[Sample], tasks: Mapping[str, Task]) -> dict[str, Any]:
    name, _, number = row[0].id.rpartition(":")
    task = tasks[name]
    split = task.config.test_split or task.config.validation_split
    doc = task.dataset[split][int(number)]
    question = question_from(row[0].id, task.doc_to_messages(doc), Settings(1))
    return {
        "id": row[0].id,
        "parts": shown_parts(question),
        "target": row[0].target,
        "answers": [{"text": _text(sample.answer), "score": sample.score} for sample in row],
    }


def _text(answer: Any) -> str:
    """An answer; the losses of a choice by likelihood, one a line."""
    if isinstance(answer, str):
        return answer
    losses = [f"{value[0]:.3f}" if isinstance(value, list | tuple) else str(value) for value in answer]
    return "losses: " + ", ".join(losses)
