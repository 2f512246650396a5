"""Secrets taken out of what is shown or stored: by their form, their key, or because the environment holds them.

The one room for it. Messages, warnings and tracebacks pass through :func:`redact`; configurations that hold a secret
are refused, since they are written into run folders, cards and reports.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "[redacted]"

#: Access tokens that tell themselves by their form, and private keys.
TOKENS = (
    r"\b(?:hf_[A-Za-z0-9]{30,}|api_org_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}"
    r"|github_pat_[A-Za-z0-9_]{30,}|glpat-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{35}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,})|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
#: Keys whose value is a secret whatever it looks like.
SECRET_KEY = re.compile(r"(hf|auth|access|api)_?(token|key)|use_auth_token|password|secret", re.IGNORECASE)
#: User and password, or a token alone, in an address.
CREDENTIALS = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^/\s@:]*:?[^/\s@]+@", re.IGNORECASE)
_TOKENS = re.compile(TOKENS)
_QUERY = re.compile(
    r"(?P<name>[?&;](?:[\w.-]*(?:token|key|signature|secret|password|credential)|sig|auth)=)[^&\s#'\"]+",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(?P<word>\b(?:bearer|basic) )[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_VARIABLE = re.compile(r".*(TOKEN|KEY|PASSWORD|PASSWD|SECRET|CREDENTIALS?)")
#: A shorter value of a variable is likelier a word than a secret.
_SHORTEST = 8


def redact(text: str) -> str:
    """The text without tokens, private keys, passwords in addresses, and values of variables that keep secrets."""
    for secret in _from_environment():
        text = text.replace(secret, HIDDEN)
    text = _TOKENS.sub(HIDDEN, text)
    text = CREDENTIALS.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _QUERY.sub(rf"\g<name>{HIDDEN}", text)
    return _BEARER.sub(rf"\g<word>{HIDDEN}", text)


def redact_tree(value: Any, key: str = "") -> Any:
    """Plain values with every text redacted, and whatever stands under a key that keeps secrets."""
    if isinstance(value, Mapping):
        return {name: redact_tree(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact_tree(inner, key) for inner in value]
    if isinstance(value, str) and value:
        return HIDDEN if SECRET_KEY.fullmatch(key) else redact(value)
    return value


def _from_environment() -> list[str]:
    """Values of variables such as ``HF_TOKEN`` and ``OPENAI_API_KEY``, the longest first."""
    found = {
        value
        for name, value in os.environ.items()
        if _VARIABLE.fullmatch(name) and len(value) >= _SHORTEST and not os.path.isabs(value)
    }
    return sorted(found, key=len, reverse=True)
