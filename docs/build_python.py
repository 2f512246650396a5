"""Write docs/reference/python.md from the public names of the package and their docstrings.

python docs/build_python.py            rewrite the page
python docs/build_python.py --check    exit 1 when the page is not what the package says
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pages

import vlsi_cli

PAGE = Path(__file__).parent / "reference" / "python.md"
HEAD = """\
# Python

<!-- Written by docs/build_python.py from the package's public names; edit their docstrings instead. -->

Every public name of `vlsi_cli`. [From Python](../python.md) shows them at work and says what is stable; results that
commands print too have their fields in [JSON documents](json.md), errors are [listed with their codes](errors.md).
"""
GROUPS = {
    "Runs": ("distill", "Report", "read_run", "Run", "evaluate", "EvaluationReport"),
    "Layers": ("load_layers", "LayerReader", "LayerStates", "Answers", "match_layers", "MatchReport"),
    "Losses": ("divergence", "divergence_matrix", "cross_entropy", "AllPairs", "LogitRule"),
    "Matching": ("match", "best_matching", "expected_matching"),
    "Errors": ("VlsiError",),
}
#: Modules, which have sections of their own or none.
MODULES = ("events", "errors", "__version__")
#: Classes that are made and given to something; what they do with it is not public.
SETTINGS = ("LogitRule",)
#: Classes that are made by functions, whichever way.
MADE = ("LayerReader",)
WIDTH = 100


def page() -> str:
    """The whole page as Markdown.

    Raises:
        ValueError: a public name that is in no group.
    """
    named = {name for names in GROUPS.values() for name in names} | set(MODULES)
    if missing := set(vlsi_cli.__all__) ^ named:
        raise ValueError(f"not in the groups of {__file__}, or not public: {', '.join(sorted(missing))}")
    parts = [HEAD]
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        parts += [_section(name, getattr(vlsi_cli, name)) for name in names]
    parts.append("## Events\n")
    parts.append(
        "What `events` is called with, and `vlsi_cli.events` has. New kinds may come: skip what you do not know.\n"
    )
    parts += [_section(kind.__name__, kind) for kind in get_args(vlsi_cli.events.Event)]
    return "\n".join(parts).rstrip() + "\n"


def _section(name: str, thing: Any) -> str:
    lines = [f"### {name}\n", *_shown(name, thing)]
    for method, inner in _methods(thing):
        lines += [f"#### {name}.{method}\n", *_shown(method, inner)]
    return "\n".join(lines)


def _shown(name: str, thing: Any) -> list[str]:
    """The signature, of functions as Python would have it, and the docstring as it stands."""
    language, end = ("text", "") if inspect.isclass(thing) else ("python", ": ...")
    return [f"```{language}", _signature(name, thing) + end, "```\n", "```text", _text(thing), "```\n"]


def _text(thing: Any) -> str:
    return re.sub(r":\w+:`~?\.?([\w.]+)`", r"``\1``", inspect.cleandoc(thing.__doc__ or ""))


def _methods(thing: Any) -> Iterator[tuple[str, Any]]:
    for name, inner in vars(thing).items() if inspect.isclass(thing) else ():
        if name.startswith("_") or thing.__name__ in SETTINGS:
            continue
        if inspect.isfunction(inner):
            yield name, inner
        elif isinstance(inner, property):
            yield name, inner.fget


def _signature(name: str, thing: Any) -> str:
    if name in MADE:
        return f"class {name}"
    head = f"class {name}" if inspect.isclass(thing) else f"def {name}"
    signature = inspect.signature(thing)
    inside = [_parameter(each) for each in signature.parameters.values()]
    kinds = [each.kind for each in signature.parameters.values()]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        inside.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    result = signature.return_annotation
    tail = f" -> {_plain(result)}" if result not in (inspect.Signature.empty, None, "None") else ""
    line = f"{head}({', '.join(inside)}){tail}"
    if len(line) <= WIDTH:
        return line
    return f"{head}(\n" + textwrap.indent(",\n".join(inside) + ",\n", "    ") + f"){tail}"


def _parameter(each: inspect.Parameter) -> str:
    text = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(
        each.kind, ""
    ) + each.name
    if each.annotation is not inspect.Parameter.empty:
        text += f": {_plain(each.annotation)}"
    if each.default is inspect.Parameter.empty:
        return text
    default = each.default
    if inspect.isfunction(default):
        shown = default.__name__
    elif type(default).__repr__ is object.__repr__ or repr(default).startswith("<"):
        shown = "..."
    else:
        shown = json.dumps(default) if isinstance(default, str) else repr(default)
    return f"{text} = {shown}" if each.annotation is not inspect.Parameter.empty else f"{text}={shown}"


def _plain(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return text.replace("'", '"')


if __name__ == "__main__":
    complaint = f"{PAGE} is not what the package says; run: python docs/build_python.py"
    raise SystemExit(pages.write_or_check(PAGE, page(), complaint))
