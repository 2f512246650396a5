"""What a plan can say of a teacher cache without opening it: a few numbers of its manifest, no tensors.

The manifest is checked in earnest by the engine (``engine.teachers.manifest``) when the run starts.
"""

from __future__ import annotations

import json
from pathlib import Path


def cache_note(folder: Path) -> str:
    """One sentence about a cache: what it holds, or why that cannot be said."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        identity, shards = manifest["identity"], manifest["shards"]
        records, tokens, size = (
            sum(shard[key] for shard in shards) for key in ("records", "tokens", "bytes")
        )
        size += manifest["head"]["bytes"] if manifest["head"] else 0
        what = (
            f"top {identity['k']} tokens" if identity["kind"] == "top-k" else f"states in {identity['dtype']}"
        )
        amount = f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
        state = "" if manifest["complete"] else ", NOT COMPLETE"
        return (
            f"the large model is not loaded: {what} of {identity['model']} for {records:,} records "
            f"({tokens:,} response tokens, {amount}{state}) are read from {folder}"
        )
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        return f"the teacher cache {folder} cannot be read ({type(error).__name__}): the run would be refused"
