"""What a plan consists of: plain frozen values, ready to be shown or written as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from vlsi_cli.config.facts import ModelFacts
from vlsi_cli.config.memory import Divided, Memory
from vlsi_cli.config.presence import Need


@dataclass(frozen=True)
class SidePlan:
    """One model and its verbalizers.

    Attributes:
        side: ``large`` or ``small``.
        id: hub id or folder.
        facts: its shape; None when that is not known before it is fetched.
        targets: target layers, as decoder-layer numbers.
        verbalizer_parameters: of the verbalizer of one layer.
    """

    side: str
    id: str
    facts: ModelFacts | None
    targets: tuple[int, ...]
    verbalizer_parameters: int


@dataclass(frozen=True)
class PairPlan:
    """A small target layer and the large ones that the matching can choose for it.

    Attributes:
        small, large: decoder-layer numbers.
    """

    small: int
    large: tuple[int, ...]


@dataclass(frozen=True)
class StagePlan:
    """One stage on one side.

    Attributes:
        stage: ``verbalization``, ``interaction`` or ``reinforcement``.
        side: whose: ``large`` or ``small``.
        steps: optimizer steps; None while the number of records is unknown.
        estimated: whether `steps` is an estimate, from the beginning of a large file.
        batch_size: records in memory at a time.
        gradient_accumulation: micro-batches in a step.
        effective_batch: their product.
        trains: what trains, in words.
        trained_parameters: how many numbers that is; None when the model's shape is unknown.
        memory: estimate for one device; None when a model's shape is unknown.
        step_flops: arithmetic of one optimizer step; None when a model's shape is unknown.
        divided: what several devices can divide of the memory; None when a model's shape is unknown.
    """

    stage: str
    side: str
    steps: int | None
    batch_size: int
    gradient_accumulation: int
    effective_batch: int
    trains: str
    trained_parameters: int | None
    memory: Memory | None
    step_flops: int | None
    divided: Divided | None = None
    estimated: bool = False


@dataclass(frozen=True)
class Plan:
    """Everything that `vlsi distill --dry-run` shows.

    Attributes:
        name: of the run.
        recipe: the name or file of its recipe; None without one.
        teacher, student: the models; no teacher where nothing is learnt from one.
        pairs: small target layers, each with the large ones that it can be matched with.
        stages: in the order in which they run.
        host_memory: bytes of host memory in which the large model's decoder layers lie, in every process; 0 where they
            lie elsewhere.
        needs: what the run reads, and whether it is here.
        notes: what the figures assume, and what is odd.
        settings: key, value and origin of every setting.
    """

    name: str
    recipe: str | None
    teacher: SidePlan | None
    student: SidePlan
    pairs: tuple[PairPlan, ...]
    stages: tuple[StagePlan, ...]
    host_memory: int
    needs: tuple[Need, ...]
    notes: tuple[str, ...]
    settings: tuple[tuple[str, Any, str], ...] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-ready values; settings become ``{key: {"value": ..., "origin": ...}}``."""
        plan = asdict(self)
        plan["settings"] = {key: {"value": value, "origin": origin} for key, value, origin in self.settings}
        for stage, known in zip(plan["stages"], self.stages, strict=True):
            if known.memory:
                stage["memory"]["total"] = known.memory.total
        for side, known_side in (("teacher", self.teacher), ("student", self.student)):
            if known_side and known_side.facts:
                plan[side]["facts"]["parameters"] = known_side.facts.parameters
                plan[side]["facts"]["idle_parameters"] = known_side.facts.idle_parameters
        return plan
