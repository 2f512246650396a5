"""What an evaluation is: models, benchmarks, how answers are generated, who judges. The only home of its defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt

from vlsi_cli.config.base import Config
from vlsi_cli.config.repos import at_home
from vlsi_cli.config.run import Precision

OUTPUT = Path("runs/eval")
Folder = Annotated[Path, AfterValidator(lambda path: Path(at_home(str(path))))]


class JudgeConfig(Config):
    """A language model that reads answers, behind an OpenAI-compatible address; its key is in the environment."""

    model: str
    """Name by which the server knows the model."""
    url: str = "https://api.openai.com/v1"
    """Base address, or the whole address of `chat/completions`."""
    timeout: float = Field(60.0, gt=0)
    """Seconds to wait for one verdict."""
    attempts: PositiveInt = 3
    """How often a question is put to a server that is busy or does not answer, before the run ends."""


class EvaluationConfig(Config):
    """One `vlsi eval`."""

    models: tuple[str, ...] = Field(("demo/large", "demo/small"), min_length=1)
    """Hub ids or folders."""
    paper: tuple[str | None, ...] = ()
    """The paper's row to hold each model against, in the same order; None where it has none."""
    benchmarks: tuple[str, ...] = Field(("patterns",), min_length=1)
    """Names, in any spelling that `vlsi eval --list` shows."""
    tasks_dir: Folder | None = None
    """A folder with task files of one's own."""
    limit: PositiveInt | None = None
    """Questions of each task, from the first; None for all."""
    batch_size: PositiveInt | Literal["auto"] = "auto"
    """Questions answered together; auto begins with 16 and halves when memory runs out."""
    max_new_tokens: PositiveInt | None = None
    """Longest answer in tokens; None for what each task says, and 1024 where it says nothing."""
    device: str = "auto"
    precision: Precision = "auto"
    min_pixels: PositiveInt | None = None
    max_pixels: PositiveInt | None = None
    output: Folder = OUTPUT
    judge: JudgeConfig | None = None
    skip_unjudged: bool = False
    """Leave out benchmarks that need a judge when none is configured."""
    require: tuple[str, ...] = ()
    """What is asked of the scores, each as `BENCH>=N`, `BENCH<=N` or one of these behind `MODEL:`."""
    html: bool = False
    """Write a page with the questions, pictures and answers."""
