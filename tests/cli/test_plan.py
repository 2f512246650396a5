"""``vlsi plan`` through the real app."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from vlsi_cli.app import app

PAIR = ("--teacher", "Qwen/Qwen2-VL-7B", "--student", "2b")


pytestmark = pytest.mark.usefixtures("elsewhere")


def vlsi(*words: str) -> Result:
    return CliRunner().invoke(app, ["plan", *words], prog_name="vlsi")


def test_all_devices_side_by_side() -> None:
    done = vlsi(*PAIR)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line[:1].isalpha()}
    assert "yes" in rows["h200"]
    assert "no" in rows["t4"]


def test_a_pair_without_a_recipe_and_without_data() -> None:
    """Whether it fits is asked before there are data; what depends on them is not known."""
    done = vlsi("--teacher", "google/gemma-3-27b-it", "--student", "4b", "--device", "h200", "--json")
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert [stage["steps"] for stage in plan["stages"]] == [None] * len(plan["stages"])
    assert any("no data are given" in note for note in plan["notes"])
    assert not any("two families" in note for note in plan["notes"])
    mixed = json.loads(vlsi(*PAIR[:3], "Qwen/Qwen3.5-2B", "--device", "h200", "--json").stdout)
    assert any("two families" in note for note in mixed["notes"])
    pair = ("--teacher", "google/gemma-3-27b-it", "--student", "4b", "--device", "h200", "--json")
    named = json.loads(vlsi(*pair, "--set", "data.sources.0.path=mine.jsonl").stdout)
    assert not any("no data are given" in note for note in named["notes"])
    given = json.loads(vlsi(*PAIR, "--device", "h200", "--json").stdout)
    assert not any("no data are given" in note for note in given["notes"])


def test_a_pair_whose_layers_are_not_alike() -> None:
    """A table of inputs of all layers trains with the embeddings, and an audio tower is held and frozen."""
    pair = ("--teacher", "google/gemma-4-31B-it", "--student", "e2b", "--device", "h200", "--json")
    plan = json.loads(vlsi(*pair, "--set", "reinforcement.train=full").stdout)
    assert plan["student"]["facts"]["unread"] == 307_183_904
    [last] = [stage for stage in plan["stages"] if stage["stage"] == "reinforcement"]
    assert last["trained_parameters"] == 5_104_297_504 - 168_544_256 - 307_183_904


def test_gemma_3_does_not_fit_the_range_of_fp16() -> None:
    """Whichever of both is stored or computed in it; what is left to the machine is told of."""
    pair = ("--teacher", "google/gemma-3-12b-it", "--student", "4b", "--device", "h200")
    for setting, shown in (("precision", "4b"), ("teacher.dtype", "12b"), ("student.dtype", "4b")):
        done = vlsi(*pair, "--set", f"{setting}=fp16")
        assert done.exit_code == 2, done.output
        assert (
            f"'google/gemma-3-{shown}-it' cannot be used in fp16: the states of Gemma 3 pass" in done.stderr
        )
        assert "hint: use bf16" in done.stderr
    assert "on a GPU without bf16, set precision to fp32" in vlsi(*pair).stdout
    assert "without bf16" not in vlsi(*pair, "--set", "precision=bf16").stdout
    assert vlsi(*PAIR, "--device", "h200", "--set", "precision=fp16").exit_code == 0


def test_weights_in_fp8_are_refused_by_the_name_of_those_in_bf16() -> None:
    """Of either model, before anything is fetched."""
    for pair in (
        ("14B-Instruct-2512", "3b"),
        ("14B-Instruct-2512-BF16", "mistralai/Ministral-3-3B-Instruct-2512"),
    ):
        done = vlsi("--teacher", f"mistralai/Ministral-3-{pair[0]}", "--student", pair[1], "--device", "h200")
        assert done.exit_code == 2, done.output
        size = "14B" if pair[1] == "3b" else "3B"
        assert f"the weights of 'mistralai/Ministral-3-{size}-Instruct-2512' are stored in FP8" in done.stderr
        assert f"hint: take mistralai/Ministral-3-{size}-Instruct-2512-BF16" in done.stderr


def test_one_device_and_what_to_change() -> None:
    done = vlsi(*PAIR, "--device", "25GiB", "--tokens", "2048")
    assert done.exit_code == 0, done.output
    assert "What to change, in this order" in done.stdout
    assert "interaction.batch_size=1" in done.stdout


def test_json_has_parts_that_add_up_and_devices() -> None:
    plan = json.loads(
        vlsi(*PAIR, "--device", "h200", "--devices", "2", "--sharding", "both", "--json").stdout
    )
    for stage in plan["stages"]:
        memory = stage["memory"]
        assert memory["total"] == sum(size for part, size in memory.items() if part != "total")
        assert stage["step_flops"] > 0
    (placed,) = plan["devices"]
    assert placed["device"]["name"] == "h200"
    assert (placed["count"], placed["sharding"], placed["fits"]) == (2, "both", True)


def test_longer_records_ask_for_more() -> None:
    short, long = (
        json.loads(vlsi(*PAIR, "--tokens", tokens, "--json", "--device", "h200").stdout)["devices"][0]
        for tokens in ("512", "4096")
    )
    assert all(a < b for a, b in zip(short["peaks"], long["peaks"], strict=True))
    assert all(a < b for a, b in zip(short["seconds"], long["seconds"], strict=True))


def test_an_unknown_device_names_the_known_ones() -> None:
    done = vlsi(*PAIR, "--device", "h2000")
    assert done.exit_code == 2
    assert "no device is named 'h2000'" in done.stderr
    assert "did you mean h200" in done.stderr


def test_the_plan_loads_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from typer.testing import CliRunner; from vlsi_cli.app import app; "
        "assert CliRunner().invoke(app, ['plan', '--recipe', 'demo']).exit_code == 0; print('torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "False\n"


def test_what_a_run_would_refuse_is_not_planned() -> None:
    done = vlsi(*PAIR, "--devices", "2", "--sharding", "both", "--set", "teacher.quantization=4bit")
    assert done.exit_code == 2
    assert "cannot divide a quantized large model" in " ".join(done.stderr.split())


def test_strict_fails_where_a_stage_does_not_fit() -> None:
    """After the whole plan has been printed, and with one document."""
    assert vlsi(*PAIR, "--device", "h200", "--strict").exit_code == 0
    done = vlsi(*PAIR, "--device", "25GiB", "--strict", "--json")
    assert done.exit_code == 10
    (placed,) = json.loads(done.stdout)["devices"]
    largest = max(placed["peaks"]) / 2**30
    told = f"error: the run does not fit 25GiB: interaction (small) asks for {largest:.1f} GiB of 25.0 GiB\n"
    assert done.stderr.startswith(told)
    settings = [word for rung in placed["ladder"] for word in rung["settings"]]
    assert (
        done.stderr[len(told) :] == f"hint: it fits with {' '.join(f'--set {word}' for word in settings)}\n"
    )
    again = [word for setting in settings for word in ("--set", setting)]
    assert vlsi(*PAIR, "--device", "25GiB", "--strict", *again).exit_code == 0, "what the hint says is so"
    done = vlsi(*PAIR, "--device", "2GiB", "--strict")
    assert done.exit_code == 10
    assert "hint: take a larger device" in done.stderr
    assert "What to change, in this order" in done.stdout


def test_strict_fails_where_nothing_is_known_and_needs_a_device() -> None:
    done = vlsi("--teacher", "a/large", "--student", "b/small", "--device", "h200", "--strict")
    assert done.exit_code == 10
    assert "error: nothing says whether the run fits h200" in done.stderr
    done = vlsi(*PAIR, "--strict")
    assert done.exit_code == 2
    assert "there is no --device" in done.stderr
