from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlsi_cli.config import reach
from vlsi_cli.config.evaluation import EvaluationConfig
from vlsi_cli.config.loading import resolve
from vlsi_cli.config.missing import model_need
from vlsi_cli.config.planning import needs, plan
from vlsi_cli.config.presence import Need, cached_snapshot, has_weights
from vlsi_cli.config.run import DataConfig, ModelConfig
from vlsi_cli.config.words import source_from_word
from vlsi_cli.errors import CompatibilityError, ConfigError, DataError, ModelError

PAIR = "qwen2-vl-72b-to-2b"


def test_target_layers_and_windows_of_the_papers_pair() -> None:
    made = plan(resolve(PAIR))
    assert made.teacher is not None
    assert made.student.targets == (2, 6, 10, 14, 18, 22, 26)
    assert made.teacher.targets == tuple(range(2, 80, 4))
    # With 7 and 20 targets the last reachable column of row s is 13 + s (the paper's Figure 5).
    for row, pair in enumerate(made.pairs):
        assert pair.large == made.teacher.targets[row : 13 + row + 1]


def test_host_memory_of_a_large_model_that_lies_there() -> None:
    elsewhere = plan(resolve(PAIR, ["teacher.placement=disk"]))
    made = plan(resolve(PAIR, ["teacher.placement=cpu"]))
    assert made.teacher is not None
    assert made.teacher.facts is not None
    assert elsewhere.host_memory == 0
    assert made.host_memory == 2 * made.teacher.facts.decoder_parameters
    said = f"lie in {made.host_memory / 2**30:.1f} GiB of host memory, in every process"
    assert [said in note for note in made.notes].count(True) == 1
    assert not any("host memory" in note for note in elsewhere.notes)


@pytest.mark.parametrize("name", ["llava-ov-72b-to-0.5b", "llava-ov-72b-to-7b"])
def test_target_layers_of_llava_onevision(name: str) -> None:
    made = plan(resolve(name))
    assert made.teacher is not None
    assert (made.student.targets, made.teacher.targets) == ((4, 12, 20), (10, 30, 50, 70))


@pytest.mark.parametrize("order", [True, False])
@pytest.mark.parametrize("search", [True, False])
def test_windows_are_those_of_the_matching(order: bool, search: bool) -> None:
    pytest.importorskip("torch")
    from vlsi_cli.engine.matching.window import reachable

    sets = [f"interaction.matching.{key}={value}" for key, value in
            (("order_preservation", order), ("search_range", search))]  # fmt: skip
    made = plan(resolve(PAIR, sets))
    assert made.teacher is not None
    mask = reachable(7, 20, order_preservation=order, search_range=search).tolist()
    for row, pair in zip(mask, made.pairs, strict=True):
        chosen = [layer for layer, can in zip(made.teacher.targets, row, strict=True) if can]
        assert list(pair.large) == chosen


def test_stages_and_steps_by_hand() -> None:
    made = plan(resolve(PAIR))
    shown = [(stage.stage, stage.side, stage.effective_batch, stage.steps) for stage in made.stages]
    assert shown == [
        ("verbalization", "large", 256, 11144),  # ceil(2,852,771 / 256)
        ("verbalization", "small", 512, 5572),
        ("interaction", "small", 256, 11144),
        ("reinforcement", "small", 512, 5572),
    ]


def test_memory_by_hand() -> None:
    """Interaction, 72B to 2B with LoRA: both models in bf16, all verbalizers and the adapters in fp32."""
    stage = plan(resolve(PAIR)).stages[2]
    lora = 28 * 64 * (2 * (1536 + 1536) + 2 * (1536 + 256) + 3 * (1536 + 8960))
    trained = lora + 7 * 3 * 1536**2
    frozen = 73_405_560_320 + 2_208_985_600
    assert stage.trained_parameters == trained
    assert stage.memory is not None
    assert stage.memory.weights == 2 * frozen + 4 * lora
    assert stage.memory.verbalizers == 4 * (20 * 3 * 8192**2 + 7 * 3 * 1536**2)
    assert stage.memory.gradients == 4 * trained
    assert stage.memory.optimizer == 8 * trained
    assert stage.memory.total > stage.memory.weights


def test_full_training_counts_what_trains() -> None:
    made = plan(
        resolve(PAIR, ["interaction.train=full", "reinforcement.train=full", "reinforcement.vision=true"])
    )
    facts = made.student.facts
    assert facts is not None
    assert made.stages[2].trained_parameters == facts.decoder_parameters + 7 * 3 * 1536**2
    assert made.stages[3].trained_parameters == facts.parameters == 2_208_985_600


