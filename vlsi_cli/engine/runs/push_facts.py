"""From a run folder and its configuration to what a model card says."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlsi_cli import __version__
from vlsi_cli.config.catalog import DEMO_IDS, facts_of
from vlsi_cli.config.loading import CONFIG_FILE, Resolved, load_saved
from vlsi_cli.config.presence import cached_snapshot
from vlsi_cli.config.repos import looks_local
from vlsi_cli.config.run import (
    DataConfig,
    DistillConfig,
    HubSource,
    InteractionConfig,
    LossWeights,
    ModelConfig,
    PatternsSource,
    ReinforcementConfig,
    Source,
    StageConfig,
)
from vlsi_cli.engine.hub.card import Base, Facts, HeldOut, StageLine
from vlsi_cli.engine.hub.contents import portable
from vlsi_cli.engine.hub.licences import Licence, licence_of
from vlsi_cli.engine.runs.folder import RunFolder, environment
from vlsi_cli.errors import CheckpointError

_STUDENT = "student"


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its configuration."""

    folder: RunFolder
    resolved: Resolved

    @property
    def config(self) -> DistillConfig:
        """What was run."""
        return self.resolved.config


def find_run(path: Path) -> Run | None:
    """The finished run that a folder is, or whose ``student/`` it is; None when it is neither.

    Raises:
        CheckpointError: a run that has not come to its end, or whose folder is damaged.
    """
    place = path.resolve()
    if place.name == _STUDENT and (place.parent / CONFIG_FILE).is_file():
        path = path.parent if path.name == _STUDENT else place.parent
    if not (path / CONFIG_FILE).is_file():
        return None
    run = Run(RunFolder.open(path), load_saved(path))
    state = run.folder.state
    measured = run.config.evaluation.data is None or "small after" in state.scores
    if not (state.student and measured and run.folder.student.is_dir()):
        raise CheckpointError(
            f"the run {path} has not come to its end: "
            + ("its student is not measured" if state.student else "it has no student yet"),
            hint=f"go on with it: vlsi distill --resume {shlex.quote(str(path))}",
        )
    return run


def run_facts(run: Run, repo: str, family: str, *, licence: str | None, ask: bool) -> Facts:
    """What a card says of a run; what travels along is for the caller to add.

    Args:
        run: the run.
        repo: where it goes.
        family: ``model_type`` of its student.
        licence: given by the user; None: that of the small base.
        ask: whether the hub may be asked for the licences of the bases.
    """
    config, state = run.config, run.folder.state
    student = _base(config.student, ask=ask)
    held_out, held_out_id = _held_out(config.evaluation.data)
    return Facts(
        repo=repo,
        family=family,
        student=student,
        teacher=_base(config.teacher, ask=ask) if config.teacher is not None else None,
        licence=Licence(licence) if licence else student.licence,
        stages=[_stage_line(key, run) for key in state.stages],
        scores=[
            HeldOut(score.who, score.accuracy, score.loss, score.n)
            for score in (state.scores.get(who) for who in ("small after", "small before", "large"))
            if score is not None
        ],
        held_out=held_out,
        held_out_id=held_out_id,
        datasets=_datasets(config.data.located_sources()),
        data=[_described(source) for source in config.data.located_sources()],
        recipe_name=_shipped_recipe(run.resolved),
        processes=state.processes,
        seed=config.seed,
        versions=_versions(run.folder.path),
    )


def _shipped_recipe(resolved: Resolved) -> str | None:
    """The recipe that readers of the card have too; a file of one's own is told from it by the origin of its values."""
    shipped = f"recipe {resolved.recipe}" in resolved.origins.values()
    return resolved.recipe if shipped else None


def plain_versions() -> dict[str, str]:
    """Versions on this machine, for a model that no run of ours made."""
    now = environment()
    return {
        "vlsi": str(now["vlsi"]),
        "transformers": now["packages"]["transformers"],
        "torch": now["packages"]["torch"],
    }


def model_folder(id: str, revision: str | None = None) -> Path | None:
    """Where a model is on this machine, without fetching it."""
    return Path(id) if Path(id).is_dir() else cached_snapshot(id, revision)


