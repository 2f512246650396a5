"""What a device makes of a plan: peaks and times of each stage, and the changes that make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from vlsi_cli.config.accelerators import Accelerator
from vlsi_cli.config.loading import Resolved
from vlsi_cli.config.memory import TRAINED_WEIGHT, ZERO_BUCKETS
from vlsi_cli.config.planning import plan
from vlsi_cli.config.plans import Plan, StagePlan
from vlsi_cli.config.run import DistillConfig
from vlsi_cli.config.stage_plans import Records
from vlsi_cli.errors import ConfigError

Sharding = Literal["none", "student", "both", "zero2", "zero3"]
# Memory that the driver, the allocator's gaps and the libraries' own buffers take, as a share of what the plan counts.
OVERHEAD = 0.08


@dataclass(frozen=True)
class Placement:
    """Where a run would go.

    Attributes:
        device: one of these.
        count: how many.
        sharding: of the configuration: ``none`` copies everything to each device (DDP); ``student`` divides what
            trains and the small model's layers among them (FSDP2), ``both`` the large model's too; ``zero2`` divides
            gradients and moments (DeepSpeed), ``zero3`` what ``student`` does. Activations, losses, heads, embeddings
            that do not train and vision towers are whole on each.
        efficiency: share of the device's stated arithmetic that training reaches.
    """

    device: Accelerator
    count: int = 1
    sharding: Sharding = "none"
    efficiency: float = 0.4

    def peak(self, stage: StagePlan) -> int | None:
        """Bytes on the fullest device; None where a shape is unknown."""
        if stage.memory is None or stage.divided is None:
            return None
        pieces = gathered = 0
        if self.sharding == "zero2" and self.count > 1:
            pieces = stage.memory.gradients + stage.memory.optimizer
        elif self.sharding != "none" and self.count > 1:
            pieces, gathered = stage.divided.student, stage.divided.gathered
        if (
            self.sharding in ("zero2", "zero3") and self.count > 1
        ):  # its buffers, and the copy that AdamW changes
            gathered += ZERO_BUCKETS + (stage.trained_parameters or 0) * TRAINED_WEIGHT // self.count
        if self.sharding == "both" and self.count > 1:
            pieces += stage.divided.teacher
            gathered += stage.divided.gathered_teacher
        return round((stage.memory.total - pieces * (1 - 1 / self.count) + gathered) * (1 + OVERHEAD))

    def seconds(self, stage: StagePlan) -> float | None:
        """Time of a whole stage from its arithmetic alone; None when steps, shapes or the device are unknown."""
        if stage.step_flops is None or stage.steps is None or not self.device.teraflops:
            return None
        return stage.step_flops * stage.steps / (self.device.teraflops * 1e12 * self.efficiency * self.count)


@dataclass(frozen=True)
class Rung:
    """A change on top of all earlier ones.

    Attributes:
        settings: what to give with ``--set``.
        why: what it trades.
        peak: bytes of the largest stage with it.
        fits: whether every stage then fits.
    """

    settings: tuple[str, ...]
    why: str
    peak: int
    fits: bool


@dataclass(frozen=True)
class Advice:
    """A plan on a device.

    Attributes:
        peaks: bytes of each stage of the plan, in its order; None where a shape is unknown.
        seconds: time of each stage; None where unknown.
        fits: whether every stage fits; None where a shape is unknown.
        ladder: changes in the order in which they are tried, up to the first that fits; empty when the plan fits.
        cached: bytes of the largest stage of the plan if a teacher cache took the large model's place, where the plan
            does not fit with it; else None.
        building: bytes of the largest stage of the run that would come before it, which trains the verbalizers.
    """

    peaks: tuple[int | None, ...]
    seconds: tuple[float | None, ...]
    fits: bool | None
    ladder: tuple[Rung, ...]
    cached: int | None = None
    building: int | None = None


def advise(
    made: Plan, place: Placement, records: Records, again: Callable[[Sequence[str]], Resolved]
) -> Advice:
    """Judge a plan, and change it until it fits.

    Args:
        made: the plan as asked for.
        place: where it would go.
        records: what it was made with.
        again: resolves the same configuration with more ``--set`` texts.
    """
    peaks = tuple(place.peak(stage) for stage in made.stages)
    seconds = tuple(place.seconds(stage) for stage in made.stages)
    if any(peak is None for peak in peaks):
        return Advice(peaks, seconds, None, ())
    fits = _largest(peaks) <= place.device.memory
    ladder: list[Rung] = []
    settings: list[str] = []
    tried: set[str] = set()
    while not (fits or (ladder and ladder[-1].fits)):
        found = _next(again(settings).config, tried)
        if found is None:
            break
        word, change, why = found
        tried.add(word)
        if not change:
            continue
        try:
            changed = plan(again([*settings, *change]), records)
        except ConfigError:
            continue  # the change does not go together with what was asked for
        settings += change
        peak = _largest(place.peak(stage) for stage in changed.stages)
        if changed.host_memory:
            why = f"{why} ({changed.host_memory / 2**30:.0f} GiB a process)"
        ladder.append(Rung(tuple(change), why, peak, peak <= place.device.memory))
    cached = None if fits else _cached(place, records, again)
    first = [peak for peak, stage in zip(peaks, made.stages, strict=True) if stage.stage == "verbalization"]
    building = None if cached is None or not first else _largest(first)
    return Advice(peaks, seconds, fits, tuple(ladder), cached, building)


def _cached(place: Placement, records: Records, again: Callable[[Sequence[str]], Resolved]) -> int | None:
    """The largest stage of a run that reads the large model from a cache; None where it does, or has none."""
    large = again(()).config.teacher
    if large is None or large.cache is not None:
        return None
    instead = ("teacher.cache=cache", "teacher.placement=device", "teacher.quantization=none")
    try:
        return _largest(place.peak(stage) for stage in plan(again(instead), records).stages)
    except ConfigError:  # it does not go together with what was asked for
        return None


def _largest(peaks: Iterable[int | None]) -> int:
    return max((peak for peak in peaks if peak is not None), default=0)


def _next(config: DistillConfig, tried: set[str]) -> tuple[str, list[str], str] | None:
    """The next change that was not tried yet, as (word, ``--set`` texts, why); texts may be empty."""
    stages = {
        name: stage
        for name in ("verbalization", "teacher_verbalization", "interaction", "reinforcement")
        if (stage := getattr(config, name)) is not None
    }
    trained = [stage for name, stage in stages.items() if "verbalization" not in name]
    if "precision" not in tried:
        texts = ["precision=bf16"] if config.precision == "fp32" else []
        return "precision", texts, "half the bytes of what is frozen and of what is computed"
    if "checkpointing" not in tried:
        texts = [
            f"{n}.gradient_checkpointing=true"
            for n, s in stages.items()
            if s in trained and not s.gradient_checkpointing
        ]
        return (
            "checkpointing",
            texts,
            "activations are computed again in the backward: about a third more work",
        )
    if "batch" not in tried:
        texts = []
        for name, stage in stages.items():
            if stage.batch_size > 1:
                texts += [f"{name}.batch_size=1", f"{name}.gradient_accumulation={stage.effective_batch}"]
        return (
            "batch",
            texts,
            "one record at a time; the same gradient, more passes, and one draw of the matching a record",
        )
    if "lora" not in tried:
        texts = [f"{name}.train=lora" for name, s in stages.items() if getattr(s, "train", "lora") == "full"]
        return "lora", texts, "adapters instead of all weights: no gradients and moments of the frozen ones"
    large = config.teacher
    movable = (
        large is not None and large.placement == "device" and large.cache is None and config.device != "cpu"
    )
    bits = large.quantization if large is not None else "none"
    if "8bit" not in tried:
        return (
            "8bit",
            ["teacher.quantization=8bit"] if movable and bits == "none" else [],
            "the large model's layers in 8 bits a weight: what it says changes a little",
        )
    if "4bit" not in tried:
        return (
            "4bit",
            ["teacher.quantization=4bit"] if movable and bits != "4bit" else [],
            "the large model's layers in 4 bits a weight: what it says changes more",
        )
    if "placement" not in tried:
        whole = ["teacher.quantization=none"] if bits != "none" else []
        return (
            "placement",
            [*whole, "teacher.placement=cpu"] if movable else [],
            "the large model's layers lie whole in host memory and visit the device one by one: slow, so build a "
            "teacher cache that way once, and train from it",
        )
    return None
