"""The command in this process, and its hub client (which reads its environment once, at import) on a hub of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.hub_server import HubServer
from vlsi_cli.app import app


def vlsi(*words: object) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="vlsi")


def use_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch, cache: Path, *, token: bool = True) -> None:
    """Every request goes to ``hub``, by plain HTTP instead of Xet; retries do not wait; downloads land in ``cache``."""
    import huggingface_hub.constants as constants
    import huggingface_hub.utils._http as http

    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": str(cache / "no-token"),
        "HF_STORED_TOKENS_PATH": str(cache / "no-tokens"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(http.time, "sleep", lambda _: None)
    http.close_session()
    for name, value in {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0"}.items():
        monkeypatch.setenv(name, value)
    if token:
        monkeypatch.setenv("HF_TOKEN", hub.token)
    else:
        monkeypatch.delenv("HF_TOKEN", raising=False)
