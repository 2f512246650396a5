"""What `vlsi data check` hands back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Lengths:
    """How long records are, in tokens; each figure is the length of one of them (nearest rank).

    Attributes:
        min: of the shortest.
        median: half of the records are at most so long.
        p95: 95 % of the records are at most so long.
        max: of the longest.
    """

    min: int
    median: int
    p95: int
    max: int


@dataclass(frozen=True)
class BadExample:
    """A record that cannot be used.

    Attributes:
        record: its id, where it has one that could be read.
        where: file and line, or data set and row.
        detail: the value at fault.
    """

    record: str
    where: str
    detail: str


@dataclass(frozen=True)
class BadReason:
    """Records that cannot be used for one reason.

    Attributes:
        count: how many.
        meaning: the reason in words.
        hint: what to do about it, None where that depends.
        examples: the first ten.
    """

    count: int
    meaning: str
    hint: str | None
    examples: tuple[BadExample, ...]


@dataclass(frozen=True)
class SourceCheck:
    """What is in one source.

    Attributes:
        source: its name.
        held_out: whether it is one of the held-out data.
        max_length: tokens that a record of it may have.
        holds: records in it, None when endless or unknown.
        records: read: those that are ``usable`` and those that are ``unusable``.
        with_images: usable records that have pictures.
        written_images: usable records whose text holds ``<img>...</img>``, which is trained on as words.
        reasons: why records are unusable, most frequent first.
        tokens: lengths of the usable records, None where there are none.
        image_tokens: of these, tokens of pictures in those that have pictures.
        trained_tokens: of these, tokens that are trained on.
    """

    source: str
    held_out: bool
    max_length: int
    holds: int | None
    records: int
    usable: int
    unusable: int
    with_images: int
    written_images: int
    reasons: dict[str, BadReason]
    tokens: Lengths | None
    image_tokens: Lengths | None
    trained_tokens: Lengths | None


@dataclass(frozen=True)
class CheckReport:
    """How many records a model could be trained on.

    Attributes:
        model: whose processor encoded them.
        max_length: tokens that a record of the training data may have.
        sources: each of the data, in their order, then each of the held-out data.
        records, usable, unusable: of all sources.
        complete: whether all that was asked for was read.
        stopped_by: the signal that ended the reading before: SIGINT (Ctrl-C), SIGTERM or SIGHUP.
        bad: the file that names every unusable record, None where none was asked for.
        workers: processes that read.
        seconds: wall-clock time.
    """

    model: str
    max_length: int
    sources: tuple[SourceCheck, ...]
    records: int
    usable: int
    unusable: int
    complete: bool
    stopped_by: str | None
    bad: Path | None
    workers: int
    seconds: float
