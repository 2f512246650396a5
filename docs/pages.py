"""What the programs share that write a page of the documentation from something else."""

from __future__ import annotations

import sys
from pathlib import Path


def write_or_check(page: Path, new: str, complaint: str) -> int:
    """Write a page; with ``--check`` on the command line compare it instead.

    Args:
        page: the file.
        new: what it is to hold.
        complaint: told on standard error where it holds something else.

    Returns:
        The program's exit code.
    """
    if "--check" in sys.argv[1:]:
        if page.is_file() and page.read_text(encoding="utf-8") == new:
            return 0
        print(complaint, file=sys.stderr)
        return 1
    page.write_text(new, encoding="utf-8")
    return 0
