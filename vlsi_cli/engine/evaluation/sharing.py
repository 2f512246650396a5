"""The questions of a benchmark dealt out among processes, and what they found brought together again.

Every process goes through the same list of requests and takes every n-th of them; shares so do not depend on what was
answered before, and neither on how many processes there were then. Each writes into a file of its own, which the first
takes over: of a process that is killed, all that was answered is kept.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

from vlsi_cli.engine import processes
from vlsi_cli.engine.evaluation.generation import Settings
from vlsi_cli.engine.evaluation.journal import Journal


@dataclass
class Part:
    """What one process, or all together, made of a list of requests.

    Attributes:
        keys: the key of the answer by the number of the request.
        settings: with which answers were generated.
        ignored: what tasks asked for that is not done.
    """

    keys: dict[int, str]
    settings: set[Settings] = field(default_factory=set)
    ignored: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Sharing:
    """Who asks what.

    Attributes:
        rank, size: this process among all.
        folder: where each has its file.
        known: keys of answers there were before, as the first process knows them.
    """

    rank: int = 0
    size: int = 1
    folder: Path = Path()
    known: Container[str] = ()

    @property
    def scores(self) -> bool:
        """Whether this process scores: the first, which has all answers."""
        return self.rank == 0

    def mine(self, count: int) -> range:
        """Numbers of the requests that are this process's."""
        return range(self.rank, count, self.size)

    def has(self, key: str, journal: Journal) -> bool:
        """Whether a question was answered before, or by this process."""
        return key in journal or key in self.known

    def combine(self, part: Part, journal: Journal) -> Part | None:
        """Bring together what all found, the answers in the first one's journal. Every process has to call it.

        Returns:
            The whole in the first process, None in the others.
        """
        if self.size == 1:
            return part
        if not self.scores:
            journal.close()
        found = processes.gather(part)
        if self.scores:
            journal.absorb(_parts(self.folder))
        processes.wait()  # the others may write into their files again
        if not self.scores:
            return None
        return Part(
            {number: key for each in found for number, key in each.keys.items()},
            set().union(*(each.settings for each in found)),
            set().union(*(each.ignored for each in found)),
        )


ALONE = Sharing()


def open_journal(folder: Path) -> tuple[Journal, Sharing]:
    """The file that this process writes its answers into, and its share. Every process has to call it.

    The first process takes over what processes of an earlier run left that did not come to their end.

    Raises:
        OutputError: a file cannot be written.
    """
    rank, size = processes.rank(), processes.size()
    own = folder / "answers.jsonl" if rank == 0 else folder / f"answers.{rank}.jsonl"
    journal: Journal | None = None

    def begin() -> frozenset[str]:
        nonlocal journal
        journal = Journal(own)
        journal.absorb(_parts(folder))
        return frozenset(journal.lines)

    known = processes.on_first(begin)
    return journal or Journal(own), Sharing(rank, size, folder, known)


def _parts(folder: Path) -> list[Path]:
    return list(folder.glob("answers.[0-9]*.jsonl"))
