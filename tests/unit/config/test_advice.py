"""What a device makes of a plan."""

from __future__ import annotations

import pytest

from vlsi_cli.config import accelerators, advice, loading, memory, planning
from vlsi_cli.config.accelerators import GIB, Accelerator
from vlsi_cli.config.advice import Placement
from vlsi_cli.config.stage_plans import Records
from vlsi_cli.errors import ConfigError

PAIR = "qwen2-vl-7b-to-2b"


def judged(device: Accelerator, sets: tuple[str, ...] = (), **place: object) -> advice.Advice:
    def again(more):  # type: ignore[no-untyped-def]
        return loading.resolve(PAIR, [*sets, *more], {})

    records = Records(tokens := 1024)
    assert records.length == tokens
    return advice.advise(planning.plan(again(()), records), Placement(device, **place), records, again)  # type: ignore[arg-type]


def test_names_and_amounts() -> None:
    assert accelerators.accelerator("H100").memory == 80 * GIB
    assert accelerators.accelerator("48GiB") == Accelerator("48GiB", 48 * GIB, 0.0)
    assert accelerators.accelerator("24gb").memory == 24_000_000_000
    with pytest.raises(ConfigError, match="no device is named 'a100-8'") as caught:
        accelerators.accelerator("a100-8")
    assert "did you mean a100-80" in str(caught.value.hint)


def test_what_fits_needs_no_change() -> None:
    found = judged(accelerators.accelerator("h200"))
    assert found.fits is True
    assert found.ladder == ()
    assert all(seconds and seconds > 0 for seconds in found.seconds)


