from __future__ import annotations

from pathlib import Path

import pytest

from vlsi_cli.config.benchmarks import Benchmark, table
from vlsi_cli.config.requirements import Requirement, read_requirements
from vlsi_cli.errors import ConfigError

OWN = Benchmark("colours", "colours", ("colours",), known=False)
CHOSEN = [table()["mmmu"], table()["mme"], table()["llava_wilder"], OWN]
MODELS = {
    "base": "org/base",
    "runs/mine/": "runs/mine/student",
    "org/base": "org/base",
    "runs/mine/student": "runs/mine/student",
}


def read(*texts: str, tasks_dir: Path | None = None) -> tuple[Requirement, ...]:
    return read_requirements(texts, MODELS, CHOSEN, [table()["mmvet"]], tasks_dir)


def test_without_a_model_it_is_asked_of_every_one() -> None:
    assert read("mmmu>=50") == (
        Requirement("org/base", "mmmu", ">=", 50.0),
        Requirement("runs/mine/student", "mmmu", ">=", 50.0),
    )
    assert read("mmmu>=50", " MMMU >= 5e1 ") == read("mmmu>=50"), "what is said twice is asked once"


@pytest.mark.parametrize("model", ["runs/mine", "runs/mine/", "runs/mine/student"])
def test_a_model_by_any_of_its_names(model: str) -> None:
    assert read(f"{model}:colours<=.25") == (Requirement("runs/mine/student", "colours", "<=", 0.25),)


def test_a_group_stands_for_its_tasks(tmp_path: Path) -> None:
    (tmp_path / "both.yaml").write_text("group: both\ntask: [mmmu, mme]\n")
    found = read("base:both>=0", tasks_dir=tmp_path)
    assert [(one.benchmark, one.bound) for one in found] == [("mmmu", 0.0), ("mme", 0.0)]


def test_a_ratio_to_a_reference_may_pass_its_scale() -> None:
    assert read("base:llava_wilder>=104")[0].bound == 104


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("mmmu", "--require is 'mmmu', and should be like 'mmmu>=50'", "between quotes"),
        ("mmmu>50", "--require is 'mmmu>50'", "'BENCH>=N' or 'BENCH<=N'"),
        ("mmmu>=50%", "should be like", "the form is"),
        ("mmmu>=nan", "should be like", "the form is"),
        ("colours>=1e999", "should be like", "the form is"),
        ("mmmu>=50,mme>=1500", "should be like", "give --require again for more"),
        ("mmmuu>=50", "no benchmark is named 'mmmuu'", "did you mean mmmu?"),
        ("mmstar>=50", "mmstar is not among the benchmarks that are asked", "add -b mmstar"),
        ("mmvet>=50", "MM-Vet is left out, since it needs a judge", "--judge-model"),
        ("bass:mmmu>=50", "no model 'bass' is evaluated", "did you mean base?"),
        ("other:mmmu>=50", "no model 'other' is evaluated", "models: base, runs/mine/"),
        ("mmmu>=0.5", "from 0 to 100, so 0.5 is next to nothing", "write 'mmmu>=50' if"),
        ("mmmu<=120", "scores of MMMU (val) are from 0 to 100", ""),
        ("mmmu>=-1", "scores of MMMU (val) are from 0 to 100", ""),
        ("mme>=75", "scores of MME are from 0 to 2800, so 75 is next to nothing", "write 'mme>=2100' if"),
    ],
)
def test_what_no_score_could_answer_is_refused(text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(text)
    assert message in raised.value.message
    assert hint in (raised.value.hint or "")


@pytest.mark.parametrize(
    ("relation", "score", "met"),
    [
        (">=", 100 * (0.29), True),  # 28.999999999999996
        (">=", 28.99, False),
        (">=", None, False),
        ("<=", 29.000000000000004, True),
        ("<=", 29.01, False),
        ("<=", None, False),
    ],
)
def test_the_score_is_compared_but_for_the_rounding_of_its_sum(
    relation: str, score: float | None, met: bool
) -> None:
    assert Requirement("m", "mmmu", relation, 29.0).holds(score) is met  # type: ignore[arg-type]
