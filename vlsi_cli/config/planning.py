"""What a run would do, computed from the configuration and the facts of both models: no weights, no network.

Steps, batches, target layers and parameter counts are arithmetic. Memory is an estimate (see ``memory``), for
one device that holds everything of a stage.
"""

from __future__ import annotations

from vlsi_cli.config import counting
from vlsi_cli.config.caches import cache_note
from vlsi_cli.config.catalog import facts_of, group_of
from vlsi_cli.config.experts import require_dense_student, require_plain_verbalizers, require_unrounded
from vlsi_cli.config.loading import STAND_IN, Resolved
from vlsi_cli.config.missing import model_need, verbalizers_need
from vlsi_cli.config.plans import PairPlan, Plan, SidePlan
from vlsi_cli.config.presence import Need, data_needs
from vlsi_cli.config.ranges import BEYOND_FP16, require_range, require_whole
from vlsi_cli.config.run import DistillConfig, ModelConfig
from vlsi_cli.config.stage_plans import Records, host_bytes, stage_plans, stored_precision
from vlsi_cli.errors import CompatibilityError


def plan(resolved: Resolved, records: Records | None = None) -> Plan:
    """Plan a run.

    Args:
        resolved: its configuration.
        records: what every record is taken to be; None: the longest that the configuration allows.

    Raises:
        CompatibilityError: more small than large target layers, or targets beyond a model's depth.
        ConfigError: epochs over endless data, weights in FP8, or a precision that cannot hold a model's states.
        DataError: a source is on this machine and empty.
    """
    config = resolved.config
    for data in filter(None, (config.data, config.evaluation.data)):
        counting.require_some(data)
    student = _side("small", config.student, config)
    teacher = _side("large", config.teacher, config) if config.teacher else None
    pairs = _pairs(config, teacher, student) if teacher else ()
    stages = tuple(stage_plans(config, teacher, student, records or Records()))
    notes = [
        "memory is an estimate for one device that holds the whole stage, at the longest allowed records",
        f"frozen weights count as {stored_precision(config, None)}, what trains as fp32 with two fp32 moments",
    ]
    host = host_bytes(config, teacher)
    if host:
        notes.append(
            f"the large model's decoder layers lie in {host / 2**30:.1f} GiB of host memory, in every process"
        )
    if config.teacher and config.teacher.cache is not None:
        notes.append(cache_note(config.teacher.cache))
    notes.extend(counting.notes(config.data))
    if resolved.origins.get("data.sources.0.path") == STAND_IN:
        notes.append("no data are given: steps depend on them, and memory on how long their records are")
    elif any(stage.steps is None for stage in stages):
        notes.append(
            "steps are counted when the data are there: not every source says how many records it holds"
        )
    if (odd := smaller_teacher(config)) is not None:
        notes.append(odd)
    if teacher and _of_two_families(teacher, student):
        notes.append(
            f"{teacher.id} and {student.id} are of two families: a run refuses them unless they read texts and "
            "pictures as the same tokens, which their shapes do not tell"
        )
    if config.precision == "auto" and config.device not in ("cpu", "mps"):
        sides = [each.facts for each in (teacher, student) if each and each.facts]
        for model_type in dict.fromkeys(each.model_type for each in sides if each.model_type in BEYOND_FP16):
            notes.append(
                f"{BEYOND_FP16[model_type]} is refused in fp16: on a GPU without bf16, set precision to fp32"
            )
    for side in (teacher, student):
        if side and side.facts is None:
            notes.append(
                f"the shape of {side.id} is unknown until it is fetched: its numbers are missing here"
            )
    return Plan(
        name=config.name,
        recipe=resolved.recipe,
        teacher=teacher,
        student=student,
        pairs=pairs,
        stages=stages,
        host_memory=host,
        needs=needs(config),
        notes=tuple(notes),
        settings=tuple(resolved.leaves()),
    )


