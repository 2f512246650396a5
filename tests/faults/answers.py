"""Commands that keep answers as they come, and all that are killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.faults import forks
from tests.faults.subjects import Cache, Distill, Export, Subject, digests, leftovers, require


class Evaluate(Subject):
    """An evaluation; answers must come out the same, and those on disk must not be asked for again."""

    name = "eval"

    def words(self, output: str) -> list[str | Path]:
        self.kept = len(self._answers(self.work / output))
        asked = ["--model", "demo/small", "--bench", "patterns", "--limit", "24", "--batch-size", "4"]
        return ["eval", *asked, "--output", output, "--json"]

    def _answers(self, output: Path) -> list[str]:
        """The keys of whole lines; what a kill cut short is no answer."""
        found: dict[str, None] = {}
        for file in output.glob("models/*/patterns/answers.jsonl"):
            for line in file.read_bytes().splitlines(keepends=True):
                try:
                    found[json.loads(line)["key"]] = None
                except (ValueError, KeyError):
                    require(not line.endswith(b"\n"), f"{file} holds a line that is no answer")
        return list(found)

    def final(self, output: Path) -> Any:
        files = digests(output)
        samples = {name: digest for name, digest in files.items() if name.endswith("samples.jsonl")}
        (result,) = (json.loads(path.read_text("utf-8")) for path in output.rglob("result.json"))
        answers = sorted(self._answers(output))
        require(len(answers) == 24, f"{len(answers)} answers")
        return {
            "samples": samples,
            "score": result["score"],
            "answers": answers,
            "leftovers": leftovers(output),
        }

    def check_ended(self, ended: forks.Ended, output: Path) -> None:
        (result,) = json.loads(ended.data)["results"]
        require(result["reused"] == self.kept, f"{result['reused']} answers reused, {self.kept} were on disk")


class Answer(Subject):
    """Records that are answered turn by turn; the file must come out the same, and no answer be generated twice."""

    name = "answer"

    def words(self, output: str) -> list[str | Path]:
        self.kept = len(self._answers(self.work / output))
        asked = [
            "patterns",
            "--limit",
            "24",
            "--set",
            "data.sources.0.turns=2",
            "--replace",
            "--batch-size",
            "4",
        ]
        return [
            "data",
            "answer",
            *asked,
            "--model",
            "demo/large",
            "--output",
            f"{output}/out.jsonl",
            "--json",
        ]

    def _answers(self, output: Path) -> list[str]:
        """The keys of whole lines; what a kill cut short is no answer."""
        file = output / "out.work" / "answers.jsonl"
        lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
        return [json.loads(line)["key"] for line in lines if line.endswith(b"\n")]

    def final(self, output: Path) -> Any:
        answers = self._answers(output)
        require(len(answers) == len(set(answers)), "an answer was generated twice")
        return {"files": digests(output), "leftovers": leftovers(output)}

    def check_killed(self, output: Path, reference: Path) -> None:
        if (output / "out.jsonl").exists():
            whole = (reference / "out.jsonl").read_bytes()
            require((output / "out.jsonl").read_bytes() == whole, "a half file has its final name")

    def check_ended(self, ended: forks.Ended, output: Path) -> None:
        reused = json.loads(ended.data)["reused"]
        require(reused == self.kept, f"{reused} answers reused, {self.kept} were on disk")


SUBJECTS: dict[str, type[Subject]] = {each.name: each for each in (Distill, Cache, Export, Evaluate, Answer)}
