"""The table of benchmarks: against the paper's figures, the installed harness, and what people type."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation import needs_harness, write_tasks
from vlsi_cli.config import benchmarks, harness
from vlsi_cli.config.benchmarks import Benchmark
from vlsi_cli.errors import ConfigError, DataError

PAPERS = [
    *("qbench", "ai2d", "chartqa", "pope", "hallusionbench", "mme", "mathvista", "mmbench_en", "mmbench_cn"),
    *("mmvet", "mmvet_v2", "mmmu", "mmstar", "seedbench_2_plus", "blink", "cvbench", "llava_wilder"),
]


def test_every_benchmark_of_the_paper_is_there() -> None:
    assert list(benchmarks.table()) == [*PAPERS, "patterns"]
    printed = {name for row in benchmarks.paper().values() for name in row}
    assert printed == set(PAPERS)


def test_figures_as_printed() -> None:
    paper = benchmarks.paper()
    assert paper["VLsI-2B"]["mme"] == [2022.0]
    assert paper["VLsI-7B"]["mmvet"] == [75.2, 75.8]  # the main table, and that of challenging benchmarks
    assert paper["Qwen2-VL-72B"]["llava_wilder"] == [84.1]
    for row in paper.values():
        for name, figures in row.items():
            assert all(0 < figure <= benchmarks.table()[name].best for figure in figures)


def test_the_page_shows_the_table() -> None:
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text("utf-8")
    missing = [line for row in benchmarks.table().values() if (line := page_line(row)) not in page]
    assert missing == []


def page_line(row: Benchmark) -> str:
    """A benchmark's line in docs/evaluation.md."""
    names = ", ".join(f"`{name}`" for name in (row.name, *row.aliases))
    task = f"`{row.tasks[0]}`" if len(row.tasks) == 1 else f"{len(row.tasks)} tasks"
    metric = " + ".join(f"`{metric.split(',')[0]}`" for metric in row.metrics)
    judge = {"none": "no", "fallback": "for some answers", "required": "yes"}[row.judge]
    data = f"`{row.data}`" if row.data else "built in"
    return f"| {names} | {row.title} | {task} | {row.split} | {row.questions} | {metric} | {judge} | {data} |"


@needs_harness
@pytest.mark.parametrize("row", [r for r in benchmarks.table().values() if r.files], ids=lambda row: row.name)
def test_the_installed_harness_has_it(row: Benchmark) -> None:
    """A task, split, data set or metric that is renamed upstream must fail here, not score nothing."""
    root = harness.tasks_folder()
    assert root is not None
    for task, file in zip(row.tasks, row.files, strict=True):
        config = harness.plain_config(root / file)
        assert (config["task"], config["test_split"], config["dataset_path"]) == (task, row.split, row.data)
        metrics = {metric["metric"] for metric in config["metric_list"]}
        assert {metric.split(",")[0] for metric in row.metrics} <= metrics
        filters = {entry["name"] for entry in config.get("filter_list") or [{"name": "none"}]}
        assert {metric.split(",")[1] for metric in row.metrics} <= filters
        assert config.get("output_type", "generate_until") == "generate_until"
        code = "".join(p.read_text("utf-8") for p in (root / file).parent.glob("*.py"))
        if row.judge == "required":
            assert "get_server(" in code or "requests.post(" in code


@needs_harness
def test_the_version_is_the_one_that_was_read() -> None:
    assert harness.installed() == harness.VERSION


def test_names_as_people_type_them() -> None:
    (mmb,) = benchmarks.choose(["MMB"])
    assert mmb.name == "mmbench_en"
    assert [b.name for b in benchmarks.choose(["mmvet, MMStar", "mmvet"])] == ["mmvet", "mmstar"]
    assert benchmarks.choose(["llava-wilder"])[0].name == "llava_wilder"
    with pytest.raises(ConfigError, match="no benchmark is given"):
        benchmarks.choose([" , "])
    with pytest.raises(ConfigError, match="no benchmark is named 'chart-qqa'") as caught:
        benchmarks.choose(["chart-qqa"])
    assert "did you mean chartqa?" in str(caught.value.hint)


@needs_harness
def test_any_task_of_the_harness_works_by_its_name() -> None:
    assert benchmarks.choose(["mmmu_val"])[0].name == "mmmu"
    (other,) = benchmarks.choose(["mmbench_en_dev_static"])
    assert (other.known, other.split, other.data) == (False, "dev", "lmms-lab-encoder/MMBench")


@needs_harness
def test_a_group_stands_for_its_tasks(tmp_path: Path) -> None:
    assert [b.name for b in benchmarks.choose(["pope_full"])] == ["pope_adv", "pope_pop", "pope_random"]
    (tmp_path / "mine.yaml").write_text("group: mine\ntask: [open, mmmu_val, deep]\n", "utf-8")
    (tmp_path / "deep.yaml").write_text("group: deep\ntask:\n  - pair\n", "utf-8")
    assert [b.name for b in benchmarks.choose(["mine"], write_tasks(tmp_path))] == ["open", "mmmu", "pair"]


def test_tasks_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own,) = benchmarks.choose(["open"], write_tasks(tmp_path))
    assert (own.known, own.data, own.split) == (False, "json", "test")
    monkeypatch.chdir(tmp_path.parent)
    (same,) = benchmarks.choose(["open"], Path(tmp_path.name))
    assert same.files == own.files == (tmp_path / "open.yaml",)
    with pytest.raises(DataError, match="there is no folder of tasks"):
        benchmarks.choose(["open"], tmp_path / "none")
    (tmp_path / "bad.yaml").write_text("task: bad\n  x: [\n", "utf-8")
    with pytest.raises(DataError, match=r"bad\.yaml cannot be read"):
        benchmarks.choose(["bad"], tmp_path)


def test_a_limit_leaves_pairs_whole() -> None:
    table = benchmarks.table()
    assert [table["mme"].limited(n) for n in (1, 2, 7, None)] == [2, 2, 6, None]
    assert table["mmmu"].limited(7) == 7


@pytest.mark.parametrize(
    ("model", "row"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", "Qwen2-VL-2B"),
        ("Qwen2-VL-72B", "Qwen2-VL-72B"),
        ("llava-hf/llava-onevision-qwen2-7b-ov-hf", "LLaVA-OneVision-7B"),
        ("demo/small", None),
        ("Qwen/Qwen3-VL-2B-Instruct", None),
    ],
)
def test_the_papers_row_of_a_model(model: str, row: str | None) -> None:
    assert benchmarks.paper_row(model) == row


def test_a_folder_has_no_row_by_itself(tmp_path: Path) -> None:
    (tmp_path / "VLsI-2B").mkdir()
    assert benchmarks.paper_row(str(tmp_path / "VLsI-2B")) is None
    assert benchmarks.require_row("vlsi-2b") == "VLsI-2B"
