"""Write docs/reference/json.md from the reports themselves, so that the page cannot say something else.

python docs/build_json.py            rewrite the page
python docs/build_json.py --check    exit 1 when the page is not what the reports say
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pages

from vlsi_cli.config.advice import Advice, Placement
from vlsi_cli.config.plans import Plan
from vlsi_cli.engine.runs.answer_reports import AnswerPlan, AnswerReport
from vlsi_cli.engine.runs.cache_reports import CacheReport, VerifyReport
from vlsi_cli.engine.runs.compare import Comparison
from vlsi_cli.engine.runs.data_check_reports import CheckReport
from vlsi_cli.engine.runs.evaluate import EvaluationReport
from vlsi_cli.engine.runs.export import ExportReport
from vlsi_cli.engine.runs.fetch import FetchReport
from vlsi_cli.engine.runs.match_layers import MatchReport
from vlsi_cli.engine.runs.preview import PreviewReport
from vlsi_cli.engine.runs.push import PushReport
from vlsi_cli.engine.runs.reproduce import Reproduction
from vlsi_cli.engine.runs.verbalize import VerbalizeReport
from vlsi_cli.events import Report

PAGE = Path(__file__).parent / "reference" / "json.md"
HEAD = """\
# JSON documents

<!-- Written by docs/build_json.py from the reports; edit those instead. -->

With `--json` a command prints one document on standard output and nothing else; speech goes to standard error. Keys
are only added within a version 0.x; a key that is taken away or changes its meaning is in the changelog. Numbers that
JSON does not have (infinities, not a number) are `null`, those of `--reproduce` words. An error is an object with the
one key `error`, see [Errors](errors.md).

```bash
vlsi distill --json | jq -r .student
vlsi eval -m runs/mine/student -b patterns --json | jq '.results[].score'
```
"""

#: Command, what is printed, and keys that its objects hold beyond the fields, or lack.
DOCUMENTS: tuple[tuple[str, type, str], ...] = (
    ("vlsi distill", Report, "With `--push` also `push`, an object as `vlsi push` prints it."),
    (
        "vlsi distill --dry-run, vlsi plan",
        Plan,
        "Also `settings`, an object of every key of the configuration to an object with its `value` and `origin`; from "
        "`vlsi distill --dry-run` also `problem`, the sentence that the run would end in before it loads anything, or "
        "null; from `vlsi plan` also `devices`, an array of objects with the keys of both [Placement](#placement) and "
        "[Advice](#advice).",
    ),
    ("vlsi distill --reproduce", Reproduction, ""),
    ("vlsi match-layers", MatchReport, ""),
    ("vlsi verbalize", VerbalizeReport, ""),
    ("vlsi eval", EvaluationReport, ""),
    ("vlsi eval compare", Comparison, ""),
    ("vlsi export", ExportReport, ""),
    ("vlsi push", PushReport, ""),
    ("vlsi cache build, vlsi cache info", CacheReport, ""),
    ("vlsi cache verify", VerifyReport, ""),
    ("vlsi data preview", PreviewReport, ""),
    ("vlsi data check", CheckReport, ""),
    ("vlsi data fetch", FetchReport, ""),
    ("vlsi data answer", AnswerReport, ""),
    ("vlsi data answer --dry-run", AnswerPlan, ""),
)
#: Objects that no field names.
ALONE = (Placement, Advice)
#: Fields that are not printed.
LEFT_OUT = {("Plan", "settings"), ("VerbalizeReport", "rows"), ("PictureReading", "source")}
#: What is printed beside the fields.
ADDED = {
    "Memory": (("total", "number", "all of these."),),
    "ModelFacts": (
        ("parameters", "number", "of the language model, and of the vision tower where that is known."),
        ("idle_parameters", "number", "of them, those of experts that a token does not pass."),
    ),
}
TAIL = """\
## `vlsi eval --list`

An array of objects: `name`, `aliases`, `title`, `tasks` (of lmms-eval), `split`, `data` (ids of data sets),
`questions` (how many, or null), `metrics`, `judge` (what it needs, or null), `in_paper` (whether the paper reports it).

## `vlsi recipes`

`ls`: an array of objects with `name`, `path`, `teacher`, `student`, `description`. `show`: the values of the recipe as
[Configuration](../configuration.md) names them, with every default. `cp`: an object with `path`. `check`: an array of
objects with `recipe`, `valid` (boolean) and `problem` (string or null); of a single invalid recipe, its error.
"""
_WORDS = {
    str: "string",
    Path: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    NoneType: "null",
    Any: "any",
}


def page() -> str:
    """The whole page as Markdown.

    Raises:
        ValueError: a field that its class does not describe.
    """
    parts, inner = [HEAD], list(ALONE)
    for command, report, more in DOCUMENTS:
        parts.append(_section(", ".join(f"`{one}`" for one in command.split(", ")), report, more, inner))
    parts.append(TAIL)
    parts.append("## Objects inside\n")
    done: list[type] = []
    while inner:
        one = inner.pop(0)
        if one not in done:
            done.append(one)
            parts.append(_section(f"{one.__name__}", one, "", inner, level=3))
    return "\n".join(parts).rstrip() + "\n"


def _section(title: str, report: type, more: str, inner: list[type], level: int = 2) -> str:
    described = _described(report)
    lines = [f"{'#' * level} {title}\n", _plain((inspect.getdoc(report) or "").partition("\n")[0]) + "\n"]
    lines += [more + "\n"] if more else []
    lines += ["| key | value | meaning |", "|---|---|---|"]
    hints = get_type_hints(report)
    for field in dataclasses.fields(report):
        if (report.__name__, field.name) in LEFT_OUT:
            continue
        meaning = described.get(field.name)
        if meaning is None:
            near = [name for name, text in described.items() if f"`{field.name}`" in text]
            if not near:
                raise ValueError(f"{report.__name__}.{field.name} is not described in its class")
            meaning = f"see `{near[0]}`"
        cells = [f"`{field.name}`", _value(hints[field.name], inner), meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += ["| `{}` | {} | {} |".format(*added) for added in ADDED.get(report.__name__, ())]
    return "\n".join([*lines, ""])


def _described(report: type) -> dict[str, str]:
    """The attributes that a class describes, by name; several may share a sentence."""
    text = (inspect.getdoc(report) or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", "\n" + text.rstrip()):
        names, mark, meaning = entry.strip().partition(":")
        if not mark:
            continue
        sentence = _plain(" ".join(meaning.split()))
        found |= {name.strip().strip("`"): sentence for name in names.split(",")}
    return found


def _plain(text: str) -> str:
    text = re.sub(r":\w+:`~?\.?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return re.sub(r"\bNone\b", "null", text).replace("``", "`")


def _value(kind: Any, inner: list[type]) -> str:
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_value(one, inner) for one in inside)
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in inside)
    if origin in (dict, Mapping):
        return f"object of {_value(inside[1], inner)}"
    if origin in (tuple, list):
        many = [one for one in inside if one is not Ellipsis]
        return f"array of {', '.join(dict.fromkeys(_value(one, inner) for one in many))}"
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        inner.append(kind)
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return "array of " + ", ".join(kind._fields)
    return _WORDS[kind]


if __name__ == "__main__":
    complaint = f"{PAGE} is not what the reports say; run: python docs/build_json.py"
    raise SystemExit(pages.write_or_check(PAGE, page(), complaint))
