"""What must not leave the machine: optimizer state, pickles, absolute paths, secrets. One reason a file, or none.

A screen in front of a public place errs on the side of refusing; what it refuses is named, so that its owner can take
it away or say it otherwise. It looks into every text file and into the headers of safetensors files; the tensors and
graphs themselves are not searched.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from typing import Any

import yaml

from vlsi_cli.config.redaction import CREDENTIALS, SECRET_KEY, TOKENS

_PICKLE_ENDINGS = (
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".pickle",
    ".joblib",
    ".npy",
    ".npz",
    ".h5",
    ".msgpack",
)
_OPTIMIZER = re.compile(
    r"(optimizer|scheduler|scaler|rng_state|random_states|trainer_state|training_args|global_step)[\w.-]*"
    r"|state\.(safetensors|json)|[\w.-]+\.distcp"
)
_SECRET_NAMES = re.compile(
    r"\.?(env|netrc|npmrc|pypirc|git-credentials)|id_(rsa|dsa|ecdsa|ed25519)|token|.+\.(env|pem|key|p12)"
)
_SECRETS = re.compile(TOKENS.encode())
#: An absolute path: two parts at least, so that a token such as "/" or "/think" is none.
_ABSOLUTE = re.compile(r"(file://)?(/[^/\s<>]+/|~[\w.-]*/|[A-Za-z]:[\\/]\w|\\\\\w)")
_TEXT_ENDINGS = (
    ".json",
    ".jsonl",
    ".yaml",
    ".yml",
    ".txt",
    ".md",
    ".jinja",
    ".py",
    ".cfg",
    ".ini",
    ".toml",
    ".csv",
)
#: Vocabularies: text, but any string may be a token of theirs, so they are searched for secrets only.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
_LONGEST_HEADER = 100_000_000


def reason_to_stay(
    name: str, head: bytes, content: bytes | None, secrets: tuple[str, ...] = ()
) -> str | None:
    """Why a file must not travel, to follow its name; None when it may.

    Args:
        name: the file's own name, without folders.
        head: its first bytes (16 suffice).
        content: all of it for a text file, the header for a safetensors file, None for any other.
        secrets: words that must appear in no file (the token in use).
    """
    if _OPTIMIZER.fullmatch(name):
        return "is the state of an optimizer or a trainer, which nobody needs to use the model"
    if name.endswith(_PICKLE_ENDINGS) or _looks_pickled(head):
        return "is a pickle or may hold one, which can run code when it is opened"
    if _SECRET_NAMES.fullmatch(name):
        return "has the name of a file that keeps secrets"
    if content is None:
        return None
    if _SECRETS.search(content) or any(word.encode() in content for word in secrets if word):
        return "holds what looks like an access token or a private key"
    trees = _trees(name, content)
    if trees is None:
        return "cannot be parsed, so nobody could read it"
    for key, value in (leaf for tree in trees for leaf in _leaves("", tree)):
        if SECRET_KEY.fullmatch(key) and value:
            return f"holds a secret under the key '{key}'"
        if name not in _VOCABULARIES and is_absolute(value):
            return (
                f"holds a path of this machine under the key '{key}'"
                if key
                else "holds a path of this machine"
            )
    return None


def is_secret(key: str, value: str) -> bool:
    """Whether a value of a configuration must not be shown: by its key, its form, or a password in an address."""
    if SECRET_KEY.fullmatch(key) and value:
        return True
    return _SECRETS.search(value.encode()) is not None or CREDENTIALS.search(value) is not None


def is_text(name: str) -> bool:
    """Whether a file of this name is read as a whole and searched."""
    return name.endswith(_TEXT_ENDINGS) or "." not in name


def header_length(head: bytes) -> int | None:
    """Bytes of a safetensors file up to the end of its header; None when it begins like no such file."""
    if len(head) < 9 or head[8:9] != b"{":
        return None
    (length,) = struct.unpack("<Q", head[:8])
    return 8 + length if length <= _LONGEST_HEADER else None


def is_absolute(value: str) -> bool:
    """Whether a string is a path that means something on one machine only."""
    return _ABSOLUTE.match(value) is not None


def _looks_pickled(head: bytes) -> bool:
    # torch.save writes a ZIP archive; a pickle of protocol 2 and later begins with 0x80 and the protocol, as a
    # safetensors header of such a length also could.
    if head.startswith(b"PK\x03\x04"):
        return True
    return (
        head[:1] == b"\x80"
        and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
        and header_length(head) is None
    )


def _trees(name: str, content: bytes) -> list[Any] | None:
    """The documents in a JSON or YAML file, in JSON Lines, or in the notes of a safetensors header; None: damaged."""
    try:
        if name.endswith(".jsonl"):
            return [json.loads(line) for line in content.split(b"\n") if line.strip()]
        if name.endswith(".json"):
            return [json.loads(content)]
        if name.endswith((".yaml", ".yml")):
            return list(yaml.safe_load_all(content))
        if name.endswith(".safetensors"):
            return [json.loads(content[8:]).get("__metadata__", {})]
    except (ValueError, RecursionError, yaml.YAMLError):
        return None
    return []


def _leaves(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for inner, below in value.items():
            yield from _leaves(str(inner), below)
    elif isinstance(value, list):
        for below in value:
            yield from _leaves(key, below)
