"""What is known of models with experts before any of them is loaded."""

from __future__ import annotations

import pytest

from vlsi_cli.config.experts import Experts, experts_of
from vlsi_cli.config.loading import resolve
from vlsi_cli.config.planning import plan
from vlsi_cli.config.plans import Plan
from vlsi_cli.errors import CompatibilityError, ConfigError, VlsiError

EXPERT = {"teacher": "Qwen/Qwen3-VL-235B-A22B-Instruct", "student": "Qwen3-VL-2B"}


def of_experts(*sets: str, **models: str) -> Plan:
    flags = {f"{side}.id": id for side, id in (EXPERT | models).items()}
    return plan(resolve(None, sets, flags, without_data=True))


def test_a_teacher_with_experts() -> None:
    """It works as its 22B and lies there as its 235B, and is of its student's family though of another class."""
    made, dense = of_experts(), of_experts(teacher="Qwen3-VL-32B")
    assert made.teacher is not None
    assert made.teacher.facts is not None
    large = made.stages[0].memory
    assert large is not None
    assert large.weights > 2 * made.teacher.facts.parameters
    assert made.stages[0].step_flops is not None
    assert dense.stages[0].step_flops is not None
    assert 0.5 < made.stages[0].step_flops / dense.stages[0].step_flops < 1
    assert not any("two families" in note for note in made.notes)
    assert any("two families" in note for note in of_experts(teacher="Qwen2-VL-72B").notes)
    told = made.to_json()["teacher"]["facts"]
    assert told["experts"] == {"count": 128, "chosen": 8, "ffn": 1536, "shared": 0}
    assert told["parameters"] - told["idle_parameters"] == 22_767_151_856


@pytest.mark.parametrize(
    ("sets", "models", "error", "message"),
    [
        ((), {"student": "Qwen3-VL-30B-A3B"}, CompatibilityError, "can teach but not learn"),
        (("teacher.quantization=4bit",), {}, ConfigError, "cannot be read in 4bit"),
        (("verbalizer.architecture=decoder-x2",), {}, ConfigError, "decoder layer with 128 experts"),
    ],
)
def test_what_experts_are_not_used_for(
    sets: tuple[str, ...], models: dict[str, str], error: type[VlsiError], message: str
) -> None:
    with pytest.raises(error, match=message):
        of_experts(*sets, **models)


def test_numbers_of_experts() -> None:
    text = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
    experts = experts_of({"text_config": text})
    assert experts == Experts(128, 8, 768)
    assert experts.width == 6144
    assert experts.parameters(10) == 128 * 10 * (3 * 768 + 1)
    shared = experts_of(text | {"shared_expert_intermediate_size": 100})
    assert shared == Experts(128, 8, 768, 100)
    assert shared.parameters(10) == experts.parameters(10) + 3 * 10 * 100 + 10
    assert shared.active(10) == 10 * (3 * 8 * 768 + 128 + 3 * 100 + 1)
    assert experts_of({"hidden_size": 3}) is None
