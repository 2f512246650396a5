"""Under which licence a base model is, as its own card says it: from its folder, the cache, or the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

#: How long to wait for the hub's answer, in seconds. A card without a licence is better than no push.
_TIMEOUT = 30.0


@dataclass(frozen=True)
class Licence:
    """A licence as a card's metadata give it.

    Attributes:
        id: one of the hub's identifiers, e.g. ``apache-2.0``, or ``other``.
        name: what ``other`` is called.
        link: where its text is.
    """

    id: str
    name: str | None = None
    link: str | None = None

    def __str__(self) -> str:
        return self.name or self.id


def licence_of(model: str, folder: Path | None, revision: str | None, *, ask: bool) -> Licence | None:
    """The licence of a model, or None when nobody says.

    Args:
        model: ``demo/large``, ``demo/small``, a hub id or a folder.
        folder: where its files are on this machine, if they are.
        revision: of a hub model.
        ask: whether the hub may be asked.
    """
    if model in ("demo/large", "demo/small"):
        return Licence("apache-2.0")  # part of this package
    for data in _cards(model, folder, revision, ask):
        if (id := data.get("license")) is not None:
            id = id[0] if isinstance(id, list) and id else id
            return Licence(str(id), data.get("license_name"), data.get("license_link"))
    return None


def _cards(model: str, folder: Path | None, revision: str | None, ask: bool) -> Iterator[Any]:
    """Metadata of every card that can be had, the nearest first."""
    from huggingface_hub import HfApi, ModelCard

    card = folder / "README.md" if folder is not None else None
    if card is not None and card.is_file():
        with suppress(OSError, ValueError, yaml.YAMLError):  # a card that cannot be read says nothing
            yield ModelCard.load(card, ignore_metadata_errors=True).data
    if ask and not Path(model).is_dir():
        try:
            info = HfApi().model_info(model, revision=revision, timeout=_TIMEOUT)
        except Exception:  # noqa: BLE001 - the client raises many kinds; an unanswered question is an answer here
            return
        if info.card_data is not None:
            yield info.card_data
