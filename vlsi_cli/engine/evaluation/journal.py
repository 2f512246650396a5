"""Answers on disk, one line each, written as they come: what a run that was killed need not do again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vlsi_cli.engine.files import writing


class Journal:
    """Lines of JSON with a key each, appended and never changed. The last line of a key counts.

    A line that was being written when the process died is dropped.

    Args:
        path: the file; made when the first line is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, dict[str, Any]] = {}
        self._file: Any = None
        if path.is_file():
            self._read()

    def _read(self) -> None:
        whole = 0
        for line, length in _whole_lines(self.path):
            self.lines[line["key"]] = line
            whole += length
        if whole != self.path.stat().st_size:
            with writing(self.path):
                os.truncate(self.path, whole)

    def absorb(self, parts: Iterable[Path]) -> None:
        """Take over what other processes wrote into files of their own, and remove those files.

        Args:
            parts: files that nobody writes into any more. One that is met again, since the process was killed before
                it removed it, adds nothing.

        Raises:
            OutputError: this file cannot be written, or one of those not removed.
        """
        for part in sorted(parts):
            for line, _ in _whole_lines(part):
                if line["key"] not in self.lines:
                    self.add(line["key"], {name: value for name, value in line.items() if name != "key"})
            with writing(part):
                part.unlink()

    def __contains__(self, key: str) -> bool:
        return key in self.lines

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, key: str, line: dict[str, Any]) -> None:
        """Write one line; the operating system has it when this returns.

        Raises:
            OutputError: it cannot be written.
        """
        with writing(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a", encoding="utf-8")
            self.lines[key] = {"key": key, **line}
            self._file.write(json.dumps(self.lines[key], ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Let go of the file.

        Raises:
            OutputError: what is left of it cannot be written.
        """
        file, self._file = self._file, None
        if file is not None:
            with writing(self.path):
                file.close()


def answers_in(path: Path) -> dict[str, dict[str, Any]]:
    """The lines of a journal by key, read without touching the file; none where there is no file."""
    return {line["key"]: line for line, _ in _whole_lines(path)} if path.is_file() else {}


def _whole_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The lines of a file and their lengths in bytes, up to the first that is no line of a journal."""
    with path.open("rb") as file:
        for raw in file:
            try:
                line = json.loads(raw) if raw.endswith(b"\n") else None
            except ValueError:
                line = None
            if not isinstance(line, dict) or "key" not in line:
                return
            yield line, len(raw)
