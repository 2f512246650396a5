"""Which process of a launch this is; accelerate's shipped configurations; what a run says of how it computes."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from torch import distributed

from vlsi_cli.config import launching
from vlsi_cli.config.loading import resolve
from vlsi_cli.engine import processes
from vlsi_cli.engine.devices import round_products
from vlsi_cli.engine.runs import dividing, models
from vlsi_cli.engine.runs.choices import chosen, resolved_choices
from vlsi_cli.engine.runs.dividing import resolve_sharding
from vlsi_cli.engine.stages import InteractionStage
from vlsi_cli.engine.training.signals import heed_signals
from vlsi_cli.errors import ConfigError, ProcessError

CONFIGURATIONS = sorted((Path(__file__).parents[2] / "recipes/accelerate").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _fresh() -> None:
    launching.fsdp_asked.cache_clear()
    launching.zero_asked.cache_clear()


def started(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_without_a_launcher_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (launching.rank(), launching.size(), launching.is_launched()) == (0, 1, False)
    assert processes.gather("own") == ["own"]
    assert processes.on_first(lambda: 5) == 5
    with processes.together(), processes.joined(torch.device("cpu")):
        processes.wait()


def test_a_launcher_that_says_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, RANK="first", WORLD_SIZE="2")
    with pytest.raises(ConfigError, match="RANK is 'first'"):
        launching.rank()


def test_a_process_stops_when_its_launcher_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed launcher tells nobody: its processes then have another parent."""
    started(monkeypatch, TORCHELASTIC_RUN_ID="run")
    monkeypatch.setattr(processes, "LOOK", timedelta(milliseconds=10))
    with heed_signals() as wish, processes.ending_with_the_launcher():
        time.sleep(0.1)
        assert wish.signal is None
        monkeypatch.setattr(os, "getppid", lambda: 1)
        end = time.monotonic() + 120
        while wish.signal is None and time.monotonic() < end:
            time.sleep(0.01)
    assert wish.signal == signal.SIGTERM
    with (
        pytest.raises(ProcessError, match="launcher of this run was killed"),
        processes.ending_with_the_launcher(),
    ):
        pass


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")
def test_a_hangup_is_a_wish_to_stop_unless_it_is_ignored() -> None:
    """``nohup`` has it ignored."""
    for before, wanted in ((signal.SIG_DFL, signal.SIGHUP), (signal.SIG_IGN, None)):
        held = signal.signal(signal.SIGHUP, before)
        try:
            with heed_signals() as wish:
                signal.raise_signal(signal.SIGHUP)
                assert wish.signal == wanted
                assert wish.exit_code == (129 if wanted else 130)
            assert signal.getsignal(signal.SIGHUP) is before
        finally:
            signal.signal(signal.SIGHUP, held)


@pytest.mark.parametrize(("word", "count"), [(None, None), ("auto", "auto"), ("4", 4)])
def test_numbers_of_processes(word: str | None, count: object) -> None:
    assert launching.processes(word) == count


@pytest.mark.parametrize("word", ["0", "-1", "two", "1.5", ""])
def test_what_is_no_number_of_processes(word: str) -> None:
    with pytest.raises(ConfigError, match="should be a whole number from 1, or auto"):
        launching.processes(word)


def test_processes_do_not_share_an_apple_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
    with pytest.raises(ConfigError, match="cannot share the device 'mps'"):
        processes.own_device(torch.device("mps"), chosen=False)


def test_what_accelerate_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, WORLD_SIZE="2", RANK="0", ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    assert resolve_sharding("auto") == "both"
    assert resolve_sharding("student") == "student"
    launching.fsdp_asked.cache_clear()
    assert resolve_sharding("auto") == "none"  # taken out of the environment, for nobody else to act upon
    started(monkeypatch, ACCELERATE_USE_FSDP="true", FSDP_VERSION="1")
    launching.fsdp_asked.cache_clear()
    with pytest.raises(ConfigError, match="asks for FSDP 1"):
        resolve_sharding("auto")
    launching.fsdp_asked.cache_clear()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert resolve_sharding("both") == "none"


