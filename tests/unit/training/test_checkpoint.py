"""Checkpoints: whole, hashed, rotated, and refused when they are not what they were."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from vlsi_cli.engine.training.checkpoint import Checkpoints, pack, unpack
from vlsi_cli.engine.training.optimizer import make_optimizer
from vlsi_cli.errors import CheckpointError, OutputError

CPU = torch.device("cpu")


def trained(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    layer = torch.nn.Linear(4, 4)
    optimizer = make_optimizer(layer.named_parameters())
    optimizer.param_groups[0]["lr"] = 0.1
    layer(torch.randn(2, 4)).square().sum().backward()
    optimizer.step()
    return layer, optimizer


def test_everything_comes_back(tmp_path: Path) -> None:
    layer, optimizer = trained(0)
    generator = torch.Generator().manual_seed(5)
    named = list(layer.named_parameters())
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(
        "interaction", 3, pack(named, optimizer.state.__getitem__, generator, CPU), {"stream": {"cursor": 7}}
    )
    drawn, noise = torch.rand(2, generator=generator), torch.rand(2)

    other, other_optimizer = trained(1)
    other_named, other_generator = list(other.named_parameters()), torch.Generator()
    found = checkpoints.latest("interaction")
    assert found is not None
    unpack(found, other_named, other_optimizer, other_generator, CPU)
    assert (found.step, found.values["stream"]["cursor"]) == (3, 7)
    for (_, p), (_, q) in zip(named, other_named, strict=True):
        assert torch.equal(p, q)
        for key, value in optimizer.state[p].items():
            assert torch.equal(value, other_optimizer.state[q][key])
    assert torch.equal(torch.rand(2, generator=other_generator), drawn)
    assert torch.equal(torch.rand(2), noise)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (2, 4, 6, 10):
        checkpoints.save("reinforcement", step, {"x": torch.ones(1)}, {})
    checkpoints.save("interaction", 1, {"x": torch.ones(1)}, {})
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["interaction-00000001", "reinforcement-00000006", "reinforcement-00000010"]
    found = checkpoints.latest("reinforcement")
    assert found is not None
    assert found.step == 10
    checkpoints.drop("reinforcement")
    assert checkpoints.latest("reinforcement") is None
    assert checkpoints.latest("interaction") is not None


def test_a_damaged_one_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save("interaction", 1, {"x": torch.ones(8)}, {})
    file = path / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="interaction-00000001 is damaged"):
        checkpoints.latest("interaction")
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoints.latest("interaction")


def test_a_half_written_one_is_never_seen(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / ".interaction-00000005-x.partial").mkdir()
    assert checkpoints.latest("interaction") is None


def test_one_of_other_parameters_is_refused(tmp_path: Path) -> None:
    layer, optimizer = trained(0)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(
        "interaction", 1, pack(list(layer.named_parameters()), optimizer.state.__getitem__, None, CPU), {}
    )
    found = checkpoints.latest("interaction")
    assert found is not None
    wider = torch.nn.Linear(5, 4)
    named = list(wider.named_parameters())
    with pytest.raises(CheckpointError, match="other parameters: weight"):
        unpack(found, named, make_optimizer(named), None, CPU)


def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("interaction", 1, {"x": torch.ones(1)}, {})

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vlsi_cli.engine.training.checkpoint.save_file", full)
    with pytest.raises(OutputError, match="no space is left on the disk"):
        checkpoints.save("interaction", 2, {"x": torch.ones(1)}, {})
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["interaction-00000001"]


def test_a_damaged_one_is_skipped_when_asked(tmp_path: Path) -> None:
    """Both kinds of damage, the newest two of three; what is told names them, and they are gone."""
    writer = Checkpoints(tmp_path, keep=3)
    for step in (2, 4, 7):
        writer.save("interaction", step, {"x": torch.full((8,), float(step))}, {"stream": {"cursor": step}})
    (tmp_path / "interaction-00000007" / "state.safetensors").write_bytes(b"short")
    state = tmp_path / "interaction-00000004" / "state.json"
    state.write_text(state.read_text().replace('"cursor": 4', '"cursor": 5'))
    with pytest.raises(CheckpointError, match="interaction-00000007 is damaged") as refused:
        writer.latest("interaction")
    assert "--skip-damaged" in str(refused.value.hint)
    told: list[str] = []
    found = Checkpoints(tmp_path, keep=3, skip=told.append).latest("interaction")
    assert found is not None
    assert (found.step, found.values["stream"]["cursor"]) == (2, 2)
    assert ["00000007" in told[0], "its values have another hash" in told[1]] == [True, True]
    assert [path.name for path in tmp_path.iterdir()] == ["interaction-00000002"]
    (tmp_path / "interaction-00000002" / "state.json").write_text("[" * 100_000)
    assert Checkpoints(tmp_path, skip=told.append).latest("interaction") is None


def test_one_under_the_name_of_another_step_is_damaged(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save("interaction", 3, {"x": torch.ones(1)}, {})
    path.rename(tmp_path / "interaction-00000009")
    with pytest.raises(CheckpointError, match="of another step"):
        Checkpoints(tmp_path).latest("interaction")


def test_the_newest_is_that_of_the_highest_step_whatever_the_clock_says(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step, written in ((9, 1_000_000_000), (10, 500_000_000)):
        path = checkpoints.save("interaction", step, {"x": torch.ones(1)}, {})
        os.utime(path, (written, written))
    found = checkpoints.latest("interaction")
    assert found is not None
    assert found.step == 10
