"""What tells one checkpoint from another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from vlsi_cli.config.presence import weight_files
from vlsi_cli.errors import ModelError

#: Bytes read at the start, middle and end of a tensor for a fingerprint.
_PROBE = 4096


def weights_fingerprint(folder: Path) -> str:
    """SHA-256 that tells one checkpoint from another without reading all of it.

    Of ``config.json`` it takes every byte; of each tensor its name, type and shape and 4 KiB at its start, middle
    and end: some MiB of a model of any size. Training changes every tensor that it changes nearly everywhere, so
    another checkpoint of the same architecture has another fingerprint; a few numbers edited by hand may not.

    Raises:
        ModelError: a safetensors file that cannot be read.
    """
    found: dict[str, bytes] = {}
    for path in weight_files(folder):
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
                for name in sorted(header.keys() - {"__metadata__"}):
                    start, stop = header[name]["data_offsets"]
                    digest = hashlib.sha256(f"{header[name]['dtype']} {header[name]['shape']};".encode())
                    for place in (start, (start + stop - _PROBE) // 2, stop - _PROBE):
                        first = max(start, place)
                        file.seek(8 + length + first)
                        digest.update(file.read(min(_PROBE, stop - first)))
                    found[name] = digest.digest()
        except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            raise ModelError(f"{path} cannot be read as safetensors: {error}") from error
    whole = hashlib.sha256((folder / "config.json").read_bytes())
    for name in sorted(found):  # however the tensors are spread over files
        whole.update(name.encode() + found[name])
    return whole.hexdigest()
