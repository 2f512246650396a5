from __future__ import annotations

from pathlib import Path

import pytest

from vlsi_cli.config.loading import Resolved, load_saved, parse_set, resolve
from vlsi_cli.config.run import PatternsSource
from vlsi_cli.errors import CheckpointError, ConfigError

MINIMAL = """
student: {id: demo/small}
teacher: demo/large
data: {sources: [{kind: patterns, size: 64}]}
seed: 5
interaction: {steps: 7, optimizer: {learning_rate: 1.0e-3}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    return path


def test_precedence_and_origins(recipe: Path) -> None:
    flags = {"seed": 9, "teacher.id": None}
    resolved = resolve(recipe, ["seed=8", "interaction.batch_size=3", "precision=bf16"], flags)
    config, origins = resolved.config, resolved.origins
    assert (config.seed, origins["seed"]) == (9, "--seed")
    assert (config.precision, origins["precision"]) == ("bf16", "--set")
    assert config.interaction is not None
    assert (config.interaction.batch_size, origins["interaction.batch_size"]) == (3, "--set")
    assert (config.interaction.steps, origins["interaction.steps"]) == (7, f"recipe {recipe}")
    assert origins["interaction.optimizer.weight_decay"] == "default"
    assert config.name == "mine"
    assert set(origins) == {key for key, _, _ in resolved.leaves()}


def test_values_of_python_are_what_set_writes_out(recipe: Path, tmp_path: Path) -> None:
    """In one mapping or in several, with paths and tuples; the origin alone differs."""
    written = [
        "interaction.batch_size=3",
        "interaction.optimizer.betas=[0.9, 0.95]",
        "reinforcement=null",
        f"data.sources=[{{kind: messages, path: {tmp_path / 'a.json'}}}]",
    ]
    source = {"kind": "messages", "path": tmp_path / "a.json"}
    given = {
        "interaction": {"batch_size": 3, "optimizer.betas": 0},
        "interaction.optimizer": {"betas": (0.9, 0.95)},
        "reinforcement": None,
        "data.sources": [source],
    }
    with pytest.raises(ConfigError, match=r"overrides: unknown key 'optimizer\.betas'"):
        resolve(recipe, given)
    given["interaction"] = {"batch_size": 3}
    ours, theirs = resolve(recipe, given), resolve(recipe, written)
    assert ours.config == theirs.config
    assert ours.origins == {
        key: "overrides" if origin == "--set" else origin for key, origin in theirs.origins.items()
    }


def test_no_evaluation() -> None:
    resolved = resolve("demo", ["evaluation=null"])
    assert resolved.config.evaluation.data is None
    assert resolved.origins["evaluation.data"] == "--set"
    assert set(resolved.origins) == {key for key, _, _ in resolved.leaves()}


def test_every_leaf_has_an_origin_even_in_empty_and_null_sections(recipe: Path) -> None:
    resolved = resolve(recipe, ["reinforcement=null", "evaluation={}"])
    assert resolved.config.reinforcement is None
    assert resolved.origins["reinforcement"] == "--set"
    assert resolved.origins["evaluation.samples"] == "--set"  # an empty section replaces what stood there


def test_a_section_can_come_back_from_null(recipe: Path) -> None:
    resolved = resolve(recipe, ["reinforcement=null", "reinforcement.steps=4"])
    assert resolved.config.reinforcement is not None
    assert resolved.config.reinforcement.steps == 4


def test_a_later_length_lifts_the_other(recipe: Path) -> None:
    resolved = resolve(recipe, ["interaction.epochs=0.5"])
    assert resolved.config.interaction is not None
    assert (resolved.config.interaction.steps, resolved.config.interaction.epochs) == (None, 0.5)
    with pytest.raises(ConfigError, match="--set: interaction: `steps` and `epochs` are both given"):
        resolve(recipe, ["interaction.epochs=0.5", "interaction.steps=3"])


def test_stride_lifts_an_explicit_list(tmp_path: Path, recipe: Path) -> None:
    recipe.write_text(MINIMAL.replace("{id: demo/small}", "{id: demo/small, targets: {layers: [1, 3]}}"))
    assert resolve(recipe).config.student.targets.resolve(8) == (1, 3)
    assert resolve(recipe, ["student.targets.start=2"]).config.student.targets.resolve(8) == (2, 6)


def test_set_reaches_into_a_list(recipe: Path) -> None:
    resolved = resolve(recipe, ["data.sources.0.size=3"])
    assert resolved.config.data.sources == (PatternsSource(size=3),)
    assert resolved.origins["data.sources.0.size"] == "--set"
    assert resolved.origins["data.sources.0.kind"] == f"recipe {recipe}"
    with pytest.raises(ConfigError, match="has no entry 4"):
        resolve(recipe, ["data.sources.4.size=3"])


def test_set_reaches_into_the_data_that_a_flag_gives() -> None:
    flags = {"data.sources": [{"kind": "llava", "path": "a.json"}, {"kind": "patterns"}]}
    resolved = resolve("demo", ["data.sources.0.image_root=images", "data.sources.1.size=3"], flags)
    first, second = resolved.config.data.sources
    assert str(first.image_root) == "images"  # type: ignore[union-attr]
    assert second == PatternsSource(size=3)
    origins = [resolved.origins[f"data.sources.0.{key}"] for key in ("path", "image_root")]
    assert origins == ["--data", "--set"]
    for whole in ("data.sources=[{kind: patterns, size: 9}]", "data={sources: [{kind: patterns, size: 9}]}"):
        assert resolve("demo", [whole], flags).config.data.sources[1] == PatternsSource(), "the flag wins"


def test_a_list_is_replaced_as_a_whole(recipe: Path) -> None:
    resolved = resolve(recipe, [], {"data.sources": [{"kind": "patterns", "split": "test"}]})
    assert resolved.config.data.sources == (PatternsSource(split="test"),)
    assert resolved.origins["data.sources.0.split"] == "--data"
    assert resolved.origins["data.sources.0.size"] == "default"


def test_scientific_notation_is_a_number(recipe: Path) -> None:
    resolved = resolve(recipe, ["interaction.optimizer.learning_rate=3e-5"])
    assert resolved.config.interaction is not None
    assert resolved.config.interaction.optimizer.learning_rate == 3e-5


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("interaction.stepz=3", "--set: unknown key 'stepz' in 'interaction'", "did you mean steps?"),
        ("intraction.steps=3", "--set: unknown key 'intraction'", "did you mean interaction?"),
        (
            "verbalization.learning_rate=1",
            "--set: unknown key 'learning_rate' in 'verbalization'",
            "did you mean verbalization.optimizer.learning_rate?",
        ),
        ("data.sources.0.sizes=1", "--set: unknown key 'sizes' in 'data.sources.0'", "did you mean size?"),
        (
            "student.targets.strid=1",
            "--set: unknown key 'strid' in 'student.targets'",
            "did you mean stride?",
        ),
    ],
)
def test_unknown_key_is_named_with_the_nearest(recipe: Path, text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(recipe, [text])
    assert caught.value.message == message
    assert caught.value.hint == hint


def test_unknown_key_in_a_file_names_the_file(recipe: Path) -> None:
    recipe.write_text(MINIMAL + "checkpoint_evry: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        resolve(recipe)
    assert caught.value.message == f"recipe {recipe}: unknown key 'checkpoint_evry'"
    assert caught.value.hint == "did you mean checkpoint_every?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed=-1", "--set: seed: input should be greater than or equal to 0, not -1"),
        ("data.sources.0.split=trian", r"--set: data.sources.0.split: .*not 'trian'"),
        ("data.sources.0.kind=llava", "data.sources.0.path is not given|unknown key"),
        ("interaction.intermediate=none", None),
        ("teacher=null", "`interaction` needs a `teacher`"),
        ("verbalization=null", "`interaction` compares verbalized layers"),
        ("teacher.init=random", "would teach noise"),
        ("student.verbalizers=x", "only a teacher's set is reused"),
        ("interaction.features=true", "`features` compares by L2"),
        (
            "interaction={last: ce, weights: {answers: 1}}",
            "`weights.answers` adds what `last: ce` is already",
        ),
        ("interaction.temperature=0", "interaction.temperature: input should be greater than 0"),
        ("interaction.temperature=.inf", "interaction.temperature: .* finite"),
        ("student.targets.layers=[3, 2]", "ascending"),
        ("seed", "expected key=value"),
        ("=3", "expected key=value"),
        ("seed=[", "not valid YAML"),
        ("student.id=2b", None),
    ],
)
def test_values_are_checked(recipe: Path, text: str, message: str | None) -> None:
    if text == "student.id=2b":  # a size means nothing in a family without sizes
        message = "the family demo has no size '2b'"
    if message is None:
        resolve(recipe, [text])
        return
    with pytest.raises(ConfigError, match=message):
        resolve(recipe, [text])


def test_no_stage_at_all_is_refused(recipe: Path) -> None:
    nothing = ["verbalization=null", "interaction=null", "reinforcement=null"]
    with pytest.raises(ConfigError, match="nothing would be trained"):
        resolve(recipe, nothing)


def test_missing_data_say_what_to_pass() -> None:
    with pytest.raises(ConfigError, match="data is not given") as caught:
        resolve(None, [], {"teacher.id": "demo/large", "student.id": "small"})
    assert "--data" in (caught.value.hint or "")


def test_without_a_recipe_defaults_and_flags_are_enough() -> None:
    flags = {"teacher.id": "demo/large", "student.id": "small", "data.sources": [{"kind": "patterns"}]}
    resolved = resolve(None, [], flags)
    assert resolved.recipe is None
    assert (resolved.config.name, resolved.config.student.id) == ("small", "demo/small")
    assert resolved.origins["student.id"] == "--student"


def test_saved_configuration_is_read_back(recipe: Path, tmp_path: Path) -> None:
    resolved = resolve(recipe, ["seed=4", "reinforcement=null"])
    resolved.save(tmp_path / "run")
    back = load_saved(tmp_path / "run")
    assert isinstance(back, Resolved)
    assert (back.config, back.origins, back.recipe) == (resolved.config, resolved.origins, "mine")


def test_a_folder_without_or_with_a_damaged_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a run folder"):
        load_saved(tmp_path)
    (tmp_path / "config.yaml").write_text("student: [", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_saved(tmp_path)


def test_parse_set() -> None:
    assert parse_set("a.b = [1, 2]") == (("a", "b"), [1, 2])
    assert parse_set("x=") == (("x",), None)
    assert parse_set("x=a=b") == (("x",), "a=b")
