"""Which layers a run matched, step by step, and how that moved from its start to its end. No model is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from vlsi_cli.config.catalog import facts_of
from vlsi_cli.config.loading import load_saved
from vlsi_cli.config.run import DistillConfig
from vlsi_cli.engine.runs.folder import RunFolder
from vlsi_cli.engine.runs.run_files import read_lines
from vlsi_cli.engine.verbalizing import read_manifest
from vlsi_cli.engine.verbalizing.manifest import MANIFEST_FILE
from vlsi_cli.errors import CheckpointError, ConfigError

MATCHES_FILE = "matches.jsonl"


@dataclass(frozen=True)
class Period:
    """Some consecutive interaction steps of a run.

    Attributes:
        first, last: their numbers, from 1, inclusive.
        draws: micro-batches in them; each matched every small layer once.
        mean: for each small layer, the mean decoder-layer number that it was matched with.
        shares: ``[n_small][n_large]`` how often each pair was matched, 0..1; rows sum to 1.
    """

    first: int
    last: int
    draws: int
    mean: tuple[float, ...]
    shares: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class History:
    """The matches of a run.

    Attributes:
        run: its folder; ``small`` and ``large`` are its models.
        small_layers, large_layers: target layers, as decoder-layer numbers.
        steps: interaction steps that were logged.
        ends: share of the steps that ``start`` and ``end`` hold, 0..0.5.
        start, end, whole: the first steps, the last ones, and all of them.
    """

    run: Path
    small: str
    large: str
    small_layers: tuple[int, ...]
    large_layers: tuple[int, ...]
    steps: int
    ends: float
    start: Period
    end: Period
    whole: Period


def read_history(run: Path, *, ends: float = 0.1) -> History:
    """Read what a run logged of its matches.

    Args:
        run: the folder that ``vlsi distill`` wrote; the run may still be going on.
        ends: share of the steps (rounded up) that count as its start, and as its end; at most a half.

    Raises:
        CheckpointError: not a run folder, or its log is missing, empty or damaged.
        ConfigError: the run matched no layers.
    """
    config = load_saved(run).config
    require_matching(run, config)
    assert config.teacher is not None
    steps = _read(run / MATCHES_FILE)
    small = tuple(sorted(int(layer) for layer in steps[0][1][0]))
    taken = {large for _, draws in steps for draw in draws for layers in draw.values() for large in layers}
    known = _large_targets(run, config)
    large = known if taken <= set(known) else tuple(sorted(taken))
    count = max(1, math.ceil(ends * len(steps)))
    return History(
        run=run,
        small=config.student.id,
        large=config.teacher.id,
        small_layers=small,
        large_layers=large,
        steps=len(steps),
        ends=ends,
        start=_period(steps[:count], small, large),
        end=_period(steps[-count:], small, large),
        whole=_period(steps, small, large),
    )


def require_matching(run: Path, config: DistillConfig) -> None:
    """Refuse a run in which no layer was matched with another.

    Raises:
        ConfigError: naming the setting that made it so.
    """
    if config.interaction is None:
        why = "it has no interaction stage (interaction: null)"
    elif not config.interaction.matches:
        why = f"its interaction compares no intermediate layers (intermediate: {config.interaction.intermediate})"
    else:
        return
    raise ConfigError(
        f"the run {run} matched no layers: {why}",
        hint="compare two models with --teacher and --student, or give a run with an interaction stage",
    )


_Steps = list[tuple[int, list[dict[str, list[int]]]]]


def _read(file: Path) -> _Steps:
    steps: _Steps = []
    for number, value in enumerate(read_lines(file), start=1):
        try:
            draws = [
                {str(int(s)): [int(x) for x in large] for s, large in draw.items()}
                for draw in value["matched"]
            ]
            layers = (steps[0][1] if steps else draws)[0].keys()
            if not layers or not all(draw.keys() == layers and all(draw.values()) for draw in draws):
                raise ValueError("a small target layer without its match")
            steps.append((int(value["step"]), draws))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file}:{number} is damaged: {error}") from error
    if not steps:
        raise CheckpointError(
            f"{file.parent} has no matched layers yet: {file.name} is missing or empty",
            hint="its interaction has not begun; go on with it, or compare its models with --teacher and --student",
        )
    return steps


def _period(steps: _Steps, small: tuple[int, ...], large: tuple[int, ...]) -> Period:
    draws = [draw for _, each in steps for draw in each]
    counts = [[0.0] * len(large) for _ in small]
    place = {layer: number for number, layer in enumerate(large)}
    for draw in draws:
        for row, layer in zip(counts, small, strict=True):
            taken = draw.get(str(layer), [])
            for matched in taken:  # bottom-k takes several, and averages over them
                row[place[matched]] += 1 / len(taken)
    shares = tuple(tuple(value / len(draws) for value in row) for row in counts)
    mean = tuple(sum(s * layer for s, layer in zip(row, large, strict=True)) for row in shares)
    return Period(first=steps[0][0], last=steps[-1][0], draws=len(draws), mean=mean, shares=shares)


def _large_targets(run: Path, config: DistillConfig) -> tuple[int, ...]:
    """The large target layers: from the verbalizers' manifest, else from the model's facts; empty when unknown."""
    assert config.teacher is not None
    words = config.teacher.verbalizers or RunFolder(run).verbalizers("large")
    if (words / MANIFEST_FILE).is_file():
        return read_manifest(words).layers
    facts = facts_of(config.teacher.id, config.teacher.revision)
    return config.teacher.targets.resolve(facts.layers) if facts is not None else ()
