"""`vlsi eval` through its real entry point and the real harness, on the demo pair and a third checkpoint."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from tests.evaluation import needs_harness, write_tasks
from vlsi_cli.app import app
from vlsi_cli.config.catalog import DEMO_FOLDER
from vlsi_cli.engine.data.patterns import exact_match, pattern_record
from vlsi_cli.engine.evaluation.journal import Journal

pytestmark = needs_harness


def vlsi(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="vlsi")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third checkpoint: the small one, its weights disturbed a little."""
    folder = tmp_path_factory.mktemp("after") / "student"
    shutil.copytree(DEMO_FOLDER / "small", folder)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, value in weights.items():
        weights[name] = value + 0.01 * torch.randn(value.shape, generator=generator)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def evaluated(
    tasks: Path, after: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """Three models on four tasks, a few questions each."""
    output = tmp_path_factory.mktemp("evaluated") / "out"
    words = ["--model", "demo/large", "--model", "demo/small", "--model", after, "--tasks-dir", tasks]
    words += ["--bench", "patterns,open,choice,likely", "--limit", 10, "--batch-size", 4, "-o", output]
    done = vlsi("eval", *words, "--html", "--paper", "none", "--paper", "none", "--paper", "none", "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), output


def samples(output: Path, model: str, bench: str) -> list[dict[str, Any]]:
    (folder,) = (
        f.parent for f in (output / "models").glob("*/model.json") if json.loads(f.read_text())["id"] == model
    )
    return [json.loads(line) for line in (folder / bench / "samples.jsonl").read_text("utf-8").splitlines()]


def result(report: dict[str, Any], model: str, bench: str) -> dict[str, Any]:
    (found,) = (r for r in report["results"] if (r["model"], r["benchmark"]) == (model, bench))
    return found


def test_scores_are_those_of_an_independent_count(
    evaluated: tuple[dict[str, Any], Path], tasks: Path, after: Path
) -> None:
    report, output = evaluated
    puzzles = [pattern_record("test", index) for index in range(10)]
    rows = json.loads((tasks / "rows.json").read_text())
    letters = json.loads((tasks / "letters.json").read_text())

    def plain(text: str) -> str:
        return text.strip().lower().strip(".")

    def nearest(answer: Any) -> int:
        losses = [loss for loss, _ in answer]
        return losses.index(min(losses))

    counts: dict[str, Callable[[int, Any], bool]] = {
        "patterns": lambda n, answer: exact_match(answer, puzzles[n].turns[0].answer),
        "open": lambda n, answer: plain(answer) == rows[n]["answer"],
        "choice": lambda n, answer: plain(answer) == letters[n]["answer"],
        "likely": lambda n, answer: nearest(answer) == rows[n]["right"],
    }
    for model in ("demo/large", "demo/small", str(after)):
        for bench, right in counts.items():
            found = samples(output, model, bench)
            assert [sample["id"] for sample in found] == [f"{bench}:{n}" for n in range(10)]
            if bench == "patterns":
                assert [s["question"] for s in found] == [puzzle.turns[0].text for puzzle in puzzles]
            else:
                asked = {"open": rows, "likely": rows, "choice": letters}[bench]
                assert all(row["question"] in s["question"] for row, s in zip(asked, found, strict=False))
            hits = [right(n, sample["answer"]) for n, sample in enumerate(found)]
            scale = 100 if bench == "patterns" else 1
            assert result(report, model, bench)["score"] == pytest.approx(scale * sum(hits) / 10)
            assert [sample["score"] for sample in found] == [scale * float(hit) for hit in hits]
            share = sum(hits) / 10
            error = scale * (share * (1 - share) / 9) ** 0.5  # n - 1 under the root, n = 10
            assert result(report, model, bench)["error"] == pytest.approx(error)
    assert (
        result(report, "demo/large", "patterns")["score"] > result(report, "demo/small", "patterns")["score"]
    )


def test_scores_go_on_the_card_of_the_weights_they_are_of(
    evaluated: tuple[dict[str, Any], Path], after: Path, tmp_path: Path
) -> None:
    report, output = evaluated
    done = vlsi("push", after, "--repo", "me/thing", "--evaluation", output, "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    found = ModelCard(json.loads(done.stdout)["card"]).data.eval_results
    assert {r.dataset_name: r.metric_value for r in found} == {
        result(report, str(after), bench)["title"]: pytest.approx(
            result(report, str(after), bench)["score"], abs=1e-4
        )
        for bench in ("patterns", "open", "choice", "likely")
    }


def test_differences_are_paired(evaluated: tuple[dict[str, Any], Path], after: Path) -> None:
    report, output = evaluated
    assert len(report["pairs"]) == 3 * 4
    (pair,) = (
        p
        for p in report["pairs"]
        if (p["benchmark"], p["first"], p["second"]) == ("patterns", "demo/large", "demo/small")
    )
    differences = [
        b["score"] - a["score"]
        for a, b in zip(
            samples(output, "demo/large", "patterns"), samples(output, "demo/small", "patterns"), strict=True
        )
    ]
    assert pair["n"] == 10
    assert pair["difference"] == pytest.approx(sum(differences) / 10)
    spread = torch.tensor(differences, dtype=torch.float64).std(unbiased=True).item() / 10**0.5
    assert pair["high"] - pair["low"] == pytest.approx(2 * 1.959963984540054 * spread)


def test_what_is_written(evaluated: tuple[dict[str, Any], Path]) -> None:
    _, output = evaluated
    stored = json.loads((output / "report.json").read_text())
    assert stored["settings"]["harness"].startswith("lmms-eval ")
    assert stored["settings"]["environment"]["packages"]["torch"]
    assert {len(facts["identity"]) for facts in stored["settings"]["models"].values()} == {64}
    text = (output / "report.md").read_text("utf-8")
    assert "| demo/large | The built-in puzzles | 10 |" in text
    assert "first 10 only" in text
    page = (output / "report.html").read_text("utf-8")
    assert page.count('class="question"') == 40
    assert page.count("data:image/png;base64,") == 40
    assert "http" not in page.replace("http-equiv", "")


def test_batched_answers_are_the_unbatched(tasks: Path, tmp_path: Path) -> None:
    answers = []
    for size in (1, 5):
        output = tmp_path / str(size)
        words = (
            "--model",
            "demo/small",
            "--bench",
            "pair,patterns,likely",
            "--tasks-dir",
            tasks,
            "--limit",
            9,
        )
        done = vlsi("eval", *words, "--batch-size", size, "-o", output)
        assert done.exit_code == 0, done.output
        answers.append([s["answer"] for b in ("pair", "patterns") for s in samples(output, "demo/small", b)])
        losses = [loss for s in samples(output, "demo/small", "likely") for loss, _ in s["answer"]]
        answers[-1].append([round(loss, 3) for loss in losses])
    assert answers[0] == answers[1]


def test_killed_and_run_again_only_the_rest_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (
        "eval",
        "--model",
        "demo/small",
        "--limit",
        12,
        "--batch-size",
        4,
        "-o",
        tmp_path / "out",
        "--json",
    )
    whole = json.loads(vlsi(*words[:-2], tmp_path / "whole", "--json").stdout)
    real = Journal.add

    def stop_after_five(self: Journal, key: str, line: dict[str, Any]) -> None:
        if len(self.lines) == 5:
            raise KeyboardInterrupt
        real(self, key, line)

    monkeypatch.setattr(Journal, "add", stop_after_five)
    done = vlsi(*words)
    assert done.exit_code == 130
    assert "the answers so far are kept" in done.stderr
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (journal,) = (tmp_path / "out").rglob("answers.jsonl")
    with journal.open("a", encoding="utf-8") as file:
        file.write('{"key": "half a li')  # what a process leaves that dies while it writes
    again = json.loads(vlsi(*words).stdout)
    assert [again["results"][0][k] for k in ("generated", "reused")] == [7, 5]
    third = json.loads(vlsi(*words).stdout)
    assert [third["results"][0][k] for k in ("generated", "reused")] == [0, 12]
    for report in (again, third):
        assert report["results"][0]["score"] == whole["results"][0]["score"]


def test_other_weights_under_the_same_name_are_asked_again(after: Path, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    shutil.copytree(DEMO_FOLDER / "small", folder)
    words = ("eval", "--model", folder, "--limit", 3, "-o", tmp_path / "out", "--json")
    assert json.loads(vlsi(*words).stdout)["results"][0]["generated"] == 3
    shutil.copyfile(after / "model.safetensors", folder / "model.safetensors")
    assert json.loads(vlsi(*words).stdout)["results"][0]["generated"] == 3


def test_fill_ins_are_counted(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By tasks from a folder that is named from where one is."""
    monkeypatch.chdir(tasks.parent)
    words = (
        "--model",
        "demo/small",
        "--bench",
        "chance",
        "--tasks-dir",
        tasks.name,
        "-o",
        tmp_path / "out",
        "--json",
    )
    assert json.loads(vlsi("eval", *words).stdout)["results"][0]["filled"] == 12


def test_stored_runs_are_compared(
    evaluated: tuple[dict[str, Any], Path], after: Path, tmp_path: Path
) -> None:
    _, output = evaluated
    other = tmp_path / "other"
    assert vlsi("eval", "--model", after, "--limit", 6, "-o", other).exit_code == 0
    report = json.loads(vlsi("eval", "compare", output, other, "--json").stdout)
    assert len(report["columns"]) == 4
    mine = next(pair for pair in report["pairs"] if pair["first"].endswith(str(after)))
    assert (mine["n"], mine["difference"]) == (
        6,
        0,
    )  # the same weights on the six questions that both were asked
    assert any("limits differ" in note for note in report["notes"])
    shown = vlsi("eval", "compare", output, other)
    assert "The built-in puzzles" in shown.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--bench paterns", 2, "no benchmark is named 'paterns'\nhint: did you mean patterns?"),
        ("--bench mmvett", 2, "did you mean mmvet?"),
        ("--bench mmvet", 2, "MM-Vet: answers are read by a judge, and none is configured\nhint: give --"),
        ("--bench mmvet --skip-unjudged", 2, "every benchmark asked for needs a judge"),
        ("--bench mmmu", 3, "data of mmmu (900 questions): lmms-lab-encoder/MMMU\nhint: fetch where there is a "
         "network: hf download --repo-type dataset lmms-lab-encoder/MMMU"),
        ("--bench empty", 3, "the data set json of 'empty' is empty"),
        ("--bench broken --model demo/small", 11, "broken: lmms-eval's own scoring failed: KeyError: 'no such field'"),
        ("--bench rounds", 2, "asks for 'generate_until_multi_round', which is not supported"),
        ("--model none/here --bench patterns", 4, "none/here"),
        ("--model demo/small --paper VLSI-2C", 2, "the paper has no row 'VLSI-2C'\nhint: did you mean VLsI-2B?"),
        ("--batch-size none", 2, "--batch-size is 'none'"),
        ("--processes many", 2, "--processes is 'many', and should be a whole number from 1, or auto"),
        ("--judge-url http://127.0.0.1:9", 2, "--judge-url is given without --judge-model"),
        ("--bench mmvet --judge-model m --judge-url http://127.0.0.1:9", 3, "lmms-lab-encoder/MMVet"),
        ("compare nowhere nothing", 3, "nowhere holds no evaluation"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_sentence_and_its_code(
    words: str, code: int, message: str, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    more = [] if words.startswith("compare") else ["--tasks-dir", tasks]
    done = vlsi("eval", *words.split(), *more)
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_second_process_in_the_folder_is_refused(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = vlsi("eval", "-o", tmp_path / "out")
    assert done.exit_code == 6
    assert "another process is working on the evaluation in" in done.stderr


def test_the_harness_finds_the_model_by_its_name(tasks: Path) -> None:
    """What its own command line does with `--model vlsi --model_args pretrained=demo/small`."""
    entries = metadata.entry_points(group="lmms_eval.models", name="vlsi")
    if not entries:
        pytest.skip("this package is not installed beside the harness")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lmms_eval.evaluator import simple_evaluate
        from lmms_eval.tasks import TaskManager

        done = simple_evaluate(
            model="vlsi",
            model_args="pretrained=demo/small",
            tasks=["open"],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            batch_size=4,
            limit=4,
            bootstrap_iters=0,
        )
    assert len(done["samples"]["open"]) == 4
    assert 0 <= done["results"]["open"]["right,none"] <= 1
