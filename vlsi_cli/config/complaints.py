"""Pydantic's findings as one sentence: the file or flag, the key, what is wrong, and the nearest right
key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from vlsi_cli.config.run import DistillConfig
from vlsi_cli.errors import ConfigError, did_you_mean

#: Characters of a value that a message repeats.
_LONGEST = 200
#: Pydantic's words for a type of Python, in those of a recipe.
_PLAIN = {
    "tuple_type": "input should be a list, in [ ]",
    "list_type": "input should be a list, in [ ]",
    "model_type": "input should be a mapping of keys to values",
    "model_attributes_type": "input should be a mapping of keys to values",
    "dict_type": "input should be a mapping of keys to values",
    "int_parsing": "input should be a whole number",
    "int_type": "input should be a whole number",
    "int_from_float": "input should be a whole number",
    "float_parsing": "input should be a number",
    "float_type": "input should be a number",
    "bool_parsing": "input should be true or false",
    "bool_type": "input should be true or false",
    "string_type": "input should be text",
    "too_short": "input should hold one at least",
}
_SOURCES = "data are a list of sources: data: {sources: [{kind: llava, path: FILE}]}"
_HINTS = {
    "data": "pass --data PATH (LLaVA-style JSON, messages JSONL, a Hugging Face dataset, or patterns)",
    "student": "pass --student with a hub id, a folder, or a size of the teacher's family such as 2b",
}


def complain(
    error: ValidationError, origins: Mapping[str, str], model: type[BaseModel] = DistillConfig
) -> ConfigError:
    """The error to raise for a failed check of a ``model``.

    Unknown keys come first: they are the usual cause of whatever else is wrong.
    """
    found = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    sentences = [_sentence(one["type"], one["loc"], one["msg"], one, origins, model) for one in found]
    first, hint = sentences[0]
    others = [
        text for one, (text, _) in zip(found[1:], sentences[1:], strict=True) if one["type"] != "too_short"
    ]
    if others:
        more = "also: " + "; ".join(others)
        hint = f"{hint}\n{more}" if hint else more
    return ConfigError(first, hint=hint)


def all_keys(model: type[BaseModel] = DistillConfig, prefix: str = "") -> Iterator[str]:
    """Dotted keys of every field, with ``*`` for the number of a list's entry."""
    for name, field in model.model_fields.items():
        yield prefix + name
        listed = "tuple" in str(field.annotation)
        for inner in _models(field.annotation):
            yield from all_keys(inner, f"{prefix}{name}.{'*.' if listed else ''}")


def _sentence(
    kind: str,
    loc: tuple[int | str, ...],
    message: str,
    found: Mapping[str, Any],
    origins: Mapping[str, str],
    root: type[BaseModel],
) -> tuple[str, str | None]:
    value, context = found.get("input"), found.get("ctx", {})
    keys, model = _walk(loc[:-1] if kind in ("extra_forbidden", "missing") else loc, root)
    if kind == "extra_forbidden":
        key = ".".join([*keys, str(loc[-1])])
        inside = ".".join(keys)
        text = f"{_where(key, origins)}unknown key '{_short(str(loc[-1]))}'" + (
            f" in '{inside}'" if inside else ""
        )
        return text, _suggest(str(loc[-1]), inside, model, root)
    if kind == "missing":
        key = ".".join([*keys, str(loc[-1])])
        inside = ".".join(keys)
        return f"{_where(inside, origins)}{key} is not given", _HINTS.get(key)
    key = ".".join(keys)
    message = message.removeprefix("Value error, ")
    if kind == "value_error":
        return f"{_where(key, origins)}{key + ': ' if key else ''}{message}", None
    if kind == "union_tag_invalid":  # the value is the whole entry; what is wrong is its kind
        key, value = f"{key}.kind", value.get("kind") if isinstance(value, Mapping) else value
    message = _PLAIN.get(kind) or _plain_choice(kind, context) or message[:1].lower() + message[1:]
    choices = re.findall("'([^']*)'", message) if kind in ("literal_error", "union_tag_invalid") else []
    near = did_you_mean(value, choices) if isinstance(value, str) else None
    hint = f"did you mean {near}?" if near else None
    if kind == "model_type" and key == "data":
        hint = _SOURCES
    return (
        f"{_where(key, origins)}{key}: {message}, not {'null' if value is None else _short(repr(value))}",
        hint,
    )


def _plain_choice(kind: str, context: Mapping[str, Any]) -> str | None:
    return f"input should be {context['expected_tags']}" if kind == "union_tag_invalid" else None


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _walk(loc: tuple[int | str, ...], root: type[BaseModel]) -> tuple[list[str], type[BaseModel] | None]:
    """The keys of a location, without pydantic's names of alternatives, and the model found there."""
    keys: list[str] = []
    models: list[type[BaseModel]] = [root]
    for part in loc:
        tagged = [model for model in models if "kind" in model.model_fields]
        tagged = [model for model in tagged if model.model_fields["kind"].default == part]
        if tagged and len(models) > 1:
            models = tagged
            continue
        keys.append(str(part))
        if isinstance(part, str):
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            models = [inner for field in fields for inner in _models(field.annotation)]
    return keys, models[0] if models else None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _suggest(word: str, inside: str, model: type[BaseModel] | None, root: type[BaseModel]) -> str | None:
    siblings = list(model.model_fields) if model else []
    if near := did_you_mean(word, siblings):
        return f"did you mean {near}?"
    elsewhere = [
        key for key in dict.fromkeys(all_keys(root)) if key.rsplit(".", 1)[-1] == word and "*" not in key
    ]
    within = [key for key in elsewhere if key.startswith(f"{inside}.")] if inside else elsewhere
    if within or elsewhere:
        return f"did you mean {(within or elsewhere)[0]}?"
    return f"keys there: {', '.join(siblings)}" if siblings else None


def _where(key: str, origins: Mapping[str, str]) -> str:
    """Who said it: the origin of the key, of something in it, or of what it is in; the strongest of them."""
    found = [
        origin
        for known, origin in origins.items()
        if key and (f"{known}.".startswith(f"{key}.") or key.startswith(f"{known}."))
    ]
    found.sort(key=lambda origin: not origin.startswith(("--", "overrides")))
    return f"{found[0]}: " if found else ""
