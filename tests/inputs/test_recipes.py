"""Recipes, command lines and stored files that nobody vouches for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.inputs.kit import ends_well, vlsi
from vlsi_cli.config.run import DistillConfig

EXAMPLES = 100
GOOD = "student: {id: demo/small}\nteacher: {id: demo/large}\ndata: {sources: [{kind: patterns, size: 9}]}\n"

#: Content of a recipe -> words of the sentence it must end in; None where it is a good one.
RECIPES: dict[str, tuple[bytes | str, str | None]] = {
    "nothing": ("", "is not given"),
    "a comment": ("# nothing\n", "is not given"),
    "a list": ("- 1\n- 2\n", "is a list"),
    "a text": ("hello", "is a str"),
    "a number": ("3", "is a int"),
    "a date": ("2026-01-01", "is a date"),
    "two documents": (f"{GOOD}---\n{GOOD}", "not valid YAML"),
    "tabs": ("student:\n\tid: demo/small\n", "not valid YAML"),
    "an open quote": ('student: {id: "demo/small}\n', "not valid YAML"),
    "an open bracket": ("student: [\n", "not valid YAML"),
    "no UTF-8": (b"student: {id: \xff\xfe}\n", "cannot be read"),
    "UTF-16": (GOOD.encode("utf-16"), "cannot be read"),
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD.encode(), None),
    "zero bytes": (b"\0\0\0\0", "not valid YAML"),
    "a pickle": (b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtin", "cannot be read"),
    "a Python object": ("student: !!python/object/apply:os.system [id]\n", "not valid YAML"),
    "a Python name": ("student: !!python/name:os.system\n", "not valid YAML"),
    "an unknown tag": ("student: !secret demo/small\n", "not valid YAML"),
    "a key given twice": (f"{GOOD}seed: 1\nseed: 2\n", "given twice"),
    "a key that is a list": (f"{GOOD}? [a, b]\n: 1\n", "not valid YAML"),
    "a key that is a mapping": (f"{GOOD}? {{a: b}}\n: 1\n", "not valid YAML"),
    "a key that is a number": (f"{GOOD}3: 4\n", "unknown key '3'"),
    "a key that is null": (f"{GOOD}null: 4\n", "unknown key"),
    "a merge": ("a: &a {id: demo/small}\nstudent:\n  <<: *a\n", "unknown key 'a'"),
    "an unknown anchor": ("student: *nobody\n", "not valid YAML"),
    "itself": ("student: &a\n  id: *a\n", "deeper than 50"),
    "itself in a list": (f"{GOOD}name: &a [*a]\n", "deeper than 50"),
    "a billion laughs": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "aliases",
    ),
    "5,000 levels": ("a: " + "[" * 5000 + "]" * 5000, "deeper than 50"),
    "5,000 levels of mappings": ("{a: " * 5000 + "1" + "}" * 5000, "deeper than 50"),
    "an unknown key": (f"{GOOD}sed: 1\n", "unknown key 'sed'"),
    "an unknown key inside": (f"{GOOD}interaction: {{step: 3}}\n", "unknown key 'step'"),
    "a very long key": (f"{GOOD}{'k' * 1000}: 1\n", "unknown key"),
    "a very long value": (f"{GOOD}seed: {'s' * 100_000}\n", "seed"),
    "a number of 10,000 digits": (f"{GOOD}seed: {'9' * 10_000}\n", "4300 digits"),
    "seed: -1": (f"{GOOD}seed: -1\n", "seed"),
    "seed: nan": (f"{GOOD}seed: .nan\n", "seed"),
    "seed: 1.5": (f"{GOOD}seed: 1.5\n", "seed"),
    "seed: a list": (f"{GOOD}seed: [1]\n", "seed"),
    "seed: null": (f"{GOOD}seed: null\n", "seed"),
    "seed: 2^70": (f"{GOOD}seed: {2**70}\n", None),
    "steps: 0": (f"{GOOD}interaction: {{steps: 0}}\n", "steps"),
    "steps: infinite": (f"{GOOD}interaction: {{steps: .inf}}\n", "steps"),
    "rate: nan": (f"{GOOD}interaction: {{optimizer: {{learning_rate: .nan}}}}\n", "learning_rate"),
    "rate: -1": (f"{GOOD}interaction: {{optimizer: {{learning_rate: -1}}}}\n", "learning_rate"),
    "weight: 0": (GOOD.replace("size: 9", "weight: 0"), "weight"),
    "no sources": ("student: demo/small\ndata: {sources: []}\nteacher: demo/large\n", "sources"),
    "sources: a text": ("student: demo/small\ndata: {sources: patterns}\nteacher: demo/large\n", "sources"),
    "a source of no kind": ("student: demo/small\ndata: {sources: [{}]}\nteacher: demo/large\n", "kind"),
    "a source that is null": ("student: demo/small\ndata: {sources: [null]}\nteacher: demo/large\n", "sources"),
    "an unknown kind": ("student: demo/small\ndata: {sources: [{kind: sql}]}\nteacher: demo/large\n", "kind"),
    "student: a list": ("student: [demo/small]\nteacher: demo/large\n", "student"),
    "student: a number": ("student: 5\nteacher: demo/large\n", "student"),
    "student: empty": ("student: ''\nteacher: demo/large\n", "student"),
    "stages: all null": (
        f"{GOOD}verbalization: null\ninteraction: null\nreinforcement: null\n",
        "nothing would be trained",
    ),
    "targets: from 0": (GOOD.replace("demo/small}", "demo/small, targets: {layers: [0]}}"), "layers"),
    "precision: fp8": (f"{GOOD}precision: fp8\n", "precision"),
    "name: a path": (f"{GOOD}name: ../../etc/cron.d/x\n", None),
    "name: signs": (f'{GOOD}name: "\\u0000\\u202e"\n', None),
    "name: half a surrogate pair": (f'{GOOD}name: "\\ud800"\n', "no text"),
}  # fmt: skip

#: Command lines, each to be refused with 2 (or, where they name what is not there, 3, 4, 6 or 7).
LINES = (
    "distill --seed -1", "distill --seed 1.5", "distill --seed nan", "distill --set",
    "distill --set = --dry-run", "distill --set a --dry-run", "distill --set .a=1 --dry-run",
    "distill --set a..b=1 --dry-run", "distill --set seed=[ --dry-run", "distill --set seed.x=1 --dry-run",
    "distill --set data.sources.9.size=1 --dry-run", "distill --set data.sources.x=1 --dry-run",
    "distill --set data.sources.-1.size=1 --dry-run", "distill --set data=null --dry-run",
    "distill --set data.sources.99999999999999999999.size=1 --dry-run", "distill --set student=null --dry-run",
    "distill --set interaction.steps=1e400 --dry-run",
    "distill --set interaction.steps=!!python/name:os.system --dry-run", "distill --set seed=*a --dry-run",
    "distill --precision fp8", "distill --device tpu:0", "distill --device cuda:999",
    "distill --device cuda:-1", "distill --recipe /", "distill --recipe .", "distill --recipe none.yaml",
    "distill --recipe ''", "distill --teacher ''",
    "distill --teacher demo/huge --student demo/small --data patterns", "distill --student 2b",
    "distill --data none.json", "distill --data ''", "distill --output /dev/null", "distill --output /proc/run",
    "distill --resume /dev/null", "distill --resume ''", "distill --teacher-cache nowhere",
    "distill --push a/b/c", "distill --push ../x", "distill --processes 0", "distill --processes many",
    "distill --processes -3", "plan --teacher demo/large", "plan --recipe nope", "cache info nowhere",
    "cache info /dev/null", "cache verify .", "cache build x --top-k 0", "cache build x --top-k -5",
    "cache build x --shard-size 0", "cache build x", "match-layers --run nowhere", "export", "export nowhere",
    "export demo/small --agreement 2", "export demo/small --agreement nan",
    "export demo/small --dtype fp16 --quantize int8", "export --check nowhere demo/small", "push",
    "push nowhere", "push nowhere owner/name", "verbalize none.png", "verbalize /dev/zero --model demo/small",
    "verbalize none.png --model nowhere", "data preview --index -1", "data preview --source 7",
    "data preview --model nowhere", "data preview --data none.parquet", "eval --batch-size 0",
    "eval --batch-size many", "eval --bench nope", "eval --limit 0", "eval --limit -3",
    "eval --judge-url http://127.0.0.1:1", "eval compare nowhere nowhere", "recipes show nope",
    "recipes cp nope x.yaml", "recipes cp demo /proc/x.yaml", "recipes check nope.yaml",
    "recipes check /dev/null", "nope", "--nope", "distill nope",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def refused(tmp_path: Path, content: bytes | str) -> str:
    """The sentence of a recipe, the same from `recipes check` and from the run that would use it; "" for a good
    one. Target layers beyond a model are refused with 5."""
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    planned = vlsi("distill", "--recipe", file, "--dry-run", "--json")
    # 3 and 4: a good recipe whose data or models are not on this machine
    said = (
        ""
        if planned.exit_code in (3, 4) and "problem" in json.loads(planned.stdout)
        else ends_well(planned, 0, 2, 5)
    )
    checked = vlsi("recipes", "check", file)
    assert bool(ends_well(checked, 0, 2, 5)) == bool(said), checked.output
    return said


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(tmp_path: Path, name: str) -> None:
    content, words = RECIPES[name]
    said = refused(tmp_path, content)
    assert (words is None and said == "") or (words is not None and words in said), said or "it is accepted"


@pytest.mark.parametrize("line", LINES)
def test_command_lines(tmp_path: Path, line: str) -> None:
    import shlex

    done = vlsi(*shlex.split(line))
    assert ends_well(done, 2, 3, 4, 6, 7, 9)
    assert done.exit_code != 0
    assert not list(tmp_path.rglob("config.yaml")), "something was begun"


_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.integers(10**20, 10**25) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["demo/small", "2b", "auto", "lora", "kld", "../x", "patterns", "multinomial", "0", "1e-4"])
)  # fmt: skip
_TREES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.sampled_from(["id", "kind"]), inner)
    ),
    max_leaves=6,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, below in inner for found in _paths(below, (*path, key)))]


_BASE = yaml.safe_load(
    yaml.safe_dump(DistillConfig.model_validate(yaml.safe_load(GOOD)).model_dump(mode="json"))
)
_PLACES = [path for path in _paths(_BASE) if path]


@settings(
    max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(changes=st.lists(st.tuples(st.sampled_from(_PLACES), _TREES), min_size=1, max_size=3))
def test_generated_recipes(tmp_path: Path, changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    """A whole recipe, values of any kind put anywhere in it."""
    tree = json.loads(json.dumps(_BASE))
    for path, value in changes:
        here = tree
        try:
            for key in path[:-1]:
                here = here[key]
            here[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    refused(tmp_path, yaml.safe_dump(tree, allow_unicode=False))


# ---------------------------------------------------------------- what other commands have written

_JUNK: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda whole: whole[: len(whole) // 2],
    "a list": lambda _: b"[]",
    "null": lambda _: b"null",
    "a text": lambda _: b'"text"',
    "no UTF-8": lambda _: b"\xff\xfe\x00",
    "brackets": lambda _: b"[" * 100_000,
    "a pickle": lambda _: b"\x80\x04K\x01.",
    "values of other types": lambda whole: whole.replace(b": {", b": 7, \"x\": {").replace(b": [", b": 7, \"y\": ["),
}  # fmt: skip


@pytest.mark.parametrize("junk", _JUNK)
@pytest.mark.parametrize("name", ["config.yaml", "origins.json", "progress.json"])
def test_run_folders(tmp_path: Path, name: str, junk: str) -> None:
    from vlsi_cli.config.loading import resolve

    resolve("demo").save(tmp_path / "run")
    progress = {"stages": {}, "scores": {}, "student": True}
    (tmp_path / "run" / "progress.json").write_text(json.dumps(progress))
    file = tmp_path / "run" / name
    file.write_bytes(_JUNK[junk](file.read_bytes()))
    for words in (
        ("distill", "--resume", "run", "--dry-run"),
        ("match-layers", "--run", "run"),
        ("push", "run", "a/b"),
    ):
        done = vlsi(*words)
        ends_well(done, 0, 2, 3, 4, 7, 9)
