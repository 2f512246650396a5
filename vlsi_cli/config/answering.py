"""How a model answers records: the only home of the defaults of `vlsi data answer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from vlsi_cli.config import loading
from vlsi_cli.config.base import Config
from vlsi_cli.config.data import LlavaSource, MessagesSource, PatternsSource
from vlsi_cli.config.run import DistillConfig, ModelConfig
from vlsi_cli.errors import ConfigError


class AnsweringConfig(Config):
    """One `vlsi data answer`; the model and the data are those of a :class:`DistillConfig`."""

    output: Path
    """The file of answered records."""
    max_new_tokens: PositiveInt = 1024
    """Longest answer; one that does not end within it is left out."""
    batch_size: PositiveInt | Literal["auto"] = "auto"
    """Questions answered together; auto begins with 16 and halves when memory runs out."""
    limit: PositiveInt | None = None
    """Records of each source, from the first; None for all."""
    temperature: float = Field(0.0, ge=0, le=100)
    """0: the most probable token each time; else answers are drawn at this temperature, by the run's seed."""
    replace: bool = False
    """Answer every turn anew, and not only last ones that are open."""
    think: bool = False
    """Have a model that can think do so, and keep its thoughts."""
    overwrite: bool = False
    """Replace a file that was made otherwise."""


def resolve(
    recipe: str | None, sets: Sequence[str], *, model: str | None, flags: Mapping[str, Any]
) -> DistillConfig:
    """The configuration whose ``teacher`` answers its ``data``; nothing else of it is used.

    Args:
        model: takes the place of the recipe's teacher.
        flags: as :func:`.loading.resolve` takes them.

    Raises:
        ConfigError: as that; or no model.
    """
    if recipe is None and model is None and not any(each.strip().startswith("teacher") for each in sets):
        raise _nobody()
    named: dict[str, Any] = {"teacher.id": model}
    if recipe is None:
        named["student.id"] = model or _ANYBODY
    resolved = loading.resolve(recipe, sets, {**flags, **named})
    teacher = resolved.config.teacher
    if model is None or teacher is None or resolved.origins["teacher.revision"] == "--set":
        return resolved.config
    # the recipe's revision is one of another model
    return resolved.config.model_copy(update={"teacher": teacher.model_copy(update={"revision": None})})


#: A configuration has a student, and answering needs none.
_ANYBODY = "demo/small"


def who(config: DistillConfig) -> ModelConfig:
    """The model that answers.

    Raises:
        ConfigError: there is none.
    """
    if config.teacher is None:
        raise _nobody()
    # each picture is seen once: nothing to remember
    return config.teacher.model_copy(update={"vision_memory": 0.0})


def _nobody() -> ConfigError:
    return ConfigError(
        "no model is named that answers",
        hint="give --model, or a --recipe with a teacher, which then answers",
    )


def check(asked: AnsweringConfig, config: DistillConfig) -> None:
    """Refuse what cannot be meant, before anything heavy is imported.

    Raises:
        ConfigError: no model; a file that no reader would know, or that is one of the data; or data without an end.
    """
    who(config)
    output = asked.output
    if output.suffix != ".jsonl":
        named = output.with_suffix(".jsonl") if output.name.strip(".") else output / "answers.jsonl"
        raise ConfigError(
            f"--output is {output}, and records are written as JSON Lines",
            hint=f"name a file that ends in .jsonl, such as {named}",
        )
    for number, source in enumerate(config.data.located_sources()):
        if isinstance(source, LlavaSource | MessagesSource) and source.path.resolve() == output.resolve():
            raise ConfigError(f"--output {output} is one of the data", hint="give another --output")
        if isinstance(source, PatternsSource) and source.size is None and asked.limit is None:
            raise ConfigError(
                f"data.sources.{number} (patterns) draws puzzles without end",
                hint=f"say how many: --limit 100, or --set data.sources.{number}.size=100",
            )
