"""Secrets do not get into messages, configurations or reports."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from vlsi_cli.app import app
from vlsi_cli.commands import _output
from vlsi_cli.config.loading import resolve
from vlsi_cli.config.redaction import redact, redact_tree
from vlsi_cli.errors import ConfigError, ModelError

TOKEN = "hf_" + "a1B2" * 9


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"token {TOKEN} refused", "token [redacted] refused"),
        ("sk-" + "x" * 40, "[redacted]"),
        ("https://me:pass@host/a", "https://[redacted]@host/a"),
        (f"https://{TOKEN}@host/a", "https://[redacted]@host/a"),
        ("http://host/a?token=abc&size=3", "http://host/a?token=[redacted]&size=3"),
        ("s3://b/a?X-Amz-Signature=00ff&x=1", "s3://b/a?X-Amz-Signature=[redacted]&x=1"),
        ("Authorization: Bearer abcdefgh12", "Authorization: Bearer [redacted]"),
        ("-----BEGIN RSA PRIVATE KEY-----", "[redacted]"),
        ("https://host:8080/a?page=2 user@host.org", "https://host:8080/a?page=2 user@host.org"),
        ("the tokenizer's key", "the tokenizer's key"),
    ],
)
def test_forms(text: str, left: str) -> None:
    assert redact(text) == left


def test_values_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_API_KEY", "correct-horse-battery")
    monkeypatch.setenv("SHORT_KEY", "abc")
    monkeypatch.setenv("SSH_KEY", "/folder/of/keys")
    assert (
        redact("sent correct-horse-battery, abc, /folder/of/keys") == "sent [redacted], abc, /folder/of/keys"
    )


def test_trees() -> None:
    tree = {"api_key": "x", "url": ["https://a:b@c/d"], "steps": 3, "empty": {"password": ""}}
    assert redact_tree(tree) == {
        "api_key": "[redacted]",
        "url": ["https://[redacted]@c/d"],
        "steps": 3,
        "empty": {"password": ""},
    }


@pytest.mark.parametrize("key", ["student.id", "description", "teacher.revision"])
def test_a_configuration_with_a_secret_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} holds what looks like an access token") as refused:
        resolve("demo", [f"{key}=https://user:hunter2@host/{TOKEN}"])
    assert "hunter2" not in refused.value.message


def test_messages_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    _output.begin(verbose=True)
    _output.use_json(True)
    _output.error(ModelError(f"{TOKEN} is refused", hint=f"use another than {TOKEN}"))
    _output.warn(f"with {TOKEN}")
    _output.say(f"with {TOKEN}")
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err
    assert json.loads(said.out)["error"]["message"] == "[redacted] is refused"
    assert said.err.count("[redacted]") >= 4


def test_a_secret_on_the_command_line() -> None:
    done = CliRunner().invoke(app, ["distill", "--recipe", f"{TOKEN}.yaml"], prog_name="vlsi")
    assert done.exit_code == 2
    assert TOKEN not in done.output
