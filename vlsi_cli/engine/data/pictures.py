"""Pictures as a user names them: files, folders of them, standard input, or one of the built-in puzzles.

:class:`PicturesSource` makes records of a folder of them, with one question about each.
"""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from vlsi_cli.engine.data.images import FORMATS, load_image
from vlsi_cli.engine.data.patterns import pattern_record
from vlsi_cli.engine.data.records import (
    PLACEHOLDER,
    REASONS,
    BadRecord,
    ImageRef,
    Message,
    Numbering,
    Record,
    make_record,
    mentions_image,
)
from vlsi_cli.errors import ConfigError, DataError

STANDARD_INPUT = "-"
_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_HINTS = {
    "image-animated": "save the frame that is meant as a picture of its own",
    "image-mode": "scale its values to 8 or 16 bits first",
    "image-too-large": "scale it down first",
    "image-aspect-ratio": "cut it into pieces first",
    "image-unreadable": f"readable are {', '.join(FORMATS)}",
}


@dataclass(frozen=True)
class Picture:
    """A picture and what it is called.

    Attributes:
        name: what the user typed, or the file in a folder; of a puzzle, its id.
        ref: where its pixels are.
        question: what a puzzle asks; None for any other picture.
        reference: the right answer of a puzzle; None where nobody knows it.
        deep: whether it has 16 bits a channel, which are read as 8.
    """

    name: str
    ref: ImageRef
    question: str | None = None
    reference: str | None = None
    deep: bool = False

    def load(self) -> Image.Image:
        """Its pixels, 8-bit RGB and upright.

        Raises:
            DataError: it cannot be used; the sentence says why.
        """
        try:
            return load_image(self.ref)
        except BadRecord as bad:
            detail = bad.detail.removeprefix(self.ref.path or "").lstrip(": ")
            tail = f" ({detail})" if detail else ""
            raise DataError(
                f"{self.name} cannot be used: {REASONS[bad.reason]}{tail}", hint=_HINTS.get(bad.reason)
            ) from bad


def open_pictures(words: Sequence[str], stdin: BinaryIO) -> list[Picture]:
    """The pictures that the words name, in their order, all of them decoded once so that a bad one is told at once.

    Args:
        words: files; folders, whose pictures are taken by name and not from folders inside; ``-`` once.
        stdin: what ``-`` means.

    Raises:
        DataError: no such file, a folder without pictures, or a picture that cannot be used.
        ConfigError: ``-`` twice, or from a terminal.
    """
    found: list[Picture] = []
    if list(words).count(STANDARD_INPUT) > 1:
        raise ConfigError("standard input ('-') was named twice, but it can be read only once")
    for word in words:
        path = Path(word).expanduser()
        if word == STANDARD_INPUT:
            found.append(_from_stream(stdin))
        elif path.is_dir():
            inside = sorted(
                p for p in path.iterdir() if p.suffix.lower() in _ENDINGS and not p.name.startswith(".")
            )
            if not inside:
                raise DataError(
                    f"the folder {word} holds no pictures", hint="folders inside it are not searched"
                )
            found += [_from_file(p) for p in inside]
        elif not path.exists():
            raise DataError(
                f"there is no picture {word}", hint="give a file, a folder, or - for standard input"
            )
        else:
            found.append(_from_file(path))
    for picture in found:
        picture.load()
    return found


def given_picture(given: str | Path | Image.Image | Picture) -> Picture:
    """A file, or a PIL picture, decoded once so that a bad one is told at once; one that was opened as it is.

    Raises:
        DataError: no such file, or a picture that cannot be used.
    """
    if isinstance(given, Picture):
        return given
    if isinstance(given, Image.Image):
        found = Picture("the picture", ImageRef(picture=given), deep=given.mode.startswith("I;16"))
    elif not Path(given).expanduser().is_file():
        raise DataError(f"there is no picture {given}", hint="give a file, or a PIL picture")
    else:
        found = _from_file(Path(given).expanduser())
    found.load()
    return found


