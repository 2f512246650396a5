"""From a model's name to its folder: the demo pair, local folders, the hub's cache, and the hub itself."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import vlsi_cli
from vlsi_cli.config import missing
from vlsi_cli.config.presence import weight_files
from vlsi_cli.config.repos import TWICE, download
from vlsi_cli.errors import ModelError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL_FILES = ("*.json", "*.txt", "*.jinja", "*.model")
#: What a push, or its maker, puts beside a model, and loading the model does not need.
_BESIDE = ["verbalizers/*", "training/*", "onnx/*", TWICE]
#: How long to wait for the hub's first answer, in seconds, before calling the machine offline.
_HUB_TIMEOUT = 20.0


def resolve_folder(id: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The local folder of a model, fetched from the hub when it is not there yet.

    Args:
        id: "demo/large" or "demo/small" (shipped with this package), a local folder, or a hub id.
        revision: branch, tag or commit of a hub model.
        weights: whether the weights are needed; without them only the small files are fetched.

    Raises:
        ModelError: no such folder or hub model, no access to it, or not cached and no network; the message names
            the model and the hint the command that fetches it.
    """
    if id.startswith("demo/"):
        folder = Path(vlsi_cli.__file__).parent / "demo" / id.removeprefix("demo/")
        if not folder.is_dir():
            raise ModelError(f"'{id}' is not a model of the demo pair", hint="use demo/large or demo/small")
        return folder
    path = Path(id).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError(f"'{id}' is a file, not the folder of a model", hint="give the folder that holds it")
    missing.require_folder_or_hub(id)
    if not _HUB_ID.fullmatch(id):
        raise ModelError(
            f"'{id}' is neither a folder nor a hub id",
            hint="give a local folder or a hub id such as Qwen/Qwen2-VL-2B-Instruct",
        )
    patterns = [*_SMALL_FILES, *(("*.safetensors",) if weights else ())]
    cached = _cached(id, revision, patterns, _BESIDE)
    if cached is not None and _complete(cached, weights):
        return cached
    return _fetch(id, revision, patterns, _BESIDE, download(id, revision))


def resolve_verbalizers(place: str | Path, name: str = "large") -> Path:
    """The folder of a trained set of verbalizers, fetched from the hub when it is not there yet.

    Args:
        place: the set's own folder, a run or another folder with ``verbalizers/NAME`` in it, or the hub id of a
            model that was pushed together with its verbalizers.
        name: which set: ``large`` (of the large model), ``small`` or ``small-after``.

    Raises:
        ModelError: no such folder or hub model, or one without verbalizers; or not cached and no network.
    """
    inside = Path("verbalizers") / name
    path = Path(place).expanduser()
    if path.is_dir():
        return path / inside if (path / inside).is_dir() else path
    id = str(place)
    missing.require_folder_or_hub(id)
    if not _HUB_ID.fullmatch(id):
        raise ModelError(
            f"no verbalizers folder '{id}'", hint="give a set's folder, a run, or a hub id (owner/name)"
        )
    patterns = [f"{inside.as_posix()}/*"]
    cached = _cached(id, None, patterns, [])
    if cached is None or not _complete(cached / inside, True, config="manifest.json"):
        cached = _fetch(id, None, patterns, [], f"hf download {id} --include '{patterns[0]}'")
    if not (cached / inside).is_dir():
        raise ModelError(f"'{id}' was pushed without verbalizers: it has no {inside.as_posix()}")
    return cached / inside