@pytest.mark.parametrize("stage", ["2", "3"])
def test_accelerate_asks_for_deepspeed(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    started(monkeypatch, WORLD_SIZE="2", RANK="0", ACCELERATE_USE_DEEPSPEED="true")
    started(monkeypatch, ACCELERATE_DEEPSPEED_ZERO_STAGE=stage)
    # What stands beside the stage is the recipe's business.
    started(monkeypatch, ACCELERATE_GRADIENT_CLIPPING="0.1", ACCELERATE_GRADIENT_ACCUMULATION_STEPS="8")
    assert resolve_sharding("auto") == f"zero{stage}"
    assert resolve_sharding("student") == "student"
    assert "ACCELERATE_USE_DEEPSPEED" not in os.environ
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert resolve_sharding("zero3") == "none"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_DEEPSPEED_CONFIG_FILE", "own.json", "a configuration of DeepSpeed's own, own.json"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu", "offloads to cpu with DeepSpeed"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "nvme", "offloads to nvme with DeepSpeed"),
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "1", "asks for stage 1 of DeepSpeed's ZeRO"),
    ],
)
def test_what_is_not_done_with_deepspeed(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    started(monkeypatch, WORLD_SIZE="2", RANK="0", ACCELERATE_USE_DEEPSPEED="true", **{variable: value})
    for _ in range(2):  # told again, not forgotten
        with pytest.raises(ConfigError, match=message):
            resolve_sharding("auto")


@pytest.mark.parametrize(
    ("sharding", "dtype", "sets", "message"),
    [
        ("zero2", torch.float16, [], "cannot train in fp16"),
        ("zero3", torch.float32, ["compile=true"], "`compile` does not go with `sharding: zero3`"),
        ("zero2", torch.float32, ["compile=true"], None),
        ("student", torch.float16, ["compile=true"], None),
    ],
)
def test_what_does_not_go_with_deepspeed(
    monkeypatch: pytest.MonkeyPatch, sharding: str, dtype: torch.dtype, sets: list[str], message: str | None
) -> None:
    config = resolve("demo", [*sets, f"sharding={sharding}"]).config
    monkeypatch.setattr(dividing, "find_spec", lambda name: name)
    if message is None:
        dividing.require_zero(config, config.sharding, dtype)
    else:
        with pytest.raises(ConfigError, match=message):
            dividing.require_zero(config, config.sharding, dtype)


def test_deepspeed_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve("demo", ["sharding=zero2"]).config
    monkeypatch.setattr(dividing, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package deepspeed") as error:
        dividing.require_zero(config, "zero2", torch.float32)
    assert error.value.hint == "pip install 'vlsi-cli[deepspeed]'"


def test_accelerate_neither_divides_losses_nor_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, ACCELERATE_GRADIENT_ACCUMULATION_STEPS="4", ACCELERATE_DYNAMO_BACKEND="EAGER")
    AcceleratorState._reset_state()  # it keeps what the first accelerator of a process saw
    accelerator = models.new_accelerator(torch.device("cpu"), torch.float32)
    model = accelerator.prepare(torch.nn.Linear(1, 1, bias=False))
    assert type(model) is torch.nn.Linear
    accelerator.backward(8 * model.weight.sum())
    assert model.weight.grad == 8


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=lambda file: file.stem)
def test_accelerate_reads_its_configurations(file: Path) -> None:
    config = load_config_from_file(str(file))
    written = yaml.safe_load(file.read_text("utf-8"))
    assert config.num_processes == written["num_processes"]
    assert config.distributed_type == written["distributed_type"]
    assert "-m vlsi_cli distill" in file.read_text("utf-8")


def test_there_are_configurations() -> None:
    assert [file.stem for file in CONFIGURATIONS] == [
        *("ddp", "deepspeed-zero2", "deepspeed-zero3", "fsdp2", "multi-node", "single-gpu")
    ]


def test_choices_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = ["compile=true", "teacher.placement=disk", "teacher.attn_implementation=eager", "device=cpu"]
    config = resolve("demo", sets).config
    cpu = torch.device("cpu")
    found = resolved_choices(config, cpu, torch.bfloat16, "none")
    assert found["attention"] == {"student": "sdpa", "teacher": "eager"}
    assert found["teacher"] == {"placement": "disk", "precision": "bf16", "quantization": "none"}
    assert chosen(found) == (
        "computing on cpu in bf16, attention eager and sdpa, losses and decoder layers compiled, "
        "the large model's layers on disk"
    )
    started(monkeypatch, WORLD_SIZE="2", RANK="0")
    text = chosen(resolved_choices(config, cpu, torch.bfloat16, "both"))
    assert text.endswith("2 processes over gloo, both models are divided among them")


def test_fp32_is_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        assert round_products(True, torch.bfloat16)
        assert torch.get_float32_matmul_precision() == "high"
        assert not round_products(True, torch.float32)
        assert not round_products(False, torch.bfloat16)
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        round_products(False, torch.float32)


def test_a_sum_that_decides_for_all_has_the_same_bits_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that add up in orders of their own may differ in the last bit, and then draw different matches."""
    values = ([1e16, 0.1], [-1e16, 0.2], [1.0, 0.3])  # of the first three, another order makes 0
    parts = [torch.tensor(value, dtype=torch.float64) for value in values]

    def all_gather(found: list[torch.Tensor], own: torch.Tensor) -> None:
        for place, part in zip(found, parts, strict=True):
            place.copy_(part)

    monkeypatch.setattr(processes, "size", lambda: len(parts))
    monkeypatch.setattr(distributed, "all_gather", all_gather)
    monkeypatch.setattr(distributed, "all_reduce", lambda *_: pytest.fail("whose order nobody knows"))
    sums = [processes.add_up_alike(part).tolist() for part in parts]  # as each process does
    assert sums == [[1.0, 0.1 + 0.2 + 0.3]] * 3
    stage = SimpleNamespace(generator=None, _matcher=lambda matrix, generator: matrix.tolist())
    stage.generator = torch.Generator()
    monkeypatch.setattr(distributed, "all_gather", lambda found, own: [place.copy_(own) for place in found])
    drawn = InteractionStage._drawn(stage, torch.tensor([[2.0, 4.0]]), 2)  # type: ignore[arg-type]
    assert drawn == [[1.0, 2.0]]