def test_reused_verbalizers_skip_the_large_stage(tmp_path: Path) -> None:
    made = plan(resolve(PAIR, [f"teacher.verbalizers={tmp_path}"]))
    assert [stage.side for stage in made.stages] == ["small"] * 3
    assert Need("teacher.verbalizers", "verbalizers", str(tmp_path), True, None) in made.needs


def test_last_layer_distillation_needs_no_verbalizers() -> None:
    sets = ["interaction.intermediate=none", "verbalization=null", "teacher_verbalization=null"]
    made = plan(resolve(PAIR, sets))
    assert [stage.stage for stage in made.stages] == ["interaction", "reinforcement"]
    assert made.pairs == ()


def test_a_loss_on_the_answers_is_one_more_head(tmp_path: Path) -> None:
    def work(*sets: str) -> int:
        made = next(each for each in plan(resolve(PAIR, [*sets])).stages if each.stage == "interaction")
        assert made.step_flops is not None
        return made.step_flops

    assert work("interaction.weights.answers=1") > work("interaction.weights.last=2") == work()


def test_too_many_small_targets_name_both_sides() -> None:
    with pytest.raises(CompatibilityError, match=r"26 target layers .* only 20") as caught:
        plan(resolve(PAIR, ["student.targets.stride=1"]))
    assert "Qwen2-VL-2B" in caught.value.message
    assert "Qwen2-VL-72B" in caught.value.message


@pytest.mark.parametrize("layers", ["[2, 28]", "[2, 40]"])
def test_targets_beyond_the_model_are_refused(layers: str) -> None:
    with pytest.raises(CompatibilityError, match="between 1 and 27"):
        plan(resolve(PAIR, [f"student.targets.layers={layers}"]))


def test_epochs_over_endless_puzzles_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"asks for epochs, but data.sources.0 \(patterns\) is endless"):
        plan(resolve("demo", ["interaction.epochs=1"]))


def test_a_large_model_that_is_the_smaller_one_is_a_note() -> None:
    flags = {"teacher.id": "Qwen/Qwen2-VL-2B-Instruct", "student.id": "Qwen/Qwen2-VL-7B-Instruct"}
    assert any("were they swapped?" in note for note in plan(resolve(PAIR, [], flags)).notes)
    assert not any("swapped" in note for note in plan(resolve(PAIR, [])).notes)


def test_an_unknown_model_leaves_gaps_and_a_note() -> None:
    flags = {
        "teacher.id": "someone/large",
        "student.id": "someone/small",
        "data.sources": [{"kind": "patterns"}],
    }
    made = plan(
        resolve(
            None, [f"{stage}.steps=2" for stage in ("verbalization", "interaction", "reinforcement")], flags
        )
    )
    assert made.student.facts is None
    assert all(stage.memory is None for stage in made.stages)
    assert any("someone/large" in note for note in made.notes)


# ------------------------------------------------------------------ what is on this machine


def put_model(cache: Path, repo: str, *, shards: int = 0, missing: int = 0) -> Path:
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text("{}")
    names = [f"model-{number}.safetensors" for number in range(shards)]
    for name in names[: shards - missing]:
        (snapshot / name).write_bytes(b"")
    quoted = ", ".join(f'"{name}": "{name}"' for name in names)
    (snapshot / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{quoted}}}}}')
    return snapshot


def test_the_hubs_cache_is_read_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    model = ModelConfig(id="someone/model")
    assert model_need("student", model) == Need(
        "student", "model", "someone/model", False, "hf download someone/model"
    )
    snapshot = put_model(tmp_path, "someone/model", shards=2)
    assert cached_snapshot("someone/model") == snapshot
    assert model_need("student", model).present
    (snapshot / "model-1.safetensors").unlink()
    assert not has_weights(snapshot)
    assert not model_need("student", model).present
    assert model_need("student", ModelConfig(id="someone/model", init="random")).present


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlsi_cli.config.presence import hub_cache

    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert hub_cache() == tmp_path / "huggingface" / "hub"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert hub_cache() == tmp_path / "home" / "hub"


def test_everything_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError) as caught:
        reach.require(needs(resolve(PAIR).config))
    for word in ("Qwen/Qwen2-VL-72B-Instruct", "Qwen/Qwen2-VL-2B-Instruct", "data/mathplus.parquet"):
        assert word in caught.value.message
    assert "hf download Qwen/Qwen2-VL-72B-Instruct" in (caught.value.hint or "")


def test_missing_data_alone_are_a_data_error(tmp_path: Path) -> None:
    sets = [f"data.sources=[{{kind: llava, path: {tmp_path}/none.json}}]"]
    with pytest.raises(DataError, match=r"none\.json"):
        reach.require(needs(resolve("demo", sets).config))
    reach.require(needs(resolve("demo").config))


