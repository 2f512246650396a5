"""Where records come from: alternatives are told apart by `kind`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from vlsi_cli.config.base import Config


class _SourceConfig(Config):
    weight: float = Field(default=1.0, gt=0)
    """How often this source is drawn, relative to its size and to the other sources."""
    records: int | None = Field(default=None, ge=1)
    """How many records the source is said to hold. Only the plan uses it, to turn epochs into steps when the
    data are not on this machine; a run counts the real ones."""


class PatternsSource(_SourceConfig):
    """Puzzles drawn on the fly from a seed; they need no network and no disk."""

    kind: Literal["patterns"] = "patterns"
    split: Literal["train", "validation", "test"] = "train"
    """The three never share a puzzle, whatever the seed."""
    size: int | None = Field(default=None, ge=1)
    """Number of records; null: endless, always fresh."""
    questions: tuple[str, ...] | None = None
    """Kinds of question to ask; null: all."""
    turns: int = Field(default=1, ge=1)
    """Questions about the same picture in one conversation."""
    seed: int = 0
    """Draws other puzzles of the same split."""


class LlavaSource(_SourceConfig):
    """LLaVA-style JSON or JSONL: `conversations` of `human` and `gpt`, `image` a path, `<image>` in the
    text."""

    kind: Literal["llava"] = "llava"
    path: Path
    """The `.json` or `.jsonl` file."""
    image_root: Path | None = None
    """Folder that image paths start from, and must not leave; null: the folder of the file."""


class MessagesSource(_SourceConfig):
    """JSONL of chat `messages` with `role` and `content`, and image paths."""

    kind: Literal["messages"] = "messages"
    path: Path
    """The `.json` or `.jsonl` file."""
    image_root: Path | None = None
    """Folder that image paths start from, and must not leave; null: the folder of the file."""


class HubSource(_SourceConfig):
    """A Hugging Face dataset: hub id, local folder or parquet file, with `messages` or `conversations`
    columns."""

    kind: Literal["huggingface"] = "huggingface"
    id: str = Field(min_length=1)
    """Hub id, folder or parquet file."""
    name: str | None = None
    """Configuration of the dataset, where it has several."""
    split: str = "train"
    """Split of the dataset."""
    streaming: bool = False
    """Read while downloading, without a local copy; then the length is unknown and `steps` must be given."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    columns: dict[Literal["question", "answer", "image"], str] | None = None
    """Names of a question, an answer and (where there are pictures) an image column, for data sets without
    conversations; null: `messages` or `conversations` is looked for."""


Source = Annotated[PatternsSource | LlavaSource | MessagesSource | HubSource, Field(discriminator="kind")]


class DataConfig(Config):
    """A weighted mix of sources and how their records become model inputs."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """Where records come from."""
    root: Path | None = None
    """Folder that relative paths of the sources start from; null: the folder in which `vlsi` is started."""
    max_length: int = Field(default=2048, ge=8)
    """Tokens of a record, image tokens included; a longer record is counted and skipped (or refused), never
    cut."""
    min_pixels: int | None = Field(default=None, ge=1)
    """Lower bound of the image processor's budget; null: the processor's own."""
    max_pixels: int | None = Field(default=None, ge=1)
    """Upper bound of the image processor's budget; null: the processor's own."""
    on_bad_record: Literal["skip", "refuse"] = "skip"
    """What to do with an unreadable or over-long record: count and skip it, or end the run naming it."""
    shuffle: bool = True
    """Draw records in an order made from the run's seed."""
    group_by_length: int = Field(default=0, ge=0)
    """Optimizer steps whose records are cut into micro-batches by length, so that less of a batch is padding; 0: none.
    With 1 every step keeps its records; more leave less padding."""
    workers: int = Field(default=0, ge=0)
    """Processes that read, decode and encode records ahead of the step, for each process that trains; 0: records are
    read between steps. They change no result."""
    prefetch: int | None = Field(default=None, ge=1)
    """Records that the workers are ahead, at most one step's; null: a whole step's. Fewer need less memory."""

    def located_sources(self) -> tuple[Source, ...]:
        """The sources with `root` put before every relative path (hub ids that name no local path stay)."""
        return tuple(_located(source, self.root) for source in self.sources)


def _located(source: Source, root: Path | None) -> Source:
    if root is None:
        return source
    change: dict[str, object] = {}
    if isinstance(source, LlavaSource | MessagesSource):
        change["path"] = root / source.path
        if source.image_root is not None:
            change["image_root"] = root / source.image_root
    elif isinstance(source, HubSource) and (root / source.id).exists():
        change["id"] = str(root / source.id)
    return source.model_copy(update=change)