def test_the_ladder_goes_down_and_its_settings_are_accepted() -> None:
    sets = ("interaction.train=full", "reinforcement.train=full", "interaction.gradient_checkpointing=false",
            "reinforcement.gradient_checkpointing=false", "interaction.batch_size=8")  # fmt: skip
    before = judged(accelerators.accelerator("b200"), sets)
    small = Accelerator("small", max(p for p in before.peaks if p) // 2, 100)
    found = judged(small, sets)
    assert found.fits is False
    peaks = [rung.peak for rung in found.ladder]
    assert peaks == sorted(peaks, reverse=True)
    assert [rung.fits for rung in found.ladder[:-1]] == [False] * (len(peaks) - 1)
    assert found.ladder[-1].fits
    settings = [text for rung in found.ladder for text in rung.settings]
    again = judged(small, (*sets, *settings))
    assert again.fits
    assert max(p for p in again.peaks if p) == found.ladder[-1].peak


def test_no_bits_are_taken_from_experts() -> None:
    models = ("teacher.id=Qwen/Qwen3.5-35B-A3B", "student.id=Qwen/Qwen3.5-2B")
    found = judged(Accelerator("small", 24 * GIB, 100), models)
    settings = [text for rung in found.ladder for text in rung.settings]
    assert "teacher.placement=cpu" in settings
    assert not any("quantization" in text for text in settings)


def test_a_cache_in_place_of_a_large_model() -> None:
    """What the same plan asks for with the cache given, whatever else the ladder has changed."""
    full = ("interaction.train=full", "reinforcement.train=full")
    device = accelerators.accelerator("a100-40")
    found, cached = judged(device, full), judged(device, (*full, "teacher.cache=there"))
    assert found.fits is False
    assert found.cached == max(peak for peak in cached.peaks if peak) < max(p for p in found.peaks if p)
    assert found.building == max(found.peaks[:2])
    assert cached.cached is None is cached.building
    assert judged(accelerators.accelerator("b200")).cached is None
    away = judged(Accelerator("small", 24 * GIB, 100), (*full, "teacher.quantization=8bit"))
    assert away.cached == found.cached


def test_what_never_fits_says_so() -> None:
    found = judged(Accelerator("tiny", GIB, 1))
    assert found.fits is False
    assert found.ladder
    assert not any(rung.fits for rung in found.ladder)


def test_sharding_divides_what_lies_in_pieces_only() -> None:
    """Heads, embeddings that do not train and the vision tower are whole everywhere, as activations and losses are."""
    one = judged(accelerators.accelerator("h200"))
    copies = judged(accelerators.accelerator("h200"), count=4)
    own, shared = (judged(accelerators.accelerator("h200"), count=4, sharding=s) for s in ("student", "both"))
    assert copies.peaks == one.peaks
    assert copies.seconds[0] == pytest.approx(one.seconds[0] / 4)
    plan = planning.plan(loading.resolve(PAIR), Records(1024))
    assert plan.student.facts is not None
    assert plan.teacher is not None
    assert plan.teacher.facts is not None
    for stage, before, half, after in zip(plan.stages, one.peaks, own.peaks, shared.peaks, strict=True):
        assert stage.memory is not None
        assert stage.divided is not None
        states = stage.memory.total - stage.memory.activations - stage.memory.losses
        assert stage.divided.student + stage.divided.teacher <= states
        assert None not in (before, half, after)
        assert after <= half < before
    interaction = next(stage for stage in plan.stages if stage.stage == "interaction")
    assert interaction.memory is not None
    assert interaction.divided is not None
    # what is left is what both models have outside of their layers
    states = interaction.memory.total - interaction.memory.activations - interaction.memory.losses
    left = states - interaction.divided.student - interaction.divided.teacher
    small, large = plan.student.facts, plan.teacher.facts
    # both in bf16: adapters train
    assert left == 2 * sum(facts.parameters - facts.decoder_parameters for facts in (small, large))


def test_zero_2_divides_gradients_and_moments_only() -> None:
    one, zero2, zero3, own = (
        judged(accelerators.accelerator("h200"), count=4, sharding=s)
        for s in ("none", "zero2", "zero3", "student")
    )
    plan = planning.plan(loading.resolve(PAIR), Records(1024))
    for stage, before, half, after, fsdp in zip(
        plan.stages, one.peaks, zero2.peaks, zero3.peaks, own.peaks, strict=True
    ):
        assert stage.memory is not None
        assert stage.trained_parameters is not None
        # 4 + 8 bytes a number become a quarter, beside a quarter of the weights once more and the buffers
        saved = 12 * stage.trained_parameters * 3 // 4 - stage.trained_parameters - memory.ZERO_BUCKETS
        assert before - half == pytest.approx(saved * (1 + advice.OVERHEAD), abs=2)
        assert after > fsdp


def test_the_last_change_moves_the_large_model_away() -> None:
    found = judged(Accelerator("small", 14 * GIB, 1))
    assert found.ladder[-1].settings == ("teacher.quantization=none", "teacher.placement=cpu")
    assert " GiB a process)" in found.ladder[-1].why  # of host memory
    bits = [rung.peak for rung in found.ladder if rung.settings[0].startswith("teacher.quantization=")]
    assert bits[0] > bits[1] > bits[2]
    plans = {
        sets: planning.plan(loading.resolve(PAIR, sets), Records(1024))
        for sets in ((), ("teacher.placement=cpu",), ("teacher.cache=none",))
    }
    weights = [plan.stages[-2].memory.weights for plan in plans.values() if plan.stages[-2].memory]
    assert plans[()].stages[-2].stage == "interaction"
    assert weights[0] > weights[1] > weights[2]
    facts = plans[()].teacher.facts  # type: ignore[union-attr]
    assert facts is not None
    assert weights[0] - weights[1] == 2 * (facts.decoder_parameters - facts.layer_parameters)
    assert weights[0] - weights[2] == 2 * (facts.parameters - facts.embedding_parameters)


def test_weights_of_a_quantized_large_model() -> None:
    """A matrix of a decoder layer takes 8 or 4.13 bits a number; embeddings, head and vision tower stay bf16."""
    weights = {}
    for bits in ("none", "8bit", "4bit"):
        plan = planning.plan(loading.resolve(PAIR, [f"teacher.quantization={bits}"]), Records(1024))
        assert plan.teacher is not None
        assert plan.teacher.facts is not None
        memory = plan.stages[-2].memory
        assert memory is not None
        weights[bits] = memory.weights
    layers = plan.teacher.facts.decoder_parameters
    assert weights["none"] - weights["8bit"] == layers
    assert weights["none"] - weights["4bit"] == pytest.approx(layers * (2 - 4.127 / 8), rel=1e-4)
