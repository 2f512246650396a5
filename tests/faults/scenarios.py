"""Faults other than a kill: what each does to a run, and what must come of it.

Every scenario drives the real command in children of the warm process and compares the end with an unbroken run's, bit
for bit. What this machine does not allow (mounting a small disk needs root) is left out, and says so.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults import forks
from tests.faults.subjects import Cache, Distill, leftovers, require, require_same

#: Places in a life where the disk fills up.
PLACES = 3


class NotHere(Exception):
    """This machine cannot stage the fault."""


def sentence(ended: forks.Ended, code: int, *words: str) -> None:
    """Require one error of this code that says these words, and no traceback."""
    require("Traceback" not in ended.said, f"a traceback: {ended.said[-1500:]}")
    require(ended.code == code, f"exit code {ended.code} instead of {code}: {ended.said[-1500:]}")
    require(ended.said.count("error: ") == 1, f"not one error: {ended.said[-1500:]}")
    for word in words:
        require(word in ended.said, f"'{word}' is not said: {ended.said[-1500:]}")


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """A disk of its own, in memory.

    Raises:
        NotHere: mounting is not allowed.
    """
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True, check=False).returncode:
        raise NotHere("mounting a small disk is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


class Scenarios:
    """All of them, over one tiny pair and one unbroken run.

    Args:
        work: a folder to work in.
        seed: decides where faults fall.
    """

    def __init__(self, work: Path, seed: int) -> None:
        self.subject = Distill(work)
        self.work, self.draw = work, random.Random(f"{seed}/scenarios")
        self.whole = [forks.run(self.subject.words(name), work) for name in ("whole", "again")]
        for ended in self.whole:
            require(ended.code == 0, ended.said)
        self.wanted = self.subject.final(work / "whole")

    def all(self) -> dict[str, Callable[[], str]]:
        """What is staged, by name; each tells in some words what held."""
        return {
            "full disk": self.full_disk,
            "read-only disk": self.read_only_disk,
            "vanished data file": self.vanished_data,
            "vanished pictures": self.vanished_pictures,
            "killed data worker": self.killed_worker,
            "corrupted cache shard": self.corrupted_shard,
            "clock jumps": self.clock_jumps,
            "preemption": self.preemption,
        }

    def _goes_on(self, output: str) -> None:
        ended = forks.run(self.subject.words(output), self.work)
        require(ended.code == 0, f"it does not go on: {ended.said[-1500:]}")
        require_same(self.subject.final(self.work / output), self.wanted, "it goes on to another end")

    # ---------------------------------------------------------------- disks

    def full_disk(self) -> str:
        """The disk fills up before some file operation; what was there stays, and a run goes on once there is room."""
        disk = self.work / "disk"
        with small_disk(disk, "48m"):
            for number in range(PLACES):
                output, filler = disk / f"run-{number}", disk / "filler"
                place = 8 + int((number + self.draw.random()) / PLACES * (self.whole[1].operations - 8))

                def fill(place: int = place, filler: Path = filler) -> None:
                    def act() -> None:
                        with filler.open("wb", buffering=0) as file:
                            for size in (2**20, 2**12, 1):
                                try:
                                    while file.write(b"\0" * size):
                                        pass
                                except OSError:
                                    continue

                    forks.at_operation(disk, place, act)

                words = self.subject.words(f"disk/{output.name}")
                ended = forks.run(words, self.work, before=fill)
                if ended.code:  # the last operations may need no room
                    begun = ["--resume"] if (output / "config.yaml").is_file() else []
                    sentence(ended, 6, *begun)
                    said = ("no space is left on the disk", "0.00 GiB free")
                    require(any(words in ended.said for words in said), ended.said[-1500:])
                filler.unlink()
                require(not leftovers(output), f"left behind: {leftovers(output)}")
                self.subject.check_killed(output, self.work / "whole")
                self._goes_on(f"disk/{output.name}")
                shutil.rmtree(output)
        return f"{PLACES} places: exit code 6, whole checkpoints, same end"

    def read_only_disk(self) -> str:
        """Neither a new run nor one that is gone on with can write: each ends in a sentence."""
        disk = self.work / "locked"
        with small_disk(disk, "48m"):
            killed = forks.run(
                self.subject.words("locked/run"), self.work, forks.AtMoment(self.whole[1].seconds / 2)
            )
            require(killed.code is None, "it was not killed")
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, capture_output=True)
            for output in ("locked/run", "locked/new"):
                sentence(forks.run(self.subject.words(output), self.work), 6, "Read-only file system")
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True, capture_output=True)
            self._goes_on("locked/run")
        return "new and resumed run: exit code 6; same end once it can be written"

    # ---------------------------------------------------------------- data

    def _data(self, name: str) -> tuple[Path, list[str | Path]]:
        """Records with pictures in files, and the words of a short run on them."""
        from vlsi_cli.engine.data.patterns import pattern_record

        folder = self.work / name
        folder.mkdir()
        rows = []
        for index in range(12):
            puzzle = pattern_record("train", index)
            puzzle.image.save(folder / f"{index}.png")
            said = {"from": "human", "value": f"<image>\n{puzzle.turns[0].text}"}
            answer = {"from": "gpt", "value": puzzle.turns[0].answer}
            rows.append({"id": str(index), "image": f"{index}.png", "conversations": [said, answer]})
        (folder / "data.json").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        source = f"data={{sources: [{{kind: llava, path: {folder / 'data.json'}}}]}}"
        sets = ("verbalization=null", "interaction=null", "teacher=null", "evaluation.data=null", source)
        more = ("reinforcement.steps=8", "reinforcement.batch_size=2", "checkpoint_every=2")
        words: list[str | Path] = ["distill", "--recipe", "demo", "--resume", "auto"]
        words += [word for value in (*sets, *more) for word in ("--set", value)]
        return folder, [*words, "--set", f"student.id={self.work / 'small'}"]

    def vanished_data(self) -> str:
        """The file of the records is moved away in the middle, and put back."""
        folder, words = self._data("records")
        whole = forks.run([*words, "--output", "records-whole"], self.work)
        require(whole.code == 0, whole.said)
        file, away = folder / "data.json", folder / "away.json"
        steps = _after_line(self.work / "records-run" / "metrics.jsonl", lambda: file.rename(away))
        ended = forks.run([*words, "--output", "records-run"], self.work, before=steps)
        sentence(ended, 3, str(file), "--resume")
        require(away.exists(), "the fault was not staged")
        away.rename(file)
        ended = forks.run([*words, "--output", "records-run"], self.work)
        require(ended.code == 0, ended.said)
        ours, theirs = (self.subject.final(self.work / name) for name in ("records-run", "records-whole"))
        require(ours == theirs, "it goes on to another end")
        return "exit code 3 names the file; same end once it is back"

    def vanished_pictures(self) -> str:
        """Every picture but one goes: the records are counted, named and skipped, and the run ends well."""
        folder, words = self._data("pictures")

        def remove() -> None:
            for picture in folder.glob("*.png"):
                if picture.name != "0.png":
                    picture.unlink()

        before = _after_line(self.work / "pictures-run" / "metrics.jsonl", remove)
        ended = forks.run([*words, "--output", "pictures-run"], self.work, before=before)
        require(ended.code == 0, ended.said)
        report = json.loads((self.work / "pictures-run" / "data.json").read_text("utf-8"))["reinforcement"]
        require(report["reasons"]["image-missing"]["count"] == 11, f"counted: {report['reasons']}")
        require("image-missing 11" in ended.said, "nobody is told")
        return "11 of 12 records counted and skipped, exit code 0"

    def killed_worker(self) -> str:
        """A process that reads data dies: the run ends in a sentence, and goes on to the end of one without workers."""
        _, words = self._data("workers")
        whole = forks.run([*words, "--output", "workers-whole"], self.work)
        require(whole.code == 0, whole.said)
        words += ["--set", "data.workers=1"]

        def kill() -> None:
            import multiprocessing

            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGKILL)

        before = _after_line(self.work / "workers-run" / "metrics.jsonl", kill)
        ended = forks.run([*words, "--output", "workers-run"], self.work, before=before)
        sentence(ended, 3, "a process that reads data ended", "--resume")
        ended = forks.run([*words, "--output", "workers-run"], self.work)
        require(ended.code == 0, ended.said)
        ours, theirs = (self.subject.final(self.work / name) for name in ("workers-run", "workers-whole"))
        for made in (ours, theirs):
            for name in ("config.yaml", "origins.json"):  # they tell the number of workers
                made["files"].pop(name)
        require_same(ours, theirs, "it goes on to another end")
        return "exit code 3; same end as without workers"

    def corrupted_shard(self) -> str:
        """One bit of a teacher cache is wrong: the run that reads it ends, and goes on once the shard is made again."""
        cache = Cache(self.work / "cached")
        build = cache.words("cache")
        require(forks.run(build, cache.work).code == 0, "the cache is not built")
        words = ["distill", "--recipe", "demo", *cache._models, "--teacher-cache", cache.work / "cache"]
        words += [*cache._data, "--set", "interaction.steps=15", "--set", "interaction.batch_size=8"]
        words += ["--set", "evaluation.data=null", "--set", "reinforcement.steps=1", "--resume", "auto", "-o"]
        require(forks.run([*words, "whole"], cache.work).code == 0, "the unbroken run fails")
        shard = sorted((cache.work / "cache" / "shards").iterdir())[1]
        content = bytearray(shard.read_bytes())
        for place in range(len(content) // 2, len(content), 4096):  # in every record of its second half
            content[place] ^= 1
        shard.write_bytes(content)
        sentence(forks.run([*words, "run"], cache.work), 7, str(shard), "vlsi cache build")
        verified = forks.run(["cache", "verify", cache.work / "cache"], cache.work)
        require(verified.code == 7 and shard.name in verified.said + verified.data, "verify does not name it")
        shard.unlink()
        require(forks.run(build, cache.work).code == 0, "the shard is not made again")
        words[words.index("--resume") : words.index("-o")] = []
        ended = forks.run(["distill", "--resume", "run"], cache.work)
        require(ended.code == 0, ended.said)
        ours, theirs = (self.subject.final(cache.work / name)["files"] for name in ("run", "whole"))
        require(ours == theirs, "it goes on to another end")
        return "exit code 7 names the shard, verify too; same end once it is made again"

    # ---------------------------------------------------------------- time and signals

    def clock_jumps(self) -> str:
        """Every look at the clock finds another year, and the files' times are as wild."""

        def wild() -> None:
            import time

            clock = random.Random(1)
            time.time = lambda: clock.uniform(0, 4e9)
            time.time_ns = lambda: int(time.time() * 1e9)

        half = forks.AtOperation(int(self.whole[1].operations * 0.6))
        require(
            forks.run(self.subject.words("clock"), self.work, half, before=wild).code is None, "not killed"
        )
        for number, path in enumerate(sorted((self.work / "clock").rglob("*"))):
            os.utime(path, (number * 7919 % 1000, number * 7919 % 1000))
        ended = forks.run(self.subject.words("clock"), self.work, before=wild)
        require(ended.code == 0, ended.said)
        require(self.subject.final(self.work / "clock") == self.wanted, "the clock changes the end")
        return "killed, resumed, same end"

    def preemption(self) -> str:
        """SIGTERM and SIGUSR1 at some moments: a checkpoint, the documented exit code, and the same end."""
        stopped = 0
        for number, (sign, code) in enumerate([(signal.SIGTERM, 143), (signal.SIGUSR1, 138)]):
            output = f"stopped-{number}"
            moment = self.whole[1].seconds * (0.3 + 0.6 * (number + self.draw.random()) / 2)
            ended = forks.run(self.subject.words(output), self.work, forks.AtMoment(moment, sign))
            require(ended.code == code, f"exit code {ended.code} instead of {code}: {ended.said[-1500:]}")
            require(
                "Traceback" not in ended.said and "resume with: vlsi distill --resume" in ended.said,
                ended.said,
            )
            stopped += "a checkpoint is saved" in ended.said
            self._goes_on(output)
        return f"2 stops, {stopped} of them inside a stage: exit codes 143 and 138, same end"


def _after_line(file: Path, act: Callable[[], object]) -> Callable[[], None]:
    """What a child calls first, so that something happens before a line is added to a file for the fourth time."""

    def install() -> None:
        import sys

        seen = 0

        def heard(event: str, args: tuple[object, ...]) -> None:
            nonlocal seen
            if (
                event == "open"
                and str(args[0]).endswith(f"{file.parent.name}/{file.name}")
                and args[1] == "a"
            ):
                seen += 1
                if seen == 4:
                    act()

        sys.addaudithook(heard)

    return install
