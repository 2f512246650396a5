"""What is asked of scores: `mmmu>=50`, read and checked before anything heavy is imported."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from vlsi_cli.config import benchmarks
from vlsi_cli.config.benchmarks import Benchmark
from vlsi_cli.errors import ConfigError, did_you_mean

Relation = Literal[">=", "<="]

_FORM = re.compile(
    r"(?:(?P<model>.+):)?(?P<benchmark>[^:<>=,\s]+)\s*(?P<relation>>=|<=)\s*"
    r"(?P<bound>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
)
_QUOTES = "write it between quotes, as --require 'mmmu>=50': a shell takes a bare > for a redirection"
_AGAIN = (
    "the form is 'BENCH>=N' or 'BENCH<=N', or one of these behind 'MODEL:'; give --require again for more"
)
#: Scores are sums of many quotients: 29 right of 100 make 28.999999999999996.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Requirement:
    """A bound on one score of one model.

    Attributes:
        model: its id.
        benchmark: its name.
        relation: `>=`: the score must reach the bound; `<=`: it must not pass it.
        bound: on the scale of the score that is printed.
    """

    model: str
    benchmark: str
    relation: Relation
    bound: float

    def holds(self, score: float | None) -> bool:
        """Whether a score, unrounded, meets it; a missing one meets nothing."""
        if score is None:
            return False
        slack = _ROUNDING * max(1.0, abs(self.bound))
        beyond = score - self.bound if self.relation == ">=" else self.bound - score
        return beyond >= -slack


def read_requirements(
    texts: Sequence[str],
    models: Mapping[str, str],
    chosen: Sequence[Benchmark],
    skipped: Sequence[Benchmark] = (),
    tasks_dir: Path | None = None,
) -> tuple[Requirement, ...]:
    """Read what is asked of the scores of an evaluation.

    Without a model it is asked of every one. The name of a group asks it of each of the group's benchmarks.

    Args:
        texts: as typed.
        models: names of the models, as typed and as resolved, to their ids.
        chosen: the benchmarks that are asked.
        skipped: those that are left out for want of a judge.
        tasks_dir: a folder with task files of one's own.

    Raises:
        ConfigError: words of another form, a model or benchmark that is not evaluated, or a bound that is not on the
            scale of the score.
    """
    found: list[Requirement] = []
    for text in texts:
        form = _FORM.fullmatch(text.strip())
        if form is None or not math.isfinite(float(form["bound"])):
            raise ConfigError(
                f"--require is '{text}', and should be like 'mmmu>=50'",
                hint=_AGAIN if set(text) & set("<>") else _QUOTES,
            )
        ids = _models(text, form["model"], models)
        relation, bound = cast(Relation, form["relation"]), float(form["bound"])
        for benchmark in _benchmarks(text, form["benchmark"], chosen, skipped, tasks_dir):
            _check_bound(text, benchmark, relation, bound)
            found += [Requirement(id, benchmark.name, relation, bound) for id in ids]
    return tuple(dict.fromkeys(found))


def _models(text: str, word: str | None, models: Mapping[str, str]) -> list[str]:
    if word is None:
        return list(dict.fromkeys(models.values()))
    plain = {name.rstrip("/\\"): id for name, id in models.items()}
    id = plain.get(word.strip().rstrip("/\\"))
    if id is None:
        near = did_you_mean(word, models)
        raise ConfigError(
            f"--require '{text}': no model '{word}' is evaluated",
            hint=f"did you mean {near}?" if near else "models: " + ", ".join(dict.fromkeys(models)),
        )
    return [id]


def _benchmarks(
    text: str, word: str, chosen: Sequence[Benchmark], skipped: Sequence[Benchmark], tasks_dir: Path | None
) -> list[Benchmark]:
    named = [each for each in (*chosen, *skipped) if each.name == word] or benchmarks.choose(
        [word], tasks_dir
    )
    for benchmark in named:
        if benchmark in skipped:
            raise ConfigError(
                f"--require '{text}': {benchmark.title} is left out, since it needs a judge and none is configured",
                hint="give --judge-model NAME, or leave the requirement out too",
            )
        if benchmark not in chosen:
            raise ConfigError(
                f"--require '{text}': {benchmark.name} is not among the benchmarks that are asked",
                hint=f"add -b {benchmark.name}",
            )
    return named


def _check_bound(text: str, benchmark: Benchmark, relation: Relation, bound: float) -> None:
    """A bound must be on the benchmark's scale, and no share where scores are percentages or points."""
    if not benchmark.known:
        return  # only the task's own file knows its scale
    best = benchmark.best
    open_end = benchmark.verdict == "pair"  # a ratio to a reference answer, which may pass its scale
    if bound < 0 or (bound > best and not open_end):
        raise ConfigError(f"--require '{text}': scores of {benchmark.title} are from 0 to {best:g}")
    share = 1.0 if best <= 100 else 100.0
    if 0 < bound < share:
        meant = f"{benchmark.name}{relation}{bound / share * best:g}"
        raise ConfigError(
            f"--require '{text}': scores of {benchmark.title} are from 0 to {best:g}, so {bound:g} is next to nothing",
            hint=f"write '{meant}' if that is meant",
        )
