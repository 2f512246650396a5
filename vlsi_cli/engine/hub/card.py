"""The model card: metadata that the hub understands, and a page that says how the model was made.

Everything on it was measured by the run or stands in its configuration. A score of the paper appears only beside a
measured one of the same pair and benchmark, and is marked as the paper's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vlsi_cli.engine.hub.licences import Licence
from vlsi_cli.errors import ModelError

PAPER = "https://arxiv.org/abs/2412.01822"
_TEMPLATE = Path(__file__).parent / "card.md.jinja"
#: What the metadata call questions that have no id on the hub.
_HELD_OUT = {"vlsi-patterns": "patterns, the built-in picture puzzles", "held-out": "held-out questions"}
_TAGS = ["vlsi", "knowledge-distillation", "vision-language-model"]


@dataclass(frozen=True)
class Base:
    """One of the two models that a run started from.

    Attributes:
        name: for people: a hub id, a name of the demo pair, or the last part of a local folder.
        hub_id: None when it is on no hub.
        revision: of the hub model, when one was named.
        layers, hidden, parameters: decoder layers, width, all parameters; None when unknown.
        targets: the target layers, counted from 1.
        licence: None when nobody says.
    """

    name: str
    hub_id: str | None
    revision: str | None
    layers: int | None
    hidden: int | None
    parameters: int | None
    targets: tuple[int, ...]
    licence: Licence | None


@dataclass(frozen=True)
class StageLine:
    """A stage as the card lists it: what it did (``settings`` in words), its length, its last loss in nats."""

    stage: str
    trains: str
    steps: int
    records: int
    settings: str
    seconds: float
    final_loss: float


@dataclass(frozen=True)
class HeldOut:
    """Answers of one model to the run's held-out questions: shares in 0..1, loss in nats per response token."""

    who: str
    accuracy: float | None
    loss: float | None
    n: int

    @property
    def standard_error(self) -> float | None:
        """Of the accuracy: the deviation of a mean of n answers that are right or wrong, sqrt(p (1 - p) / (n - 1))."""
        if self.accuracy is None or self.n < 2:
            return None
        return math.sqrt(self.accuracy * (1 - self.accuracy) / (self.n - 1))


@dataclass(frozen=True)
class Benchmark:
    """A score on a public benchmark.

    Attributes:
        name, dataset, split: for people; the hub id of the data; what of them was asked, when known.
        metric, metric_name: identifier, e.g. ``exact_match``, and its name for people.
        value, standard_error: on a scale that ends at ``best`` (None: unknown); None where it is no mean.
        n: questions; ``limit`` where only the first of each task were asked.
        judge: the language model that read the answers, when one did.
        remarks: what else is to be known, in short.
        paper: what the paper prints for ``paper_model`` (in some places two figures); never measured here.
    """

    name: str
    dataset: str
    metric: str
    value: float
    standard_error: float | None
    n: int
    split: str | None = None
    metric_name: str | None = None
    best: float | None = None
    limit: int | None = None
    judge: str | None = None
    remarks: str = ""
    paper: tuple[float, ...] = ()
    paper_model: str | None = None


@dataclass(frozen=True)
class Facts:
    """Everything that a card says.

    Attributes:
        repo: ``owner/name``.
        student, teacher: the bases; None where a model is pushed that no run of ours made, or had no teacher.
        licence: of the pushed model; None when unknown.
        stages, scores: in the order of the run.
        held_out: what the held-out questions were, in words, and ``held_out_id`` their dataset for the metadata.
        benchmarks: scores on public benchmarks, when there are any; ``measured`` says with what.
        datasets: hub ids of the training data; ``data`` names every source for people.
        picture: the file of the matched layers in the repository, when there is one.
        verbalizers: names of the sets that travel along.
        onnx: names of the exported folders.
        metrics: whether the run's metrics travel along.
        recipe: the recipe's file in the repository; ``recipe_name`` the shipped recipe that it came from.
        processes: how many began the run, and shared the records of each step.
        versions: of what the run used, by name.
        family: ``model_type`` of the model.
    """

    repo: str
    family: str
    student: Base | None = None
    teacher: Base | None = None
    licence: Licence | None = None
    stages: Sequence[StageLine] = ()
    scores: Sequence[HeldOut] = ()
    held_out: str = ""
    held_out_id: str = ""
    benchmarks: Sequence[Benchmark] = ()
    measured: Sequence[str] = ()
    datasets: Sequence[str] = ()
    data: Sequence[str] = ()
    picture: str | None = None
    verbalizers: Sequence[str] = ()
    onnx: Sequence[str] = ()
    metrics: bool = False
    recipe: str | None = None
    recipe_name: str | None = None
    processes: int = 1
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)