def puzzle(index: int) -> Picture:
    """The built-in puzzle number ``index`` of the test split, with its question and its answer."""
    record = pattern_record("test", index)
    (turn,) = record.turns
    return Picture(record.id, ImageRef(picture=record.image), turn.text, turn.answer)


def _from_file(path: Path) -> Picture:
    # The file itself was named, so a link may lead anywhere.
    ref = ImageRef(path=path.resolve().name, root=path.resolve().parent)
    return Picture(str(path), ref, deep=_is_deep(path))


def _from_stream(stream: BinaryIO) -> Picture:
    if stream.isatty():
        raise ConfigError(
            "standard input is a terminal, not a picture", hint="send one: vlsi verbalize - < picture.png"
        )
    data = stream.read()
    return Picture("standard input", ImageRef(data=data), deep=_is_deep(io.BytesIO(data)))


def _is_deep(file: Path | BinaryIO) -> bool:
    try:
        with Image.open(file, formats=FORMATS) as picture:
            return picture.mode.startswith("I;16")
    except Exception:  # noqa: BLE001 - what is wrong with it is told when it is loaded
        return False


class PicturesSource:
    """The pictures of a folder and of those below it, in the order of their paths, with one question about each.

    Pictures are told by their endings. Names that begin with a dot and links to folders are passed over.

    Args:
        folder: where they are; no picture may lie elsewhere, not by a link either.
        prompt: the question; it stands behind the picture, or the picture where it says ``<image>``.
        without: files and folders that do not belong to it.

    Attributes:
        others: what was passed over, by its ending, or in words: how many.

    Raises:
        DataError: no such folder, one that cannot be read, or one without pictures.
    """

    shuffles_itself = streamed = False

    def __init__(self, folder: Path, prompt: str, without: Collection[Path] = ()) -> None:
        self.name, self._folder = str(folder), folder
        text = prompt if mentions_image(prompt) else f"{PLACEHOLDER}\n{prompt}"
        self._parts = Numbering().split(text)
        self.others: dict[str, int] = {}
        self.paths = self._found({path.absolute() for path in without})
        self.size = len(self.paths)
        if not self.paths:
            there = ", ".join(f"{kind} {count:,}" for kind, count in self.others.items())
            raise DataError(
                f"the folder {folder} holds no pictures" + (f", but {there}" if there else ""),
                hint=f"pictures end in {', '.join(sorted(_ENDINGS))}",
            )

    def read(self, index: int, epoch: int = 0) -> Record:
        """The question about a picture. It is called by its path, from the folder's name on."""
        path = self.paths[index]
        shown = path.encode(errors="backslashreplace").decode()
        id, where = f"{self._folder.resolve().name}/{shown}", str(self._folder / shown)
        if shown != path:
            raise BadRecord("bad-format", "a file name that is no text", record=id, where=where)
        images = [ImageRef(path=path, root=self._folder)]
        return make_record(id, [Message("user", self._parts)], images, where=where, unanswered=True)

    def _found(self, without: set[Path]) -> list[str]:
        found: list[tuple[str, ...]] = []
        top = self._folder.absolute()
        for place, folders, files in os.walk(top, onerror=self._refuse):
            here = Path(place)
            for name in folders:
                if (here / name).is_symlink() and not name.startswith("."):
                    self._pass_over("links to folders")
            folders[:] = [name for name in folders if self._belongs(here / name, without)]
            for name in files:
                if not self._belongs(here / name, without):
                    continue
                ending = Path(name).suffix.lower()
                if ending in _ENDINGS:
                    found.append((*here.relative_to(top).parts, name))
                else:
                    self._pass_over(ending or "without an ending")
        self.others = dict(sorted(self.others.items(), key=lambda item: (-item[1], item[0])))
        return ["/".join(parts) for parts in sorted(found)]

    def _belongs(self, path: Path, without: set[Path]) -> bool:
        if path in without:
            return False
        if path.name.startswith("."):
            self._pass_over("hidden")
            return False
        return True

    def _pass_over(self, kind: str) -> None:
        self.others[kind] = self.others.get(kind, 0) + 1

    def _refuse(self, error: OSError) -> None:
        raise DataError(f"the folder {error.filename} cannot be read: {error.strerror or error}") from error