def resolve_verbalizer_sets(id: str, names: Sequence[str]) -> Path:
    """The folder of a model on the hub in which ``verbalizers/NAME`` lie, as many of the names as it has.

    Args:
        id: hub id of a model that was pushed together with its verbalizers.
        names: the sets that are wanted; those that are not in the cache are fetched.

    Raises:
        ModelError: no such folder or hub model, or one without verbalizers; or none cached and no network.
    """
    missing.require_folder_or_hub(id)
    if not _HUB_ID.fullmatch(id):
        raise ModelError(
            f"no verbalizers folder '{id}'", hint="give a set's folder, a run, or a hub id (owner/name)"
        )
    cached = _cached(id, None, ["verbalizers/*"], [])
    there = [
        name
        for name in names
        if cached is not None and _complete(cached / "verbalizers" / name, True, config="manifest.json")
    ]
    if cached is None or len(there) < len(names):
        patterns = [f"verbalizers/{name}/*" for name in names]
        try:
            cached = _fetch(id, None, patterns, [], f"hf download {id} --include 'verbalizers/*'")
        except ModelError:
            if cached is None or not there:
                raise  # with some of them the rest may not be needed, and the repository may have no more
    if not any((cached / "verbalizers" / name).is_dir() for name in names):
        raise ModelError(f"'{id}' was pushed without verbalizers: it has no verbalizers/{' or '.join(names)}")
    return cached


def is_hub_id(place: str | Path) -> bool:
    """Whether a name is a hub id and no folder of this machine."""
    return not Path(place).expanduser().exists() and _HUB_ID.fullmatch(str(place)) is not None


def local_folder(id: str, revision: str | None = None) -> Path | None:
    """The folder of a model whose weights are on this machine; None when they would have to be fetched."""
    if id.startswith("demo/") or Path(id).expanduser().is_dir():
        folder: Path | None = resolve_folder(id, revision)
    else:
        patterns = [*_SMALL_FILES, "*.safetensors"]
        folder = _cached(id, revision, patterns, _BESIDE) if _HUB_ID.fullmatch(id) else None
    return folder if folder is not None and _complete(folder, True) else None


def _cached(id: str, revision: str | None, patterns: list[str], ignored: list[str]) -> Path | None:
    """The snapshot in the hub's cache, when it has every file that fits the patterns (as far as the cache knows)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            id, revision=revision, allow_patterns=patterns, ignore_patterns=ignored, local_files_only=True
        )
        return Path(found)
    except LocalEntryNotFoundError:
        return None


def _complete(folder: Path, weights: bool, config: str = "config.json") -> bool:
    """Whether a cached snapshot has what is needed: an interrupted download leaves some of the files."""
    if not (folder / config).is_file():
        return False
    if not weights:
        return True
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return all((folder / shard).is_file() for shard in shards)
    return bool(weight_files(folder))


def _fetch(id: str, revision: str | None, patterns: list[str], ignored: list[str], command: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        # One short question first: the download itself would retry for minutes without a network.
        HfApi().model_info(id, revision=revision, timeout=_HUB_TIMEOUT)
        return Path(
            snapshot_download(id, revision=revision, allow_patterns=patterns, ignore_patterns=ignored)
        )
    except GatedRepoError as error:
        raise ModelError(
            f"'{id}' is gated: its owner must grant you access",
            hint=f"accept its terms at https://huggingface.co/{id}, then: hf auth login",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"no folder and no hub model '{id}' (or it is private)",
            hint="\n".join([*missing.alike(id), "check the name; for a private model: hf auth login"]),
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"hub model '{id}' has no revision '{revision}'") from error
    except (HfHubHTTPError, OSError) as error:
        raise _offline(id, command, error) from error
    except Exception as error:
        # The hub's HTTP client differs between versions, and so do its network errors; ours is the same sentence.
        if not is_network_error(error):
            raise
        raise _offline(id, command, error) from error


def is_network_error(error: BaseException) -> bool:
    """Whether an error comes from the hub's HTTP client, whichever of its versions is installed."""
    return any(
        base.__name__ in ("TransportError", "RequestError", "HTTPError") for base in type(error).__mro__
    )


def _offline(id: str, command: str, error: Exception) -> ModelError:
    cause = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(
        f"'{id}' is not a local folder, is not in the cache, and the Hugging Face hub cannot be reached ({cause})",
        hint="\n".join([*missing.alike(id), f"with a network: {command}"]),
    )
