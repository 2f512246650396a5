from __future__ import annotations

import pytest
import torch

from vlsi_cli.engine import devices
from vlsi_cli.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture
def cuda(monkeypatch):
    """A machine that claims two CUDA devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.fixture
def bare(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_takes_the_best_device(cuda):
    assert devices.resolve_device("auto") == torch.device("cuda", 1)
    assert devices.resolve_device("cuda") == torch.device("cuda", 1)
    assert devices.resolve_device("cuda:0") == torch.device("cuda", 0)
    assert devices.resolve_device("cpu") == CPU
    with pytest.raises(ConfigError, match=r"has 2 CUDA device\(s\)"):
        devices.resolve_device("cuda:2")


def test_auto_without_gpu_is_cpu(bare):
    assert devices.resolve_device("auto") == CPU


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps", "gpu", "xpu", "meta", ""])
def test_devices_that_are_not_here(bare, name):
    with pytest.raises(ConfigError) as error:
        devices.resolve_device(name)
    assert error.value.exit_code == 2


def test_auto_precision(monkeypatch):
    gpu = torch.device("cuda", 0)
    assert devices.resolve_precision("auto", CPU) == torch.float32
    assert devices.resolve_precision("auto", torch.device("mps")) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert devices.resolve_precision("auto", gpu) == torch.bfloat16
    # Turing and older: torch says yes, and emulates
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert devices.resolve_precision("auto", gpu) == torch.float16


def test_named_precisions():
    for name in ("fp32", "bf16"):
        assert devices.precision_name(devices.resolve_precision(name, CPU)) == name
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        devices.resolve_precision("fp16", CPU)
    with pytest.raises(ConfigError, match="'half' is not a precision"):
        devices.resolve_precision("half", CPU)


def test_attention():
    assert devices.resolve_attention("auto", CPU) == "sdpa"
    assert devices.resolve_attention("eager", CPU) == "eager"
    with pytest.raises(ConfigError, match="flash_attention_2 needs a CUDA device"):
        devices.resolve_attention("flash_attention_2", CPU)
    with pytest.raises(ConfigError, match="not an attention implementation"):
        devices.resolve_attention("fast", CPU)


def test_seeded_leaves_the_generators_of_other_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("the GPUs' states are not kept"))
    with devices.seeded(4):
        pass


def test_seeded_leaves_the_generator():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with devices.seeded(4, CPU):
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with devices.seeded(4):
        assert torch.equal(torch.rand(2), inside)
