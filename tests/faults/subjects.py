"""What is killed: commands on tiny models, and what must hold of each after a kill and at its end."""

from __future__ import annotations

import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults import forks
from tests.pairs import tiny_pair
from tests.tiny import tiny_folder


class Broken(AssertionError):
    """A promise that was not kept."""


def require(kept: bool, what: str) -> None:
    """Raise what was broken."""
    if not kept:
        raise Broken(what)


def require_same(found: Any, wanted: Any, what: str) -> None:
    """Raise the first place where two values differ."""
    if found != wanted:
        raise Broken(f"{what}: {_difference(found, wanted)}")


def _difference(found: Any, wanted: Any, place: str = "") -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *found]:
            if found.get(key) != wanted.get(key):
                return _difference(found.get(key), wanted.get(key), f"{place}/{key}")
    return f"{place} is {str(found)[:300]}, not {str(wanted)[:300]}"


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its place."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def leftovers(folder: Path) -> list[str]:
    """Hidden things, but for the lock and what the forks write."""
    known = {".lock", ".stdout", ".stderr", ".modules"}
    return [str(path) for path in folder.rglob(".*") if path.name not in known]


class Subject(ABC):
    """One command that is started, killed, and started again with the same words until it ends.

    Args:
        work: a folder of its own; models are made in it.
    """

    name: str
    #: Stages that a table tells apart.
    stages: tuple[str, ...] = ("",)

    def __init__(self, work: Path) -> None:
        self.work = work
        work.mkdir(parents=True)
        self.prepare()

    def prepare(self) -> None:  # noqa: B027 - not every subject needs it
        """Make what the command needs."""

    @abstractmethod
    def words(self, output: str) -> list[str | Path]:
        """The command line, the same at the start and after each kill."""

    @abstractmethod
    def final(self, output: Path) -> Any:
        """What must be equal at the end, whether killed or not."""

    def stage(self, output: Path) -> str:
        """Where in its life a killed one was."""
        return ""

    def check_killed(self, output: Path, reference: Path) -> None:  # noqa: B027 - not every subject needs it
        """What must hold right after a kill: nothing that has its final name is half there."""

    def check_ended(self, ended: forks.Ended, output: Path) -> None:  # noqa: B027 - not every subject needs it
        """What must hold of the process that came to the end."""

    def before(self) -> None:  # noqa: B027 - not every subject needs it
        """What a child is to find changed; called in it."""


def _sets(*values: str) -> Iterator[str]:
    for value in values:
        yield from ("--set", value)


class Distill(Subject):
    """All stages on a tiny pair; weights, verbalizers, metrics and matches must come out the same."""

    name = "distill"
    stages = (
        "before the first stage",
        "verbalization-large",
        "verbalization-small",
        "interaction",
        "reinforcement",
        "after the last stage",
    )

    def prepare(self) -> None:
        tiny_pair(self.work)

    def words(self, output: str) -> list[str | Path]:
        sets = _sets(
            "teacher.targets.stride=1",
            "student.targets.stride=1",
            "verbalization.steps=4",
            "verbalization.batch_size=2",
            "interaction.steps=5",
            "interaction.batch_size=1",
            "interaction.gradient_accumulation=2",
            "reinforcement.steps=5",
            "reinforcement.batch_size=2",
            "data.sources.0.turns=3",
            "evaluation.samples=4",
            "evaluation.max_new_tokens=8",
            "evaluation.batch_size=4",
            "checkpoint_every=2",
        )
        models = ["--teacher", self.work / "large", "--student", self.work / "small"]
        return ["distill", "--recipe", "demo", *models, *sets, "--resume", "auto", "--output", output]

    def final(self, output: Path) -> Any:
        volatile = ("progress.json", "metrics.jsonl", ".lock")  # they tell seconds
        files = {name: digest for name, digest in digests(output).items() if name not in volatile}
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text("utf-8").splitlines()]
        progress = json.loads((output / "progress.json").read_text("utf-8"))
        return {
            "files": files,
            "metrics": [without_seconds(line) for line in lines],
            "progress": without_seconds(progress),
            "leftovers": leftovers(output),
        }

    def stage(self, output: Path) -> str:
        if not (output / "config.yaml").is_file():
            return self.stages[0]
        done = json.loads((output / "progress.json").read_text("utf-8"))["stages"]
        left = [key for key in self.stages[1:-1] if key not in done]
        if len(left) == 4 and not (output / "metrics.jsonl").is_file():
            return self.stages[0]
        if left in ([], ["reinforcement"]) and (output / "student").exists():
            return self.stages[-1]
        return left[0] if left else self.stages[-1]

    def check_killed(self, output: Path, reference: Path) -> None:
        from vlsi_cli.engine.training.checkpoint import Checkpoints

        if not (output / "config.yaml").is_file():
            return
        require((output / "progress.json").is_file(), "a run with a configuration, but without progress.json")
        whole = digests(reference)
        for folder in ("student", "verbalizers/large", "verbalizers/small", "verbalizers/small-after", "stages/interaction"):  # fmt: skip  # noqa: E501
            if (output / folder).exists():
                found = {f"{folder}/{name}": digest for name, digest in digests(output / folder).items()}
                wanted = {name: digest for name, digest in whole.items() if name.startswith(f"{folder}/")}
                require(found == wanted, f"{folder} has its name, but is not what an unbroken run writes")
        for stage in self.stages[1:-1]:
            Checkpoints(output / "checkpoints").latest(stage)  # raises when it is damaged


