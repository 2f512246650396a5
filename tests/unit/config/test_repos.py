from __future__ import annotations

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from vlsi_cli.config.repos import check_repo_name
from vlsi_cli.errors import ConfigError


@pytest.mark.parametrize("name", ["me/thing", "a/b", "My-Org/VLsI-2B_v1.0", "me/" + "x" * 96, "_a/b_"])
def test_names_that_the_hub_allows(name: str) -> None:
    assert check_repo_name(name) == name
    validate_repo_id(name)


@pytest.mark.parametrize(
    "name",
    [
        "me/a--b",
        "me/a..b",
        "me/-a",
        "me/a-",
        "me/.a",
        "me/a b",
        "me/ä",
        "me/a/b",
        "me/a.git",
        "me/" + "x" * 97,
        "m e/a",
    ],
)
def test_names_that_it_does_not(name: str) -> None:
    with pytest.raises(ConfigError, match="the hub does not allow"):
        check_repo_name(name)
    with pytest.raises(HFValidationError):
        validate_repo_id(name)


@pytest.mark.parametrize("name", ["", "thing", "/thing", "me/"])
def test_an_owner_is_needed(name: str) -> None:
    with pytest.raises(ConfigError, match="it must be owner/name"):
        check_repo_name(name)


def test_a_name_that_its_server_alone_refuses() -> None:
    with pytest.raises(ConfigError, match="ipynb"):
        check_repo_name("me/notes.ipynb")
