"""Write docs/configuration.md from the configuration's own types, so that the page cannot say something else.

python docs/build_configuration.py            rewrite the page
python docs/build_configuration.py --check    exit 1 when the page is not what the types say
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pages
from pydantic import BaseModel

from vlsi_cli.config.run import DistillConfig

PAGE = Path(__file__).parent / "configuration.md"
HEAD = """\
# Configuration

<!-- Written by docs/build_configuration.py from vlsi_cli/config; edit those instead. -->

Every key that a recipe or `--set` can give, with its default. A key that is not here is refused, with the nearest one
that is. Keys are joined by dots on the command line, and values are YAML:

```bash
vlsi distill --set interaction.matching.strategy=uniform --set reinforcement=null
```

Precedence: default, then recipe, then `--set`, then the other options. `vlsi distill --dry-run` prints every value
with where it came from, and every run writes its own as `config.yaml`, which is itself a recipe. Lists are replaced
as a whole; `--set data.sources.0.split=test` reaches into one. `null` as a whole section leaves it out.
"""


def page() -> str:
    """The whole page as Markdown."""
    places: dict[type[BaseModel], list[str]] = {}
    _visit(DistillConfig, "", places)
    return "\n".join([HEAD, *(_section(model, paths) for model, paths in places.items())])


def _visit(model: type[BaseModel], path: str, places: dict[type[BaseModel], list[str]]) -> None:
    """Collect every place at which each section can stand."""
    places.setdefault(model, []).append(path)
    for name, field in model.model_fields.items():
        for inner in _models(field.annotation):
            kind = inner.model_fields.get("kind")
            _visit(inner, f"{path}.{name}".strip(".") + (f"[kind: {kind.default}]" if kind else ""), places)


def _section(model: type[BaseModel], paths: list[str]) -> str:
    lines = ["## " + ", ".join(f"`{path}`" if path else "Top level" for path in paths), ""]
    lines += [" ".join((model.__doc__ or "").split()), ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if field.is_required():
            default = "required"
        else:
            default = _value(field.get_default(call_default_factory=True))
        meaning = " ".join((field.description or "").split())
        row = [f"`{name}`", _type(field.annotation, field.metadata), default, meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join([*lines, ""])


def _type(annotation: Any, metadata: list[Any]) -> str:
    return ", ".join([_kind(annotation), *(_bound(one) for one in metadata if _bound(one))])


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(annotation))
    if models := list(_models(annotation)):
        listed = "list of " if "tuple" in str(annotation) else ""
        section = "sections" if listed else "section"
        return f"{listed}{section}" + (" or `null`" if type(None) in get_args(annotation) and models else "")
    if get_origin(annotation) is tuple:
        inner = [one for one in get_args(annotation) if one is not Ellipsis]
        return f"list of {_kind(inner[0])}"
    if arguments := get_args(annotation):
        return " or ".join(_kind(one) for one in arguments)
    names = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`", Path: "path"}
    return "`null`" if annotation is type(None) else names[annotation]


def _bound(constraint: Any) -> str:
    for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
        if (limit := getattr(constraint, name, None)) is not None:
            return f"{sign} {limit}"
    return ""


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _value(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "its defaults"
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{value}`" if value != "" else "empty"


if __name__ == "__main__":
    complaint = f"{PAGE} is not what the types say; run: python docs/build_configuration.py"
    raise SystemExit(pages.write_or_check(PAGE, page(), complaint))
