"""Write docs/reference/cli.md from the commands themselves, so that the page cannot say something else.

    python docs/build_cli.py            rewrite the page
    python docs/build_cli.py --check    exit 1 when the page is not what the commands say

The page is made by Typer's own `utils docs`; this adds what holds for all commands.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pages

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "cli.md"
TITLE = "Command line"
HEAD = f"""\
# {TITLE}

<!-- Written by docs/build_cli.py from the commands; edit those instead. -->

Results go to standard output, speech and progress to standard error. Exit codes: [Errors](errors.md). `--verbose` and
`--quiet` may stand before a command or after it.
"""


def page() -> str:
    """The whole page as Markdown.

    Raises:
        subprocess.CalledProcessError: when the commands cannot be imported; the reason is on standard error.
    """
    command = [
        sys.executable,
        "-m",
        "typer",
        "vlsi_cli.app",
        "utils",
        "docs",
        "--name",
        "vlsi",
        "--title",
        TITLE,
    ]
    # A fixed width and no colours: the page must not depend on the terminal it is written from.
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    text = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    body = _whole("\n".join(line.rstrip() for line in text.splitlines()))
    return HEAD + body.removeprefix(f"# {TITLE}\n").rstrip() + "\n"


def _whole(text: str) -> str:
    """The lists of commands with the first sentence of each in full; Typer ends it after some 45 characters."""
    for name, sentence in re.findall(r"^#{2,} `vlsi (?:.+ )?(\S+)`\n\n(.+)$", text, flags=re.MULTILINE):
        text = re.sub(rf"^\* `{name}`: .+\.\.\.$", f"* `{name}`: {sentence}", text, flags=re.MULTILINE)
    return text


if __name__ == "__main__":
    complaint = "docs/reference/cli.md is out of date; run: python docs/build_cli.py"
    raise SystemExit(pages.write_or_check(PAGE, page(), complaint))