def without_seconds(value: Any) -> Any:
    """A JSON value without what a clock or the machine's memory says."""
    from vlsi_cli.engine.runs.watch import VOLATILE

    if isinstance(value, dict):
        return {key: without_seconds(inner) for key, inner in value.items() if key not in VOLATILE}
    return [without_seconds(inner) for inner in value] if isinstance(value, list) else value


class Cache(Subject):
    """The builder of a teacher cache; every byte of it must come out the same."""

    name = "cache"

    def prepare(self) -> None:
        tiny_pair(self.work)
        small = ("verbalization.steps=1", "interaction=null", "reinforcement=null", "evaluation.data=null")
        words = ["distill", "--recipe", "demo", *self._models, *self._data, *_sets(*small), "-o", "taught"]
        ended = forks.run(words, self.work)
        require(ended.code == 0, ended.said)

    @property
    def _models(self) -> list[str | Path]:
        return ["--teacher", self.work / "large", "--student", self.work / "small"]

    @property
    def _data(self) -> list[str]:
        sets = ("teacher.targets.stride=1", "student.targets.stride=1", "verbalization.batch_size=2")
        return [*_sets(*sets, "data.sources.0.turns=3", "data.sources.0.size=120")]

    def words(self, output: str) -> list[str | Path]:
        more = [*_sets("interaction.batch_size=8"), "--shard-size", "1"]
        said = ["--verbalizers", self.work / "taught" / "verbalizers" / "large"]
        return ["cache", "build", output, "--recipe", "demo", *self._models, *said, *self._data, *more]

    def final(self, output: Path) -> Any:
        return {name: digest for name, digest in digests(output).items() if name != ".lock"}

    def check_killed(self, output: Path, reference: Path) -> None:
        whole = digests(reference)
        for name, digest in digests(output).items():
            if name.endswith(".safetensors") and not Path(name).name.startswith("."):
                require(
                    whole[name] == digest, f"{name} has its name, but is not what an unbroken build writes"
                )
        if (output / "manifest.json").is_file():
            complete = json.loads((output / "manifest.json").read_text("utf-8"))["complete"]
            require(
                not complete or self.final(output) == self.final(reference),
                "a half cache says it is complete",
            )


class Export(Subject):
    """The export over an older one: at every moment the folder is the old one or the new one, whole."""

    name = "export"
    stages = ("old export stands", "new export stands")

    def prepare(self) -> None:
        tiny_folder("qwen2_vl", self.work / "model", layers=1, hidden=32)
        words = ["export", self.work / "model", "--output", "traced", "--separate-head"]
        ended = forks.run(words, self.work)
        require(ended.code == 0, ended.said)
        shutil.copytree(self.work / "traced", self.work / "old")
        (self.work / "old" / "old.txt").write_text("of another time")
        self.old = self.final(self.work / "old")

    def words(self, output: str) -> list[str | Path]:
        place = self.work / output
        if not place.exists():  # at first, another export stands there
            shutil.copytree(self.work / "old", place)
        return ["export", self.work / "model", "--output", output, "--overwrite", "--separate-head"]

    def before(self) -> None:
        """Take the graphs from disk: tracing them takes four fifths of the time and writes nothing."""
        import onnx_ir as ir

        from vlsi_cli.engine.runs import export as engine

        def read(*_: Any, **__: Any) -> dict[str, Any]:
            stems = ("onnx/vision_encoder", "onnx/embed_tokens", "onnx/decoder_model_merged")
            folder = self.work / "traced"
            return {stem: ir.external_data.load_to_model(ir.load(folder / f"{stem}.onnx")) for stem in stems}

        engine.trace_all = read  # type: ignore[assignment]

    def final(self, output: Path) -> Any:
        files = {name: digest for name, digest in digests(output).items() if name != "export_report.json"}
        report = json.loads((output / "export_report.json").read_text("utf-8"))
        return files | {"report": {key: report[key] for key in ("files", "precision", "layout")}}

    def stage(self, output: Path) -> str:
        return self.stages[self.final(output) != self.old]

    def check_killed(self, output: Path, reference: Path) -> None:
        require(
            self.final(output) in (self.old, self.final(reference)),
            "the folder is neither the old nor the new export",
        )

    def check_ended(self, ended: forks.Ended, output: Path) -> None:
        left = [path.name for path in output.parent.glob(f".{output.name}-*")]
        require(not left, f"left behind: {left}")
