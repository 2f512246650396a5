"""Images by their address, fetched once and kept in a folder.

    images/3f/3f9a...    a line of JSON (address, bytes, SHA-256), then the file as it came
    failed/3f/3f9a...    a line of JSON: why there is no image, under which settings
    partial/             what is being written

Names are the SHA-256 of the address. So a second epoch, a resumed run, another process and the next run see the same
pixels, or the same lack of them, and ask nobody. A failure counts as long as the settings are those it was met with.
Whoever keeps an image first has kept it for all: two processes that fetch one address at once go on with the same
bytes, even if its host sends others each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlsi_cli.engine.data.addresses import HostRules, read_address, shown
from vlsi_cli.engine.data.fetching import WORLD, Failure, FetchLimits, Network, fetch
from vlsi_cli.engine.data.images import image_size
from vlsi_cli.engine.data.records import BadRecord, ImageRef
from vlsi_cli.engine.files import writing
from vlsi_cli.errors import DataError

IMAGES, FAILED, PARTIAL = "images", "failed", "partial"
#: Seconds after which something half written is left from a process that was killed.
_STALE = 3600.0


class ImageFetcher:
    """Gives the bytes at an address: from the folder, or from its host into the folder. Threads may share one.

    Args:
        folder: where images are kept; made if need be.
        rules: whom may be asked.
        limits: what one image may take.
        give_up_after: fetches in a row that may fail for a moment before that is an error of its own.
        network: how the world is reached.

    Raises:
        OutputError: the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        rules: HostRules,
        limits: FetchLimits,
        *,
        give_up_after: int,
        network: Network = WORLD,
    ) -> None:
        self._folder, self._rules, self._limits = folder, rules, limits
        self._give_up_after, self._network = give_up_after, network
        self._in_a_row: list[Path] = []
        self._settings = hashlib.sha256(repr((rules, limits)).encode()).hexdigest()[:16]
        for part in (IMAGES, FAILED, PARTIAL):
            with writing(folder):
                (folder / part).mkdir(parents=True, exist_ok=True)
        for left in (folder / PARTIAL).iterdir():
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _STALE:
                    left.unlink()

    def __call__(self, text: str) -> bytes:
        """The file at an address: one that can be opened as an image.

        Raises:
            BadRecord: there is none to be had, or what is there is no image; or the address may not be asked.
            DataError: too many fetches in a row failed for a moment.
            OutputError: it cannot be kept.
        """
        image, failed = self._places(text)
        if (kept := _read_image(image)) is not None:
            if len(kept) > self._limits.max_bytes:
                raise BadRecord(
                    "image-not-fetched", f"{shown(text)}: more than {self._limits.max_bytes:,} bytes"
                )
            return kept
        if (bad := self._read_failure(failed)) is not None:
            raise bad
        try:
            data = fetch(text, self._rules, self._limits, self._network)
            image_size(ImageRef(data=data))  # what no decoder knows is not kept
        except Failure as failure:
            bad = BadRecord("image-not-fetched", f"{shown(text)}: {failure}")
            self._keep_failure(failed, text, bad)
            self._count(failed, bad, momentary=failure.momentary)
            raise bad from failure
        except BadRecord as refused:
            bad = BadRecord(
                refused.reason, refused.detail if refused.reason == "image-address" else shown(text)
            )
            self._keep_failure(failed, text, bad)
            raise bad from refused
        self._in_a_row.clear()
        return self._keep_image(image, text, data)

    def knows(self, text: str) -> bool:
        """Whether an address need not be asked: its image, or why there is none, is in the folder.

        Raises:
            BadRecord: the address may not be asked.
        """
        image, failed = self._places(text)
        return _read_image(image) is not None or self._read_failure(failed) is not None

    def forget_failure(self, text: str) -> None:
        """Have an address asked again that has failed before.

        Raises:
            BadRecord: the address may not be asked.
        """
        with writing(self._folder):
            self._places(text)[1].unlink(missing_ok=True)

    def _places(self, text: str) -> tuple[Path, Path]:
        """Where an address's image is kept, and where the reason why there is none."""
        address = read_address(text, self._rules)  # also for what is kept: rules may be stricter today
        name = hashlib.sha256(str(address).encode()).hexdigest()
        image, failed = (self._folder / part / name[:2] / name for part in (IMAGES, FAILED))
        return image, failed

    def _count(self, failed: Path, bad: BadRecord, *, momentary: bool) -> None:
        if not momentary:
            self._in_a_row.clear()
            return
        self._in_a_row.append(failed)
        row = list(self._in_a_row)  # other threads may add to it
        if len(row) >= self._give_up_after:
            # It was the network, not these images: they are asked for again next time.
            for each in row:
                each.unlink(missing_ok=True)
            self._in_a_row.clear()
            number = len(row)
            raise DataError(
                f"{number} images in a row could not be fetched, the last: {bad.detail}",
                hint="see that the network is there, and give the same command again or go on with the run (--resume); "
                "data.image_urls.give_up_after is the number",
            )

    def _keep_image(self, target: Path, text: str, data: bytes) -> bytes:
        about = {"address": shown(text), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self._keep(target, json.dumps(about).encode() + b"\n" + data, lambda: _read_image(target) is not None)
        kept = _read_image(target)
        return data if kept is None else kept

    def _keep_failure(self, target: Path, text: str, bad: BadRecord) -> None:
        about = {
            "address": shown(text),
            "settings": self._settings,
            "reason": bad.reason,
            "detail": bad.detail,
        }
        self._keep(target, json.dumps(about).encode() + b"\n", lambda: self._read_failure(target) is not None)

    def _read_failure(self, path: Path) -> BadRecord | None:
        """Why there is no image; None where it is not known, or was found under other settings."""
        try:
            about: dict[str, Any] = json.loads(path.read_bytes())
            if about["settings"] != self._settings:
                return None
            return BadRecord(about["reason"], about["detail"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _keep(self, target: Path, content: bytes, is_kept: Callable[[], bool]) -> None:
        """Write a file, whole or not at all, unless another process has kept a sound one first."""
        with writing(self._folder):
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._folder / PARTIAL)
            part = Path(name)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                try:
                    os.link(part, target)
                except FileExistsError:
                    if not is_kept():  # a damaged one
                        part.replace(target)
                except OSError:  # a file system without links
                    part.replace(target)
            finally:
                part.unlink(missing_ok=True)


def _read_image(path: Path) -> bytes | None:
    """The image that is kept in a file; None where there is none, or a damaged one."""
    try:
        head, _, data = path.read_bytes().partition(b"\n")
        sound = json.loads(head)["sha256"] == hashlib.sha256(data).hexdigest()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return data if sound else None
