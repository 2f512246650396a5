"""What became of the data: how many records were used, how many were not, why, and which."""

from __future__ import annotations

from collections import Counter
from typing import Any

from vlsi_cli.engine.data.records import REASONS, BadRecord

#: Records named for each reason.
EXAMPLES = 10


class DataReport:
    """Counts records by what became of them.

    ``used`` counts draws: a record seen in two epochs counts twice. A record that cannot be used is counted
    once, however often it is drawn.
    """

    def __init__(self) -> None:
        self.used = 0
        #: The last record that could not be used, for messages.
        self.last: BadRecord | None = None
        #: A record of this process whose text names a picture as words; "" while there is none.
        self.written_image = ""
        self._bad: dict[str, str] = {}
        self._examples: dict[str, list[dict[str, str]]] = {}

    def use(self, number: int = 1) -> None:
        """Count records that went into the data."""
        self.used += number

    def skip(self, key: str, bad: BadRecord) -> None:
        """Count one record that could not be used; ``key`` tells records apart (source and index)."""
        self.last = bad
        if key in self._bad:
            return
        self._bad[key] = bad.reason
        examples = self._examples.setdefault(bad.reason, [])
        if len(examples) < EXAMPLES:
            examples.append({"record": bad.record, "where": bad.where, "detail": bad.detail})

    @property
    def skipped(self) -> int:
        """Number of different records that could not be used."""
        return len(self._bad)

    @property
    def reasons(self) -> dict[str, int]:
        """Different records by reason, most frequent first."""
        return dict(Counter(self._bad.values()).most_common())

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values: counts, meanings, and up to ten records for each reason."""
        return {
            "used": self.used,
            "skipped": self.skipped,
            "reasons": {
                reason: {"count": count, "meaning": REASONS[reason], "examples": self._examples[reason]}
                for reason, count in self.reasons.items()
            },
        }

    def summary(self) -> str:
        """One line for a person."""
        if not self._bad:
            return f"{self.used} records used, none skipped"
        why = ", ".join(f"{reason} {count}" for reason, count in self.reasons.items())
        return f"{self.used} records used, {self.skipped} skipped ({why})"

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on counting, as plain JSON values."""
        return {
            "used": self.used,
            "bad": dict(self._bad),
            "examples": {k: list(v) for k, v in self._examples.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.used = int(state["used"])
        self._bad = dict(state["bad"])
        self._examples = {reason: list(examples) for reason, examples in state["examples"].items()}
