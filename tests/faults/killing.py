"""Kills spread over the whole life of a command, and the comparison with one that was never killed."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.faults import forks
from tests.faults.subjects import Broken, Subject, require, require_same

Aim = forks.AtOperation | forks.AtMoment


@dataclass
class Tally:
    """What a subject went through.

    Attributes:
        kills: processes that died; ``ends`` lives that came to their end and were compared.
        stages: kills by where they fell; ``kinds`` by how they were aimed.
        seconds: wall-clock time of all of it; ``cpu`` the children's.
    """

    kills: int = 0
    ends: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    cpu: float = 0.0


def torment(
    subject: Subject, kills: int, seed: int, tell: Callable[[str], None] = lambda text: None
) -> Tally:
    """Kill a command so many times, go on each time, and compare every end with an unbroken one's.

    Two unbroken lives come first: they must be equal, or comparing would mean nothing, and the second, which has
    nothing left to import, gives the length of a life. The first kill of each life falls into its own part of that
    length, so that together they cover it; half of the lives are killed a second time on the way. A stage that all of
    these missed is looked for, and costs some kills more.

    Raises:
        Broken: a promise was not kept; the message has the subject, the kill and the seed.
    """
    began, tally, draw = time.perf_counter(), Tally(), random.Random(f"{seed}/{subject.name}")
    whole = [
        forks.run(subject.words(name), subject.work, before=subject.before) for name in ("whole", "again")
    ]
    for ended in whole:
        require(ended.code == 0, f"{subject.name} fails even unbroken: {ended.said[-2000:]}")
    reference = subject.work / "whole"
    wanted = subject.final(reference)
    require_same(
        subject.final(subject.work / "again"), wanted, f"two unbroken lives of {subject.name} differ"
    )
    life = whole[1]
    lives = max(1, round(kills / 1.4))
    parts = [(number + draw.random()) / lives for number in range(lives)]
    draw.shuffle(parts)
    number = 0

    def live(first: Aim) -> str | None:
        """One life, killed first at an aim and then by luck; the stage of the first kill, None if it missed."""
        nonlocal number
        output, number = f"life-{number}", number + 1
        kill: Aim | None = first
        aims: list[str] = []
        fell: list[str] = []
        while True:
            ended = forks.run(subject.words(output), subject.work, kill, before=subject.before)
            tally.cpu += ended.seconds
            place = subject.work / output
            aims.append(str(kill) if ended.code is None else "its end")
            try:
                if ended.code is None:
                    tally.kills += 1
                    stage = subject.stage(place)
                    fell.append(stage)
                    tally.stages[stage] += 1
                    tally.kinds[type(kill).__name__] += 1
                    tell(
                        f"{subject.name}: kill {tally.kills} of {kills} at {kill}"
                        + (f", {stage}" if stage else "")
                    )
                    subject.check_killed(place, reference)
                    again = draw.random() < 0.5 and tally.kills < kills
                    kill = _aim(draw.random() * 0.7, life, tally.kills % 2 == 0) if again else None
                    continue
                require(ended.code == 0, f"it ended with exit code {ended.code}: {ended.said[-1500:]}")
                subject.check_ended(ended, place)
                require_same(subject.final(place), wanted, "what it left is not what an unbroken one leaves")
            except Exception as error:
                raise Broken(
                    f"{subject.name}, seed {seed}, killed at {', then '.join(aims)}: {error}"
                ) from error
            tally.ends += 1
            return fell[0] if len(aims) > 1 else None

    while tally.kills < kills:
        part = parts.pop() if parts else draw.random()
        live(_aim(part, life, tally.kills % 2 == 0))
    for missed in [stage for stage in subject.stages if not tally.stages[stage]]:
        _seek(missed, subject.stages, life.operations, live)
    tally.seconds = time.perf_counter() - began
    return tally


def _seek(
    stage: str, stages: tuple[str, ...], operations: int, live: Callable[[forks.AtOperation], str | None]
) -> None:
    """Kill in a stage that luck has missed: the file operations of a fresh life come in the order of the stages."""
    low, high = 1, operations
    while low <= high:
        middle = (low + high) // 2
        fell = live(forks.AtOperation(middle))
        if fell == stage:
            return
        if fell is not None and stages.index(fell) < stages.index(stage):
            low = middle + 1
        else:
            high = middle - 1


def _aim(part: float, life: forks.Ended, by_operation: bool) -> Aim:
    """A file operation or a moment, at so large a part of a life."""
    if by_operation:
        return forks.AtOperation(1 + int(part * life.operations))
    return forks.AtMoment(part * life.seconds)
