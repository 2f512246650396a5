"""YAML that anybody may have written: a tree of plain values, bounded in size and depth, or one kind of error."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

#: A recipe with the paper's data list has some hundred values; aliases inside aliases can stand for billions.
MOST_VALUES, DEEPEST = 100_000, 50
_MERGE = "tag:yaml.org,2002:merge"


def load(text: str) -> Any:
    """The value of one YAML document.

    Raises:
        yaml.YAMLError: it is not YAML, gives a key twice or an unusable one, uses a tag of a program, is deeper than
            50 levels, or stands for more than 100,000 values.
    """
    try:
        value = yaml.load(text.removeprefix("\ufeff"), Loader=_StrictLoader)
    except RecursionError:
        raise yaml.MarkedYAMLError(problem=f"it is nested deeper than {DEEPEST} levels") from None
    except (ValueError, OverflowError) as error:  # a date of month 13, a number of 10,000 digits
        raise yaml.MarkedYAMLError(problem=str(error)) from error
    _require_bounded(value)
    return value


def advice(error: yaml.YAMLError) -> str | None:
    """What to do about a text that is not YAML, where that can be told."""
    if "'\\t'" in str(getattr(error, "problem", "")):
        return "indent with spaces: YAML takes no tab there"
    return None


def _require_bounded(value: Any) -> None:
    """Count as if every alias were written out; one that holds itself is deeper than anything."""
    seen, waiting = 0, [(value, 1)]
    while waiting:
        here, depth = waiting.pop()
        seen += 1
        if depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"it is nested deeper than {DEEPEST} levels")
        if seen > MOST_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"it stands for more than {MOST_VALUES:,} values, by aliases perhaps"
            )
        if isinstance(here, str) and any("\ud800" <= sign <= "\udfff" for sign in here):
            raise yaml.MarkedYAMLError(problem="half of a surrogate pair is no text")
        inner = [*here, *here.values()] if isinstance(here, dict) else here
        if isinstance(inner, list | set | tuple):
            waiting.extend((each, depth + 1) for each in inner)


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which plain YAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                problem = "a key is a list or a mapping"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            if key in seen:
                problem = f"the key '{key}' is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