#: Families whose templates ask for thoughts where they are not told otherwise, which answers without thoughts are
#: trained with (``data.thinking``).
_THINKING = frozenset({"gemma4", "qwen3_5"})


def make_card(facts: Facts) -> str:
    """The whole ``README.md``: YAML metadata, then the page."""
    from huggingface_hub import ModelCard, ModelCardData

    results = _results(facts)
    base = facts.student.hub_id if facts.student else None
    licence = facts.licence
    data = ModelCardData(
        base_model=base,
        base_model_relation="finetune" if base else None,
        datasets=list(facts.datasets) or None,
        library_name="transformers",
        license=licence.id if licence else None,
        license_name=licence.name if licence else None,
        license_link=licence.link if licence else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        eval_results=results or None,
        model_name=facts.repo.partition("/")[2],
        pipeline_tag="image-text-to-text",
        tags=[*_TAGS, facts.family] if facts.student else [facts.family],
    )
    if not results:
        data.pop("model_name")  # it belongs to the results
    card = ModelCard.from_template(
        data,
        template_str=_TEMPLATE.read_text(encoding="utf-8"),
        facts=facts,
        paper=PAPER,
        size=_size,
        cell=_cell,
        figure=_figure,
        metric=_scaled,
        thinks=facts.family in _THINKING,
    )
    # what the template leaves out leaves its empty lines behind
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"


def own_card(folder: Path) -> str | None:
    """The card that a model has already, or None.

    Raises:
        ModelError: it cannot be read, or its metadata are no YAML.
    """
    from huggingface_hub import ModelCard

    file = folder / "README.md"
    if not file.is_file():
        return None
    try:
        text = file.read_text(encoding="utf-8")
        ModelCard(text, ignore_metadata_errors=True)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ModelError(
            f"the card {file} cannot be read: {' '.join(str(error).split())}",
            hint="mend it, or take it away and one is written",
        ) from error
    return text


def _results(facts: Facts) -> list[Any]:
    """What was measured of the pushed model, as the hub's evaluation results."""
    from huggingface_hub import EvalResult

    task = {"task_type": "image-text-to-text", "task_name": "Image-Text-to-Text"}
    found: list[Any] = []
    for score in facts.scores:
        if score.who != "small after":
            continue
        place = {
            "dataset_type": facts.held_out_id,
            "dataset_name": _HELD_OUT.get(facts.held_out_id, facts.held_out_id),
        }
        if score.accuracy is not None:
            error = score.standard_error
            args = {"questions": score.n} | ({} if error is None else {"standard_error": round(error, 6)})
            found.append(
                EvalResult(
                    **task, **place, metric_type="accuracy", metric_name="Exact answers, of 1",
                    metric_value=round(score.accuracy, 6), metric_args=args,
                )
            )  # fmt: skip
        if score.loss is not None:
            found.append(
                EvalResult(
                    **task, **place, metric_type="loss", metric_name="Cross-entropy per response token, nats",
                    metric_value=round(score.loss, 6), metric_args={"questions": score.n},
                )
            )  # fmt: skip
    for mark in facts.benchmarks:
        more = {"standard_error": mark.standard_error, "limit": mark.limit, "judge": mark.judge}
        found.append(
            EvalResult(
                **task, dataset_type=mark.dataset, dataset_name=mark.name, dataset_split=mark.split,
                metric_type=mark.metric, metric_name=_scaled(mark), metric_value=round(mark.value, 4),
                metric_args={"questions": mark.n} | {key: _rounded(v) for key, v in more.items() if v is not None},
            )
        )  # fmt: skip
    return found


def _scaled(mark: Benchmark) -> str:
    """A metric's name with the end of its scale, since the hub shows bare numbers."""
    name = mark.metric_name or mark.metric
    return name if mark.best is None else f"{name}, of {mark.best:g}"


def _figure(value: float | None, mark: Benchmark, digits: int = 1) -> str:
    """A figure of a benchmark; one on an unknown scale keeps its digits."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if mark.best is not None else f"{value:.4g}"


def _rounded(value: float | str) -> float | str:
    return round(value, 4) if isinstance(value, float) else value


def _size(parameters: int) -> str:
    """A number of parameters with three digits and a unit."""
    for unit, factor in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if parameters >= factor:
            return f"{parameters / factor:.3g} {unit}"
    return str(parameters)


def _cell(text: object) -> str:
    """Text for a cell of a table."""
    return str(text).replace("|", "\\|").replace("\n", " ")
