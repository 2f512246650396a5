"""Where records come from: alternatives are told apart by `kind`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from vlsi_cli.config.base import Config
from vlsi_cli.config.repos import at_home, looks_local
from vlsi_cli.errors import DataError


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
    image_root: Path | None = None
    """Folder that paths of images start from and must not leave; null: a local dataset's own folder, and none for a
    dataset of the hub, whose rows then have to hold the images themselves."""


class ImagesSource(_SourceConfig):
    """A folder of pictures and one question about each, for `vlsi data answer`: there is no answer to train on."""

    kind: Literal["images"] = "images"
    path: Path
    """The folder; those below it are read too. Pictures are told by the endings of their names."""
    prompt: str = Field(min_length=1, pattern=r"\S")
    """What is asked of each, behind the picture or with `<image>` where it is to stand."""


Source = Annotated[
    PatternsSource | LlavaSource | MessagesSource | HubSource | ImagesSource, Field(discriminator="kind")
]


def unanswered(source: ImagesSource) -> DataError:
    """What to say where it is to be trained on."""
    return DataError(
        f"the pictures in {source.path} have no answers to train on",
        hint="have a model answer them first, and train on the file that `vlsi data answer` writes",
    )


class ImageUrlsConfig(Config):
    """Images that records name by an http or https address. Off by default; see the page on data."""

    fetch: bool = False
    """Fetch them. Otherwise a record that names one cannot be used."""
    folder: Path | None = None
    """Where fetched images are kept, by address, for every later epoch, run and process; null: `vlsi/images` in the
    user's cache folder (`XDG_CACHE_HOME`, or `~/.cache`)."""
    hosts: tuple[str, ...] | None = None
    """The only hosts that may be asked, as `images.example.org`, `*.example.org` for all below it, or with a port
    (`example.org:8443`); null: any public one, at ports 80 and 443."""
    private_hosts: tuple[str, ...] = ()
    """Hosts, by their whole name and with their port if it is not 80 or 443, that may lie in a private network.
    Addresses of this machine and of its network link are never asked, whatever stands here."""
    timeout: float = Field(default=20.0, gt=0, le=600)
    """Seconds that one try may take, redirects and all bytes included; a quarter of them for a connection."""
    tries: int = Field(default=3, ge=1, le=10)
    """How often a fetch is tried that fails for a moment: no connection, too slow, answers 408, 425, 429 and 5xx."""
    max_bytes: int = Field(default=32 * 2**20, ge=1)
    """Longest file."""
    give_up_after: int = Field(default=20, ge=1)
    """Fetches in a row, by one process, that may fail for a moment, after all tries, before the run ends (and can be
    resumed): then it is the network that is missing, not the images."""

    @field_validator("hosts", "private_hosts")
    @classmethod
    def _readable(cls, value: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        form = _HOST if info.field_name == "private_hosts" else _HOSTS
        for entry in value or ():
            if not form.fullmatch(entry):
                raise ValueError(f"'{entry}' is not a host: write example.org, or example.org:8443")
        return value

    @property
    def place(self) -> Path:
        """The folder in which images are kept."""
        if self.folder is not None:
            return self.folder.expanduser()
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(cache).expanduser() / "vlsi" / "images"


_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?(?::[0-9]{1,5})?"
_HOST, _HOSTS = re.compile(_NAME), re.compile(rf"(?:\*\.)?{_NAME}")


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
    image_urls: ImageUrlsConfig = ImageUrlsConfig()
    """What is done with images that are named by an address."""
    on_bad_record: Literal["skip", "refuse"] = "skip"
    """What to do with an unreadable or over-long record: count and skip it, or end the run naming it."""
    shuffle: bool = True
    """Draw records in an order made from the run's seed."""
    group_by_length: int = Field(default=0, ge=0)
    """Optimizer steps whose records are cut into micro-batches by length, so that less of a batch is padding; 0: none.
    With 1 every step keeps its records; more leave less padding."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that read, decode and encode records ahead of the step, for each process that trains; 0: records are
    read between steps; null: 4 beside a GPU or as many as there are cores for, 0 on a CPU. They change no result."""
    prefetch: int | None = Field(default=None, ge=1)
    """Records that the workers are ahead, at most one step's; null: a whole step's. Fewer need less memory."""

    def located_sources(self) -> tuple[Source, ...]:
        """The sources with `root` put before every relative path (hub ids that name no local path stay)."""
        return tuple(_located(source, self.root) for source in self.sources)


def _located(source: Source, root: Path | None) -> Source:
    above = Path(at_home(str(root or ".")))
    change: dict[str, object] = {}
    if isinstance(source, LlavaSource | MessagesSource | ImagesSource):
        change["path"] = above / at_home(str(source.path))
    if isinstance(source, LlavaSource | MessagesSource | HubSource) and source.image_root is not None:
        change["image_root"] = above / at_home(str(source.image_root))
    if isinstance(source, HubSource):
        id = at_home(source.id)
        missing = looks_local(id) and not Path(id).exists()
        change["id"] = str(above / id) if root is not None and (missing or (above / id).exists()) else id
    return source.model_copy(update=change)
