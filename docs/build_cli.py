"""Write docs/reference/cli.md from the commands themselves, so that the page cannot say something else.

python docs/build_cli.py            rewrite the page
python docs/build_cli.py --check    exit 1 when the page is not what the commands say
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

PAGE = Path(__file__).parent / "reference" / "cli.md"
HEAD = """\
# Command line

<!-- Written by docs/build_cli.py from the commands; edit those instead. -->

Results go to standard output, speech and progress to standard error. Exit codes: [Errors](errors.md).
"""


def page() -> str:
    """The whole page as Markdown."""
    from vlsi_cli.app import app

    root = typer.main.get_command(app)
    parts = [HEAD]
    for path, command in _walk("vlsi", root):
        parts.append(_section(path, command))
    return "\n".join(parts)


def _walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Every visible command under ``command`` with its full name, in the order of the help screen."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from _walk(f"{path} {name}", child)


def _section(path: str, command: Any) -> str:
    params = [
        param for param in command.params if not getattr(param, "hidden", False) and param.name != "help"
    ]
    arguments = [param for param in params if param.param_type_name == "argument"]
    options = [param for param in params if param.param_type_name == "option"]
    children = {name: child for name, child in getattr(command, "commands", {}).items() if not child.hidden}

    usage = path
    usage += " [OPTIONS]" if options else ""
    usage += "".join(f" {_argument(param)}" for param in arguments)
    usage += " COMMAND [ARGS]..." if children else ""
    lines = [f"## `{path}`", "", _prose(command.help), "", "```text", usage, "```", ""]
    if children:
        lines += ["| command | what it does |", "|---|---|"]
        lines += [f"| `{name}` | {_cell(_first(child.help))} |" for name, child in children.items()]
        lines.append("")
    if arguments:
        lines += ["| argument | meaning |", "|---|---|"]
        lines += [f"| `{_argument(param)}` | {_cell(param.help)} |" for param in arguments]
        lines.append("")
    if options:
        lines += ["| option | value | default | meaning |", "|---|---|---|---|"]
        lines += [_option(param) for param in options]
        lines.append("")
    return "\n".join(lines)


def _argument(param: Any) -> str:
    name = (param.metavar or param.name).upper().strip("[]")
    return name if param.required else f"[{name}]"


def _option(param: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*param.opts, *param.secondary_opts])
    choices = getattr(param.type, "choices", None)
    if param.is_flag:
        value = ""
    elif choices:
        value = ", ".join(f"`{getattr(choice, 'value', choice)}`" for choice in choices)
    else:
        value = f"`{(param.metavar or param.type.name).upper()}`"
    value += " (repeatable)" if param.multiple else ""
    return f"| {names} | {value} | {_default(param)} | {_cell(param.help)} |"


def _default(param: Any) -> str:
    if isinstance(param.show_default, str):
        return _cell(param.show_default)
    if param.default in (None, (), [], "", False) or param.show_default is False or callable(param.default):
        return "required" if param.required else ""
    return f"`{getattr(param.default, 'value', param.default)}`"


def _prose(text: str | None) -> str:
    """Help text as Markdown: rich's colour marks and the no-wrap mark of the help screen are dropped."""
    plain = inspect.cleandoc((text or "").split("\f")[0]).replace("\b\n", "")
    return re.sub(r"\[/?[a-z][a-z0-9 _]*\]", "", plain).strip()


def _first(text: str | None) -> str:
    return _prose(text).split("\n\n")[0]


def _cell(text: str | None) -> str:
    return " ".join(_prose(text).split()).replace("|", "\\|")


def main() -> int:
    """Write the page, or with ``--check`` compare it."""
    new = page()
    if "--check" in sys.argv[1:]:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == new:
            return 0
        print("docs/reference/cli.md is out of date; run: python docs/build_cli.py", file=sys.stderr)
        return 1
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
