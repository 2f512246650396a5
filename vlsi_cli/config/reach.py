"""Whether what a run needs is here or can be fetched: asked before anything heavy is imported."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from vlsi_cli.config.missing import alike, hint_for
from vlsi_cli.config.presence import Need
from vlsi_cli.errors import DataError, ModelError, did_you_mean

_TRUE = {"1", "true", "yes", "on"}
_PATIENCE = 15.0  # seconds for the hub to say anything at all


def require(
    needs: Sequence[Need], *, dry_run: bool = True, of_run: bool = False, ask_hub: bool = True
) -> None:
    """End the run at once when something it needs is neither here nor within reach, naming all of it.

    Args:
        needs: what it reads.
        dry_run: whether the command has a ``--dry-run`` to point to.
        of_run: whether a run folder names them, whose relative paths do not start from itself.
        ask_hub: whether the hub is asked if it answers; otherwise what can be fetched counts as within reach, unless
            the environment forbids it.

    Raises:
        ModelError: a model (or its verbalizers) is missing, whatever else is.
        DataError: only data are missing.
    """
    absent = [need for need in needs if not need.present]
    missing = [need for need in absent if need.fetch is None]
    offline = ""
    remote = [need for need in absent if need.fetch is not None]
    if remote and (not hub_is_reachable() if ask_hub else offline_variable()):
        missing = absent
        variable = offline_variable()
        cause = f"{variable} forbids fetching" if variable else f"the hub ({endpoint()}) cannot be reached"
        offline = f", and {cause}"
    if not missing:
        return
    # One line a thing: with the paper's data list the message is long, and is read as a list.
    listed = "\n".join(f"  {need.what}: {need.where}{_no_folder(need)}" for need in missing)
    message = f"this run needs {_count(len(missing))} not on this machine{offline}:\n{listed}"
    steps = [f"fetch where there is a network: {need.fetch}" for need in missing if need.fetch]
    if any(need.kind == "data" and need.fetch is None for need in missing):
        steps.append("put the data there, or point elsewhere with --data PATH or --set data.root=FOLDER")
    if any(need.kind == "cache" for need in missing):
        steps.append("give the folder that `vlsi cache build` wrote")
    for need in missing:
        if need.kind == "data" and need.fetch is None and (near := _near_file(Path(need.where))):
            steps.insert(0, f"did you mean {near}?")
        if need.kind in ("model", "verbalizers"):
            steps += hint_for(need.where).splitlines() if need.fetch is None else alike(need.where)
    if of_run and any(need.fetch is None and not Path(need.where).is_absolute() for need in missing):
        steps.insert(
            0, "relative paths start from the folder a command is given in: give it where the run was begun"
        )
    if dry_run:
        steps.append("--dry-run shows the whole plan without any of it")
    only_data = all(need.kind == "data" for need in missing)
    raise (DataError if only_data else ModelError)(message, hint="\n".join(dict.fromkeys(steps)))


def _no_folder(need: Need) -> str:
    if need.kind == "data" and need.fetch is None and Path(need.where).exists():
        return " (which is not a file)" if Path(need.where).is_dir() else " (which is not a folder)"
    local = need.kind in ("model", "verbalizers") and need.fetch is None
    return " (there is no such folder)" if local and not Path(need.where).exists() else ""


def _near_file(path: Path) -> Path | None:
    """The file or folder beside a missing one whose name is nearest to it."""
    try:
        names = [other.name for other in path.parent.iterdir() if other.name != path.name]
    except OSError:
        return None
    near = did_you_mean(path.name, names)
    return path.parent / near if near else None


def endpoint() -> str:
    """The hub's address, which ``HF_ENDPOINT`` may change."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def offline_variable() -> str | None:
    """The variable of the environment that forbids asking the hub, ``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE``; or
    None."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((name for name in names if os.environ.get(name, "").lower() in _TRUE), None)


def hub_is_reachable() -> bool:
    """Whether the hub answers at all; False at once when ``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE`` is
    set.

    Any HTTP status counts as an answer: what a repository allows to whom is for the download to find out.
    """
    if offline_variable() is not None:
        return False
    try:
        request = urllib.request.Request(endpoint(), method="HEAD")
        with urllib.request.urlopen(request, timeout=_PATIENCE):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def _count(number: int) -> str:
    return "one thing that is" if number == 1 else f"{number} things that are"
