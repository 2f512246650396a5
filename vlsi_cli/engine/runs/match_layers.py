"""``vlsi match-layers``: how the layers of two models meet, before a run, after it, or without any."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vlsi_cli.config.loading import CHANGED, Resolved
from vlsi_cli.config.reading import DRAWS, ENDS, SAMPLES
from vlsi_cli.config.run import DistillConfig, HubSource, MatchingConfig, ModelConfig, PatternsSource, Source
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.compatibility import check_pair
from vlsi_cli.engine.backbones.folders import is_hub_id, resolve_verbalizers
from vlsi_cli.engine.backbones.load import Description
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.data.collate import collate, in_groups
from vlsi_cli.engine.data.report import DataReport
from vlsi_cli.engine.matching import best_matching, drawn_matching, expected_matching, widest_draws
from vlsi_cli.engine.runs import models
from vlsi_cli.engine.runs.data import encoder_for, training_stream
from vlsi_cli.engine.runs.folder import RunFolder
from vlsi_cli.engine.runs.match_history import read_history, require_matching
from vlsi_cli.engine.runs.match_reports import (
    MatchReport,
    Matrix,
    SideReport,
    Survey,
    check_pictures,
    write_pictures,
)
from vlsi_cli.engine.runs.readers import AFTER_STEP_2
from vlsi_cli.engine.runs.student import restore_layers
from vlsi_cli.engine.runs.surroundings import left_as_found
from vlsi_cli.engine.teachers import LayerDivergences, LiveTeacher, layer_divergences
from vlsi_cli.engine.verbalizing import head_fingerprint, read_manifest
from vlsi_cli.errors import CheckpointError, ConfigError, TrainingError, fitting
from vlsi_cli.events import Events, Note, Warn

At = Literal["start", "end"]
_SAY_EVERY = 10.0  # seconds between words of progress


def run(
    resolved: Resolved,
    *,
    events: Events,
    samples: int = SAMPLES,
    draws: int = DRAWS,
    batch_size: int | None = None,
    student_verbalizers: str | Path | None = None,
    run_folder: Path | None = None,
    at: At = "end",
    ends: float = ENDS,
    history_only: bool = False,
    png: Path | None = None,
    svg: Path | None = None,
    html: Path | None = None,
) -> MatchReport:
    """Compare the target layers of a pair over a sample of data, and read what a run matched.

    Args:
        resolved: the pair, its data, its matching; of a run: the run's own configuration.
        events: told of what happens.
        samples: records to read.
        draws: draws of every batch for the drawn frequencies.
        batch_size: records that share a draw; None takes that of the configured interaction.
        student_verbalizers: the small model's set: its folder, a run, or the hub id of a model that was pushed with its
            sets; None reads it by the logit lens. The large model's is ``teacher.verbalizers`` of the configuration.
        run_folder: a run whose verbalizers, small model and matches are read in place of those.
        at: whether the small model of the run is read as its interaction began or as it ended.
        ends: share of the run's steps that count as its start and as its end.
        history_only: read the run's matches and load no model.
        png, svg, html: files to write.

    Raises:
        VlsiError: ConfigError, DataError, ModelError, CompatibilityError, OutputError, CheckpointError or
            TrainingError.
    """
    started = time.perf_counter()
    check_pictures(png, svg, html)
    history = read_history(run_folder, ends=ends) if run_folder is not None else None
    small = large = survey = None
    if not history_only:
        with left_as_found(models.own_device(resolved.config.device)):
            pair = _Pair(resolved, events, student_verbalizers, run_folder, at)
            survey = pair.survey(samples, batch_size, draws)
            small, large = pair.side("small"), pair.side("large")
    report = MatchReport(small, large, survey, history, time.perf_counter() - started)
    write_pictures(report, png, svg, html)
    return report


class _Pair:
    """Two models that were checked before any weights were read, with their verbalizers."""

    def __init__(
        self,
        resolved: Resolved,
        events: Events,
        student_verbalizers: str | Path | None,
        run: Path | None,
        at: At,
    ) -> None:
        self.config, self.events, self.run, self.at = resolved.config, events, run, at
        config, student, teacher = self.config, self.config.student, self.config.teacher
        if teacher is None:
            raise ConfigError(
                f"'{config.name}' has no large model to compare with", hint="give --teacher and --student"
            )
        self.trained_on = False  # whether the small model's head was trained on after its set
        if run is not None:
            self.sets = _sets_of_run(run, config, at)
            self.shown = self.sets
        else:
            given, name = student_verbalizers, _set_of_student(student.id, student_verbalizers)
            self.sets = {
                "small": _set_in(given, name),
                "large": _set_in(teacher.verbalizers, "large"),
            }
            self.shown = {"small": Path(given) if given is not None else None, "large": teacher.verbalizers}
            self.trained_on = given is not None and name == AFTER_STEP_2
        self.device, self.dtype = models.place(config)
        described = models.describe_model(student, config)
        template = described.processor.chat_template
        described_large = models.describe_model(teacher, config, chat_template=template)
        self.targets = {
            "small": self._targets("small", student, described, resolved),
            "large": self._targets("large", teacher, described_large, resolved),
        }
        for fact in check_pair(described_large, described, self.targets["large"], self.targets["small"]):
            events(Note(fact))
        self.readers = {
            "small": self._reader("small", student),
            "large": self._reader("large", teacher, template),
        }

    def _targets(
        self, side: str, model: ModelConfig, described: Description, resolved: Resolved
    ) -> tuple[int, ...]:
        """A set brings its own target layers, unless others were asked for (which the set then refuses)."""
        key = "student.targets." if side == "small" else "teacher.targets."
        asked = any(name.startswith(key) and origin in CHANGED for name, origin in resolved.origins.items())
        path = self.sets[side]
        if path is not None and not asked:
            return read_manifest(path).layers
        return models.target_layers(model, described)

    def _reader(self, side: str, model: ModelConfig, template: str | None = None) -> LiveTeacher:
        """A model, frozen, with what makes words of its layers. Either side is read as a teacher is."""
        backbone = models.load_model(
            model, self.config, self.dtype, self.device, trained=False, chat_template=template
        )
        if side == "small" and self.run is not None and self.at == "end":
            restore_layers(RunFolder(self.run).interaction, backbone)
        path, targets = self.sets[side], self.targets[side]
        trained_on = side == "small" and self.trained_on
        words = None
        if path is not None:
            words = models.stored_verbalizers(path, backbone, targets, any_head=trained_on)
        if trained_on and read_manifest(path).head_sha256 != head_fingerprint(backbone.head.weight):  # type: ignore[arg-type]
            self.events(
                Note("step 3 has trained the small model's head on since its verbalizers were trained")
            )
        return LiveTeacher(backbone, words, targets, self.dtype)

    def survey(self, samples: int, batch_size: int | None, draws: int) -> Survey:
        """Everything that the divergences over a sample say."""
        interaction = self.config.interaction
        choice = interaction.matching if interaction is not None else MatchingConfig()
        size = batch_size or (interaction.batch_size if interaction is not None else samples)
        flags = {
            "search_range": choice.search_range,
            "order_preservation": choice.order_preservation,
            "adaptive_temperature": choice.adaptive_temperature,
        }
        report = DataReport()
        found = self._compare(samples, size, report)
        mean = found.mean
        generator = torch.Generator().manual_seed(
            models.derived_seed(self.config.seed, "draws of match-layers")
        )
        drawn = drawn_matching(
            found.batches, draws=draws, generator=generator, strategy=choice.strategy, k=choice.k, **flags
        )
        temperature: list[float] = []
        widest = torch.zeros(0)
        if choice.strategy == "multinomial":
            temperature, widest = widest_draws(mean, **flags)
        best = best_matching(mean)
        return Survey(
            data=tuple(_name(source) for source in self.config.data.sources),
            records=found.records,
            skipped=report.skipped,
            tokens=int(found.tokens.sum()),
            batches=len(found.batches),
            batch_size=size,
            matching=_describe(choice),
            divergence=_rows(mean),
            spread=_rows(found.spread),
            temperature=tuple(temperature),
            probabilities=_rows(widest),
            expected=_rows(expected_matching(mean, strategy=choice.strategy, k=choice.k, **flags)),
            best=tuple(self.targets["large"][place] for place in best),
            best_divergence=sum(float(mean[s, place]) for s, place in enumerate(best)) / len(best),
            drawn=_rows(drawn),
            draws=draws,
        )

    def _compare(self, samples: int, size: int, report: DataReport) -> LayerDivergences:
        """Both models over the first ``samples`` usable records, in the order that the seed gives them."""
        small, last = self.readers["small"], time.monotonic()

        def tell(records: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _SAY_EVERY:
                last = time.monotonic()
                self.events(Note(f"{records} of {samples} records read"))

        too_large = f"{size} records at a time do not fit into the memory of {self.device}"
        with fitting(TrainingError(too_large, hint="lower --batch-size")):
            found = layer_divergences(
                small,
                self.readers["large"],
                self._batches(small.backbone, samples, size, report),
                vocabulary=small.backbone.tokenizer_length,
                device=self.device,
                after_batch=tell,
            )
        if report.skipped:
            self.events(Warn(f"data: {report.summary()}"))
        if found.records < samples:
            self.events(Note(f"the data hold {found.records} usable records; {samples} were asked for"))
        return found

    def _batches(self, student: Backbone, samples: int, size: int, report: DataReport) -> Iterator[Batch]:
        encoder = encoder_for(student.processor, self.config.data)
        seed = models.derived_seed(self.config.seed, "data of match-layers")
        with training_stream(
            self.config.data, encoder, seed=seed, beside=self.device, report=report
        ) as stream:
            for group in in_groups(stream.one_pass(samples), size):
                yield collate(group, encoder.pad_id)

    def side(self, side: str) -> SideReport:
        """What is to be said of one model."""
        reader, path = self.readers[side], self.shown[side]
        reading = (
            "logit lens: final norm and head, no trained verbalizers"
            if path is None
            else f"verbalizers {path}"
        )
        state = ""
        if side == "small" and self.run is not None:
            state = f"as the interaction of {self.run} {'ended' if self.at == 'end' else 'began'}"
        return SideReport(reader.name, reader.targets, reader.backbone.num_layers, reading, state)


def _set_in(place: str | Path | None, name: str) -> Path | None:
    """The folder of a set; what is neither there nor a hub id is for the reader of its manifest to refuse."""
    if place is None or not (is_hub_id(place) or Path(place).expanduser().is_dir()):
        return None if place is None else Path(place)
    return resolve_verbalizers(place, name)


def _set_of_student(student: str, place: str | Path | None) -> str:
    """Which set of a place is the small model's: that of step 2 for a student that lies beside it, else the base's."""
    if place is None:
        return "small"
    folder, beside = Path(student).expanduser(), Path(place).expanduser()
    same = folder.resolve() in (beside.resolve(), (beside / "student").resolve())
    return AFTER_STEP_2 if student == str(place) or (beside.is_dir() and same) else "small"


def _sets_of_run(run: Path, config: DistillConfig, at: At) -> dict[str, Path | None]:
    """The verbalizers that a run's interaction began or ended with; None on both sides when it had none."""
    require_matching(run, config)
    assert config.interaction is not None
    assert config.teacher is not None
    folder = RunFolder.open(run)
    needed = ["interaction"] if at == "end" else []
    if config.interaction.verbalizes:
        needed += ["verbalization-large"] if config.large_verbalization is not None else []
        needed += ["verbalization-small"]
    lacking = [key for key in needed if key not in folder.state.stages]
    if lacking:
        raise CheckpointError(
            f"the run {run} has not completed {' and '.join(lacking)}, so its small model cannot be read as its "
            f"interaction {'ended' if at == 'end' else 'began'}",
            hint=f"finish it with `vlsi distill --resume {shlex.quote(str(run))}`, "
            "or add --history to see its matches alone",
        )
    if not config.interaction.verbalizes:
        return {"small": None, "large": None}
    large = _set_in(config.teacher.verbalizers, "large")
    if large is None and config.teacher.cache is not None:
        raise CheckpointError(
            f"the run {run} read its large model from the cache {config.teacher.cache} and has no verbalizers of it",
            hint="name those that the cache was built with: --teacher-verbalizers RUN; or add --history",
        )
    small = folder.verbalizers("small-after" if at == "end" else "small")
    return {"small": small, "large": large or folder.verbalizers("large")}


def _describe(choice: MatchingConfig) -> str:
    """How matches are drawn, in words."""
    if choice.strategy == "bottom-k":
        return f"bottom-{choice.k}"
    if choice.strategy != "multinomial":
        return choice.strategy
    switches = ("search_range", "order_preservation", "adaptive_temperature")
    on = [name.replace("_", " ") for name in switches if getattr(choice, name)]
    return "multinomial" + (f" with {', '.join(on)}" if on else "")


def _name(source: Source) -> str:
    if isinstance(source, PatternsSource):
        return f"patterns ({source.split})"
    return source.id if isinstance(source, HubSource) else str(source.path)


def _rows(matrix: Tensor) -> Matrix:
    return tuple(tuple(row) for row in matrix.tolist())