def smaller_teacher(config: DistillConfig) -> str | None:
    """A sentence where the large model has fewer parameters than the small one; None where not, or unknown."""
    if config.teacher is None:
        return None
    large, small = (facts_of(each.id, each.revision) for each in (config.teacher, config.student))
    if large is None or small is None or large.parameters >= small.parameters:
        return None
    return (
        f"the large model {config.teacher.id} has fewer parameters than the small one {config.student.id}: "
        "were they swapped?"
    )


def needs(config: DistillConfig) -> tuple[Need, ...]:
    """Everything that the run reads, and whether it is on this machine."""
    found: list[Need] = []
    if config.teacher and config.teacher.cache is not None:
        path = config.teacher.cache
        found.append(Need("teacher.cache", "cache", str(path), (path / "manifest.json").is_file(), None))
    elif config.teacher:
        found.append(model_need("teacher", config.teacher))
        if config.teacher.verbalizers is not None:
            found.append(verbalizers_need("teacher.verbalizers", config.teacher.verbalizers))
    found.append(model_need("student", config.student))
    found.extend(data_needs("data", config.data))
    if config.evaluation.data:
        found.extend(data_needs("evaluation.data", config.evaluation.data))
    return tuple(found)


def _side(side: str, model: ModelConfig, config: DistillConfig) -> SidePlan:
    facts = facts_of(model.id, model.revision)
    if facts is None:
        return SidePlan(side, model.id, None, (), 0)
    require_whole(facts.rounded, model.id)
    require_range(facts.model_type, model.id, stored_precision(config, model), stored_precision(config, None))
    require_unrounded(facts.experts, model.quantization, model.id)
    if side == "small":
        require_dense_student(facts.experts, model.id)
    targets = model.targets.resolve(facts.layers)
    if _verbalizes(config) and (not targets or targets[-1] >= facts.layers):
        raise CompatibilityError(
            f"the {side} model {model.id} has {facts.layers} decoder layers, but its target layers are "
            f"{', '.join(map(str, targets)) or 'none'}: they must lie between 1 and {facts.layers - 1}",
            hint=f"set {'student' if side == 'small' else 'teacher'}.targets",
        )
    if _verbalizes(config):
        require_plain_verbalizers(facts.experts, config.verbalizer.architecture, model.id)
    return SidePlan(
        side, model.id, facts, targets, facts.verbalizer_parameters(config.verbalizer.architecture)
    )


def _verbalizes(config: DistillConfig) -> bool:
    compared = config.interaction is not None and config.interaction.intermediate != "none"
    return config.verbalization is not None or compared


def _of_two_families(large: SidePlan, small: SidePlan) -> bool:
    """Whether two known models are of families that need not read alike."""
    if large.facts is None or small.facts is None or large.facts.model_type == small.facts.model_type:
        return False
    groups = group_of(large.id), group_of(small.id)
    return groups[0] != groups[1] or groups[0] is None


def _pairs(config: DistillConfig, large: SidePlan, small: SidePlan) -> tuple[PairPlan, ...]:
    """Which large targets each small one can meet (the search window of the method's step 2)."""
    stage = config.interaction
    if stage is None or not stage.matches or not large.facts or not small.facts:
        return ()
    n_small, n_large = len(small.targets), len(large.targets)
    if n_small > n_large:
        raise CompatibilityError(
            f"the small model {small.id} has {n_small} target layers ({_list(small.targets)}), but the large one "
            f"{large.id} only {n_large} ({_list(large.targets)}): each small one needs its own",
            hint="set student.targets or teacher.targets (start, stride, or an explicit layers list)",
        )
    matching = stage.matching
    pairs = []
    for number, layer in enumerate(small.targets):
        first, last = 0, n_large - 1
        if matching.strategy == "uniform":
            first = last = number * (n_large // n_small)
        elif matching.strategy == "multinomial" and (matching.order_preservation or matching.search_range):
            first, last = number, n_large - n_small + number
        pairs.append(PairPlan(layer, large.targets[first : last + 1]))
    return tuple(pairs)


def _list(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))
