"""A model's name that names nothing here: a mistyped folder, or a model of the hub that has to be fetched.

``runs/nope`` reads like a hub id (owner/name). It is taken for a folder where its first part is a folder of this
machine, unless the catalogue or the hub's cache knows a model of that name. The one place for that question, whichever
command asks it.
"""

from __future__ import annotations

import difflib
import shlex
from pathlib import Path

from vlsi_cli.config import catalog
from vlsi_cli.config.models import ModelConfig
from vlsi_cli.config.presence import Need, cached_snapshot, has_weights, model_is_present
from vlsi_cli.config.repos import download, looks_local
from vlsi_cli.errors import ModelError

_LISTED = 6
_DID_YOU_MEAN = "did you mean"
_RUN_CONFIG, _RUN_ORIGINS = (
    "config.yaml",
    "origins.json",
)  # as `loading` writes them, which imports this module


def means_folder(id: str) -> bool:
    """Whether a name means a folder of this machine, there or not, rather than a model of the hub."""
    if id in catalog.DEMO_IDS:
        return False
    if Path(id).expanduser().is_dir() or looks_local(id):
        return True
    if catalog.find(id) is not None or cached_snapshot(id) is not None:
        return False
    return Path(id.partition("/")[0]).is_dir()


def require_folder_or_hub(id: str) -> None:
    """Refuse a name that means a folder which is not there.

    Raises:
        ModelError: it does; the hint names folders near it.
    """
    if not Path(id).expanduser().exists() and means_folder(id):
        raise ModelError(f"there is no folder '{id}'", hint=hint_for(id))


def hint_for(id: str) -> str:
    """What to do about a folder that is not there: the nearest ones, and how to get a hub model of that name."""
    steps = [near(id) or "give the folder of a model, or a hub id (owner/name)"]
    if not looks_local(id) and not Path(id).expanduser().is_dir():
        steps.append(f"a model of the hub with that name has to be fetched first: {download(id)}")
    return "\n".join(steps)


def alike(id: str) -> list[str]:
    """The folder whose path is nearest to a name that reads like a hub id, as a question; empty without one."""
    found = near(id)
    return [found] if found.startswith(_DID_YOU_MEAN) else []


def near(id: str) -> str:
    """Folders that may have been meant, in a sentence; "" when nothing is near.

    The path is followed as far as it goes, a part that is not there by the nearest name beside it. Of a folder that is
    there it says what it is instead, since a model it is not.
    """
    asked = Path(id).expanduser()
    if asked.is_dir():
        return no_model(asked)
    place = Path(asked.anchor)
    for number, part in enumerate(parts := asked.relative_to(asked.anchor).parts):
        if (place / part).is_dir():
            place /= part
            continue
        names = _folders(place)
        plain = {name.casefold(): name for name in reversed(names)}
        close = difflib.get_close_matches(part.casefold(), list(plain), n=1, cutoff=0.6)
        if close:
            place /= plain[close[0]]
            continue
        if number == 0 or not names:
            return ""
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        return f"{place} holds {', '.join(names[:_LISTED])}{more}"
    return f"{_DID_YOU_MEAN} {place}?" if parts else ""


def is_run(folder: Path) -> bool:
    """Whether a folder is one that `vlsi distill` wrote."""
    return (folder / _RUN_CONFIG).is_file() and (folder / _RUN_ORIGINS).is_file()


def no_model(folder: Path) -> str:
    """What a folder is that was given for a model's: a run, one without weights, or something else."""
    if is_run(folder):
        student = folder / "student"
        if (student / "config.json").is_file():
            return f"{folder} is the folder of a run, and its model is {student}"
        again = f"vlsi distill --resume {shlex.quote(str(folder))}"
        return f"{folder} is the folder of a run without a student yet; finish it: {again}"
    if (folder / "config.json").is_file():
        return f"{folder} holds no weights, or not all that its index names"
    return f"{folder} is there, but it has no config.json, so it is not a model folder"


def _folders(place: Path) -> list[str]:
    try:
        return sorted(
            path.name for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    except OSError:
        return []


def model_need(what: str, model: ModelConfig) -> Need:
    """The need for one model."""
    local = means_folder(model.id) or model.id.startswith("demo/")
    fetch = None if local else download(model.id, model.revision)
    return Need(what, "model", model.id, model_is_present(model), fetch)


def verbalizers_need(what: str, place: Path) -> Need:
    """The need for a trained set of a large model: a folder of it, or a hub id."""
    name, inside = str(place), "verbalizers/large"
    if means_folder(name):
        return Need(what, "verbalizers", name, place.is_dir(), None)
    cached = cached_snapshot(name)
    present = cached is not None and has_weights(cached / inside)
    return Need(what, "verbalizers", name, present, f"hf download {name} --include '{inside}/*'")
