from __future__ import annotations

from pathlib import Path

import pytest

from vlsi_cli.config import recipes
from vlsi_cli.config.loading import resolve
from vlsi_cli.config.planning import plan
from vlsi_cli.errors import ConfigError, OutputError

PAPER = [
    "qwen2-vl-72b-to-2b",
    "qwen2-vl-72b-to-7b",
    "qwen2-vl-7b-to-2b",
    "llava-ov-72b-to-0.5b",
    "llava-ov-72b-to-7b",
]


def test_the_promised_recipes_are_there_and_the_default_is_first() -> None:
    assert recipes.names()[0] == "demo"
    assert {"demo-large", "demo-small", *PAPER} < set(recipes.names())


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_validates_plans_and_explains_itself(name: str) -> None:
    recipe = recipes.read(name)
    assert plan(resolve(name)).stages
    assert recipe.values["name"] == name
    assert recipe.description
    for word in ("What", "Source", "Needs", "Command  vlsi distill", "Expect"):
        assert f"\n{word}" in recipe.header
    assert all(len(line) <= 120 for line in recipe.path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_settings(name: str) -> None:
    """What the paper states (arXiv 2412.01822): LoRA 64/64, cosine 1e-4 to 1e-6, records per step, 2.9M records."""
    config = resolve(name).config
    assert config.interaction is not None
    assert config.reinforcement is not None
    assert config.verbalization is not None
    for stage in (config.interaction, config.reinforcement):
        assert (stage.train, stage.lora.rank, stage.lora.alpha) == ("lora", 64, 64)
        assert stage.gradient_checkpointing
        assert (stage.optimizer.learning_rate, stage.optimizer.final_learning_rate) == (1e-4, 1e-6)
        assert stage.optimizer.schedule == "cosine"
    alone, together = (256, 128) if name.startswith("llava") else (512, 512 if "-7b-to" in name else 256)
    assert config.verbalization.effective_batch == config.reinforcement.effective_batch == alone
    assert config.interaction.effective_batch == together
    assert sum(source.records or 0 for source in config.data.sources) == 2_852_771


@pytest.mark.parametrize(
    ("teacher", "student", "name"),
    [
        ("Qwen/Qwen2-VL-72B", "2b", "qwen2-vl-72b-to-2b"),
        ("Qwen/Qwen2-VL-72B-Instruct", "Qwen/Qwen2-VL-7B-Instruct", "qwen2-vl-72b-to-7b"),
        ("qwen2-vl-7b", "2B", "qwen2-vl-7b-to-2b"),
        ("llava-hf/llava-onevision-qwen2-72b-ov-hf", "0.5b", "llava-ov-72b-to-0.5b"),
        ("LLaVA-OneVision-72B", "7b", "llava-ov-72b-to-7b"),
        ("demo/large", "small", "demo"),
        ("Qwen/Qwen2.5-VL-72B-Instruct", "3b", None),
        ("someone/their-model", "other/model", None),
    ],
)
def test_a_pair_finds_its_recipe(teacher: str, student: str, name: str | None) -> None:
    assert recipes.for_pair(teacher, student) == name
    assert recipes.choose(None, teacher, student) == name


def test_choosing() -> None:
    assert recipes.choose(None, None, None) == "demo"
    assert recipes.choose("x.yaml", "a/b", "c/d") == "x.yaml"
    with pytest.raises(ConfigError, match="--teacher is given without --student"):
        recipes.choose(None, "a/b", None)
    with pytest.raises(ConfigError, match="--student is given without --teacher"):
        recipes.choose(None, None, "a/b")


def test_no_such_recipe_suggests_one() -> None:
    with pytest.raises(ConfigError, match="no recipe is named 'dmeo'") as caught:
        recipes.read("dmeo")
    assert caught.value.hint == "did you mean demo?"
    with pytest.raises(ConfigError, match=r"no recipe file none/demo\.yaml"):
        recipes.read("none/demo.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2", r"line 2: this is not valid YAML"),
        ("a: 1\na: 2", r"line 2: .*the key 'a' is given twice"),
        ("- 1", "a recipe is a mapping"),
        ("a: \xff", "cannot be read"),
    ],
)
def test_damaged_recipes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=message):
        recipes.read(path)


def test_a_tab_is_told_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "tabs.yaml"
    path.write_text("student:\n\tid: demo/small\n")
    with pytest.raises(ConfigError, match="line 2: this is not valid YAML") as caught:
        recipes.read(path)
    assert caught.value.hint == "indent with spaces: YAML takes no tab there"
    path.write_text("student: @small\n")
    with pytest.raises(ConfigError) as caught:
        recipes.read(path)
    assert caught.value.hint is None


def test_copy(tmp_path: Path) -> None:
    written = recipes.copy("demo", tmp_path)
    assert written == tmp_path / "demo.yaml"
    assert resolve(written).config == resolve("demo").config
    with pytest.raises(OutputError, match="exists"):
        recipes.copy("demo", tmp_path)
    recipes.copy("demo", tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="cannot be written"):
        recipes.copy("demo", tmp_path / "no" / "such.yaml")
    with pytest.raises(OutputError, match="neither"):
        recipes.copy("demo", tmp_path / "demo.txt")