def test_relative_paths_of_a_run_start_from_where_the_command_is_given(tmp_path: Path) -> None:
    for path, told in (("none.json", True), (f"{tmp_path}/none.json", False)):
        wanted = needs(resolve("demo", [f"data.sources=[{{kind: llava, path: {path}}}]"]).config)
        with pytest.raises(DataError) as caught:
            reach.require(wanted, of_run=True)
        assert ("give it where the run was begun" in (caught.value.hint or "")) == told


def test_a_reachable_hub_is_left_to_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "hub_is_reachable", lambda: True)
    reach.require([model_need("student", ModelConfig(id="someone/model"))])
    with pytest.raises(ModelError):
        reach.require([model_need("student", ModelConfig(id="./none/model"))])


def test_root_stands_before_relative_paths_only() -> None:
    sources = [
        {"kind": "llava", "path": "a.json", "image_root": "img"},
        {"kind": "messages", "path": "/b.jsonl"},
    ]
    data = DataConfig.model_validate(
        {
            "root": "/r",
            "sources": [
                *sources,
                {"kind": "huggingface", "id": "x/y"},
                {"kind": "huggingface", "id": "t.parquet", "image_root": "img"},
            ],
        }
    )
    first, second, third, fourth = data.located_sources()
    assert (getattr(fourth, "id", ""), str(getattr(fourth, "image_root", ""))) == ("/r/t.parquet", "/r/img")
    assert (str(getattr(first, "path", "")), str(getattr(first, "image_root", ""))) == ("/r/a.json", "/r/img")
    assert str(getattr(second, "path", "")) == "/b.jsonl"
    assert getattr(third, "id", "") == "x/y"


def test_data_below_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    table, lines = {"kind": "huggingface", "id": "~/t.parquet"}, {"kind": "llava", "path": "~/a.json"}
    for root in ({}, {"root": "/r"}):
        data = DataConfig.model_validate({"sources": [table, lines], **root})
        first, second = data.located_sources()
        assert (getattr(first, "id", ""), str(getattr(second, "path", ""))) == ("/h/t.parquet", "/h/a.json")
    data = DataConfig.model_validate({"root": "~/d", "sources": [{"kind": "llava", "path": "a.json"}]})
    assert str(getattr(data.located_sources()[0], "path", "")) == "/h/d/a.json"
    assert EvaluationConfig(output=Path("~/eval")).output == Path("/h/eval")


# ------------------------------------------------------------------ words


def test_words_for_data(tmp_path: Path) -> None:
    assert source_from_word("patterns") == {"kind": "patterns"}
    assert source_from_word("owner/name") == {"kind": "huggingface", "id": "owner/name"}
    assert source_from_word(str(tmp_path)) == {"kind": "huggingface", "id": str(tmp_path)}
    for name, text, kind in (
        ("a.json", '[{"id": "1", "conversations": []}]', "llava"),
        ("b.jsonl", '{"messages": [{"content": "conversations"}]}', "messages"),
        ("c.json", '[{"messages": []}]', "messages"),
    ):
        (tmp_path / name).write_text(text)
        assert source_from_word(str(tmp_path / name)) == {"kind": kind, "path": str(tmp_path / name)}
    assert source_from_word(str(tmp_path / "none.json"))["kind"] == "llava"
    (tmp_path / "d.json").write_text("[]")
    with pytest.raises(DataError, match="holds no records"):
        source_from_word(str(tmp_path / "d.json"))
    (tmp_path / "d.json").write_text('[{"query": "?", "label": "!"}]')
    with pytest.raises(DataError, match="no record at its start"):
        source_from_word(str(tmp_path / "d.json"))
    (tmp_path / "e.NDJSON").write_text('{"messages": []}')
    assert source_from_word(str(tmp_path / "e.NDJSON"))["kind"] == "messages"
    (tmp_path / "f.jsonl").write_text('{"messages": []}', encoding="utf-16")
    with pytest.raises(DataError, match="is UTF-16"):
        source_from_word(str(tmp_path / "f.jsonl"))
    (tmp_path / "g.jsonl.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"no data are read from a file with the ending '\.gz'"):
        source_from_word(str(tmp_path / "g.jsonl.gz"))
    (tmp_path / "h.jsonl").mkdir()
    for word in (str(tmp_path / "h.jsonl"), os.devnull):
        with pytest.raises(DataError, match="is not a file"):
            source_from_word(word)
    with pytest.raises(ConfigError, match="is an address"):
        source_from_word("https://example.org/data.jsonl")
    with pytest.raises(ConfigError, match="no such file or folder") as caught:
        source_from_word("pattern")
    assert caught.value.hint == "did you mean patterns?"
