"""What trackers are told, under which names and steps; and that one that breaks harms nobody."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from vlsi_cli import events as ev
from vlsi_cli.engine.trackers import KINDS, Tracker, open_trackers
from vlsi_cli.errors import ConfigError


class Notebook(Tracker):
    """Writes down what it is told."""

    name = "notebook"
    made: ClassVar[list[Notebook]] = []

    def _start(self) -> Any:
        self.told: list[tuple[Any, ...]] = []
        self.breaks = False
        Notebook.made.append(self)
        return None

    def configure(self, values: Mapping[str, Any]) -> None:
        self.told.append(("configure", dict(values)))

    def rewind(self, step: int) -> None:
        self.told.append(("rewind", step))

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        if self.breaks:
            raise ConnectionError("the server is gone\nand more of it")
        self.told.append(("numbers", step, dict(values)))

    def histograms(self, values: Mapping[str, Sequence[int]], step: int) -> None:
        self.told.append(("histograms", step, {name: list(v) for name, v in values.items()}))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        self.told.append(("table", step, name, list(columns), [list(row) for row in rows]))

    def finish(self) -> None:
        self.told.append(("finish",))
        sys.stdout.write("a tracker that prints\n")


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> type[Notebook]:
    monkeypatch.setitem(KINDS, "notebook", Notebook)
    Notebook.made = []
    return Notebook


def step(stage: str, number: int, total: int, **more: Any) -> ev.StepDone:
    return ev.StepDone(
        stage, number, total, 3.0, {"2": 2.0, "last": 1.0}, None, 1e-4, 0.5, 10.0, 1.0, (), 6, 40, 2.0, **more
    )


def opened(events: ev.Events, tmp_path: Path, **more: Any) -> Any:
    values = {"project": "p", "run": "r", "resumed": False, "done": 0, "configuration": {"seed": 1}}
    return open_trackers(["notebook"], events, folder=tmp_path, **(values | more))


def test_names_and_one_count_of_steps_over_all_stages(
    notebook: type[Notebook], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draws = ({2: (4,)}, {2: (8,)})
    sample = ev.LayerSample("q1", "Which?", "red", {"2": "re", "last": "red"})
    heard: list[ev.Event] = []
    told = [
        ev.Evaluated("small before", 0.25, 2.0, 8, {"colour": 0.5}),
        ev.StageStarted("verbalization", "large", 2, 8),
        step("verbalization", 1, 2),
        step("verbalization", 2, 2),
        ev.StageEnded("verbalization", 1.0, 3.0, "large"),
        ev.StageStarted("interaction", "small", 3, 8),
        ev.StepDone(
            *("interaction", 1, 3, 3.0, {"2": 2.0, "last": float("inf")}, {2: 8}),
            *(1e-4, float("nan"), 10.0, 1.0, draws, 6, 40, 2.0, 0.5, 1000, 2000),
        ),
        ev.Sampled("interaction", 1, (sample,)),
        step("interaction", 3, 3),
        ev.StageEnded("interaction", 1.0, 3.0),
        ev.Evaluated("small after", None, 1.0, 8),
    ]
    with opened(heard.append, tmp_path) as events:
        for event in told:
            events(event)
    assert heard == told, "every event goes on to whoever else hears"
    (made,) = notebook.made
    assert made.told[0] == ("configure", {"seed": 1})
    before = {"accuracy": 0.25, "loss": 2.0, "accuracy_of/colour": 0.5}
    assert made.told[1] == ("numbers", 0, {f"held_out/small_before/{k}": v for k, v in before.items()})
    assert [one[1] for one in made.told if one[0] == "numbers"] == [0, 1, 2, 3, 5, 5]
    first = made.told[4]
    assert first[2] == {  # 2 steps of the stage before; what is not finite is left out
        "interaction/loss": 3.0,
        "interaction/loss_of_layer/2": 2.0,
        "interaction/matched/2": 6.0,
        "interaction/learning_rate": 1e-4,
        "interaction/response_tokens": 6,
        "interaction/input_tokens": 40,
        "interaction/seconds": 2.0,
        "interaction/tokens_per_second": 20.0,
        "interaction/teacher_seconds": 0.5,
        "interaction/teacher_share": 0.25,
        "interaction/memory_bytes": 1000,
        "interaction/peak_memory_bytes": 2000,
    }
    columns, row = ["question", "reference", "layer 2", "layer last"], ["Which?", "red", "re", "red"]
    assert made.told[5] == ("table", 3, "interaction/samples", columns, [row])
    assert ("histograms", 5, {"interaction/matched_layers/2": [4, 8]}) in made.told
    assert made.told[-2:] == [("numbers", 5, {"held_out/small_after/loss": 1.0}), ("finish",)]
    assert capsys.readouterr() == ("", "a tracker that prints\n"), "standard output is for data"


def test_a_resumed_run_takes_back_what_comes_again(notebook: type[Notebook], tmp_path: Path) -> None:
    with opened(ev.ignore, tmp_path, resumed=True, done=10) as events:
        events(ev.StageStarted("interaction", "small", 9, 8, first_step=4))
        events(step("interaction", 5, 9))
        events(ev.StageStarted("reinforcement", "small", 9, 8))
    (made,) = notebook.made
    assert [one[:2] for one in made.told[1:]] == [("rewind", 14), ("numbers", 15), ("finish",)]


def test_a_tracker_that_breaks_is_warned_of_once(notebook: type[Notebook], tmp_path: Path) -> None:
    heard: list[ev.Event] = []
    with opened(heard.append, tmp_path) as events:
        events(ev.StageStarted("interaction", "small", 9, 8))
        notebook.made[0].breaks = True
        for number in (1, 2, 3):
            events(step("interaction", number, 9))
    warned = [event.text for event in heard if isinstance(event, ev.Warn)]
    assert len(warned) == 1
    assert warned[0].startswith("notebook failed (ConnectionError: the server is gone) and is told nothing")
    assert [one[0] for one in notebook.made[0].told] == ["configure"]


def test_a_tracker_that_does_not_start_stops_the_run_before_it_begins(
    notebook: type[Notebook], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Tracker) -> Any:
        raise PermissionError("no key\nconfigured")

    monkeypatch.setattr(notebook, "_start", refuse)
    with (
        pytest.raises(ConfigError, match=r"(?m)^notebook does not start: no key$"),
        opened(ev.ignore, tmp_path),
    ):
        pytest.fail("the block must not begin")


def test_without_trackers_nobody_stands_between(tmp_path: Path) -> None:
    facts = {"folder": tmp_path, "project": "p", "run": "r", "resumed": False, "done": 0, "configuration": {}}
    with open_trackers([], ev.ignore, **facts) as events:  # type: ignore[arg-type]
        assert events is ev.ignore