def _base(model: ModelConfig, *, ask: bool) -> Base:
    facts = facts_of(model.id, model.revision)
    local = Path(model.id).is_dir() or looks_local(model.id)
    return Base(
        name=Path(model.id).resolve().name if local else model.id,
        hub_id=None if local or model.id in DEMO_IDS else model.id,
        revision=model.revision,
        layers=facts.layers if facts else None,
        hidden=facts.hidden if facts else None,
        parameters=facts.parameters if facts else None,
        targets=model.targets.resolve(facts.layers) if facts else (),
        licence=licence_of(model.id, model_folder(model.id, model.revision), model.revision, ask=ask),
    )


def _stage_line(key: str, run: Run) -> StageLine:
    config, done = run.config, run.folder.state.stages[key]
    stages: dict[str, StageConfig | None] = {
        "verbalization-large": config.large_verbalization,
        "verbalization-small": config.verbalization,
        "interaction": config.interaction,
        "reinforcement": config.reinforcement,
    }
    settings = stages[key]
    assert settings is not None, f"the run trained {key}, which its configuration does not have"
    trains = f"verbalizers, {done.side}"
    if isinstance(settings, InteractionConfig | ReinforcementConfig):
        trains = (
            "small model" if settings.train == "full" else f"adapters of rank {settings.lora.rank}, merged"
        )
    return StageLine(
        stage=done.stage,
        trains=trains,
        steps=done.steps,
        records=settings.effective_batch * run.folder.state.processes,
        settings=_settings(settings, config),
        seconds=done.seconds,
        final_loss=done.final_loss,
    )


def _settings(stage: StageConfig, config: DistillConfig) -> str:
    words = []
    if isinstance(stage, InteractionConfig):
        words.append(f"loss {stage.intermediate} between layers and {stage.last} at the last")
        if stage.temperature != 1.0:
            words[-1] += f", at temperature {stage.temperature:g}"
        if stage.weights != LossWeights():
            each = stage.weights
            words.append(f"weights {each.intermediate:g}, {each.last:g} and {each.answers:g} (answers)")
        if stage.matches:
            match = stage.matching
            switches = [
                name.replace("_", " ")
                for name in ("search_range", "order_preservation", "adaptive_temperature")
                if match.strategy == "multinomial" and getattr(match, name)
            ]
            chosen = f"bottom-{match.k}" if match.strategy == "bottom-k" else match.strategy
            words.append("matching " + " + ".join([chosen, *switches]))
    elif not isinstance(stage, ReinforcementConfig):
        make = config.verbalizer
        words.append(f"{make.architecture}, {make.init} init" + (", residual" if make.residual else ""))
    rate = stage.optimizer
    words.append(f"AdamW, {rate.schedule} from {rate.learning_rate:g}")
    if rate.schedule == "cosine":
        words[-1] += f" to {rate.final_learning_rate:g}"
    return "; ".join(words)


def _described(source: Source) -> str:
    """A source for people; a local file by its name alone."""
    if isinstance(source, PatternsSource):
        size = f"{source.size:,} of them" if source.size else "always fresh ones"
        return f"`patterns`, the built-in picture puzzles ({source.split} split, {size}, seed {source.seed})"
    if isinstance(source, HubSource):
        if not _on_hub(source):
            return f"`{Path(source.id).name}`"
        more = "".join(
            f", {word}" for word in (source.name, f"split {source.split}", source.revision) if word
        )
        return f"[{source.id}](https://huggingface.co/datasets/{source.id}){more}"
    return f"`{source.path.name}`"


def _datasets(sources: Sequence[Source]) -> list[str]:
    return list(
        dict.fromkeys(source.id for source in sources if isinstance(source, HubSource) and _on_hub(source))
    )


def _on_hub(source: HubSource) -> bool:
    return not (Path(source.id).exists() or looks_local(source.id))


def _held_out(data: DataConfig | None) -> tuple[str, str]:
    """Held-out questions in words, and the identifier that metadata give them."""
    if data is None:
        return "", ""
    sources = data.located_sources()
    words = "; ".join(_described(source) for source in sources)
    ids = _datasets(sources)
    if len(ids) == len(sources) == 1:
        return words, ids[0]
    puzzles = all(isinstance(source, PatternsSource) for source in sources)
    return words, "vlsi-patterns" if puzzles else "held-out"


def _versions(run: Path) -> dict[str, str]:
    """What the run says that it ran with."""
    try:
        found = json.loads((run / "environment.json").read_text(encoding="utf-8"))
        return {"vlsi": str(found["vlsi"]), "python": str(found["python"]), **portable(found["packages"])}
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return {"vlsi": __version__}
