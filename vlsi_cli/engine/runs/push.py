"""``vlsi push``: a run or a model to the Hugging Face hub, checked before anything is sent."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlsi_cli.config import missing
from vlsi_cli.config.catalog import DEMO_IDS
from vlsi_cli.engine.backbones.folders import resolve_folder
from vlsi_cli.engine.hub import contents
from vlsi_cli.engine.hub.card import Facts, make_card, own_card
from vlsi_cli.engine.hub.contents import CARD, PICTURE, RECIPE, Item
from vlsi_cli.engine.hub.licences import Licence, licence_of
from vlsi_cli.engine.hub.upload import Hub, Target
from vlsi_cli.engine.reports.heatmap import draw_matches
from vlsi_cli.engine.runs.match_history import read_history
from vlsi_cli.engine.runs.push_evaluation import scores_for
from vlsi_cli.engine.runs.push_facts import Run, find_run, plain_versions, run_facts
from vlsi_cli.errors import ConfigError, HubError, Interrupted, ModelError, VlsiError
from vlsi_cli.events import Events, Note, Warn, ignore

__all__ = ["Along", "FileLine", "PushReport", "Target", "after_run", "check", "run"]


@dataclass(frozen=True)
class Along:
    """What is sent besides the model.

    Attributes:
        verbalizers: the run's trained sets.
        metrics: every step's metrics, the matched layers, the scores and the versions of the run.
        onnx: folders of exported graphs.
        licence: identifier for the card, in place of that of the small base.
        evaluations: output folders of ``vlsi eval`` whose scores go on the card; none: one in the run folder, if any.
    """

    verbalizers: bool = False
    metrics: bool = False
    onnx: tuple[Path, ...] = ()
    licence: str | None = None
    evaluations: tuple[Path, ...] = ()


@dataclass(frozen=True)
class FileLine:
    """A file of a push.

    Attributes:
        path: its place in the repository.
        size: bytes.
    """

    path: str
    size: int


@dataclass(frozen=True)
class PushReport:
    """What was sent, or would be.

    Attributes:
        source: the run or model.
        repo: ``owner/name``.
        files: every file, in order; ``size`` is their sum in bytes.
        card: the text of the model card.
        dry_run: whether nothing was sent.
        url: the repository's page, or that of the pull request; None in a dry run, as all below.
        commit: the commit that holds it.
        changed: False when the repository held all of it already.
        removed: weights of an earlier push that were taken away, since readers might have loaded them.
    """

    source: str
    repo: str
    files: tuple[FileLine, ...]
    size: int
    card: str
    dry_run: bool
    url: str | None = None
    commit: str | None = None
    changed: bool | None = None
    removed: tuple[str, ...] = ()


def check(target: Target) -> None:
    """Whether a push to that place can work at all: token, its rights, the repository. Sends nothing.

    Raises:
        HubError: it cannot.
    """
    Hub(target).check()


def run(
    source: str,
    target: Target,
    along: Along | None = None,
    *,
    dry_run: bool = False,
    events: Events = ignore,
) -> PushReport:
    """Check a model, write its card, and send both with what else was asked for.

    Args:
        source: a run folder, its ``student/``, another checkpoint's folder, or ``demo/large|small``.
        target: where to.
        along: what is sent besides the model; None: nothing.
        dry_run: check everything on this machine, ask no hub, send nothing.
        events: told of what happens.

    Raises:
        ModelError, CheckpointError: what was given cannot be loaded by a reader, or is not finished.
        ConfigError: options that do not fit together.
        DataError: no evaluation in a folder that was given as one.
        HubError: files that must not travel, or a hub that refuses or fails. Nothing is half visible then.
        Interrupted: stopped by Ctrl-C.
    """
    along = along or Along()
    folder, found = _find(source)
    _require_fitting(source, folder, found, along)
    hub = None if dry_run else Hub(target)
    if hub is not None:
        hub.check()  # before the minutes that a large model takes to load
    items = contents.model_items(folder, source)
    scores = scores_for(folder, found.folder.path if found else None, along.evaluations, source, events)
    family = _load(folder, source)
    if found is not None:
        items = [item for item in items if item.path != CARD] + _of_run(found, along)
    items += contents.onnx_items(along.onnx)
    card = own_card(folder) if found is None else None
    if card is None:
        facts = _facts(source, folder, found, target.repo, family, along, items, ask=not dry_run)
        facts = replace(facts, benchmarks=scores.benchmarks, measured=scores.measured)
        if facts.licence is None:
            asked = "a dry run does not ask the hub" if dry_run else "no card of its base states one"
            events(Warn(f"the card names no licence ({asked}): give one with --license"))
        card = make_card(facts)
        items = [Item(CARD, card.encode()), *items]
    contents.screen(items, (hub.token,) if hub is not None else ())

    files = tuple(FileLine(item.path, item.size) for item in items)
    report = PushReport(source, target.repo, files, sum(file.size for file in files), card, dry_run)
    if hub is None:
        return report
    with _repeatable(_command(source, target, along), target.repo):
        hub.check_card(card)
        sent = hub.send(items, _message(found, source), lambda text: events(Note(text)))
    return replace(report, url=sent.url, commit=sent.commit, changed=sent.changed, removed=sent.removed)


@contextmanager
def _repeatable(again: str, repo: str) -> Iterator[None]:
    """Whatever ends the block early says how to go on.

    Raises:
        HubError, Interrupted: with the command as a hint.
    """
    try:
        yield
    except HubError as error:
        error.hint = "\n".join(filter(None, [error.hint, f"repeat it with: {again}"]))
        raise
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped while sending; {repo} shows nothing of it, and what has arrived is not sent again",
            hint=f"repeat it with: {again}",
        ) from None


def after_run(folder: Path, target: Target, events: Events) -> PushReport:
    """Send the student of a run that has just come to its end.

    Raises:
        VlsiError: as :func:`run`; the hint holds the command that sends it later.
    """
    try:
        return run(str(folder), target, events=events)
    except VlsiError as error:
        again = f"repeat it with: {_command(str(folder), target, Along())}"
        if again not in (error.hint or ""):
            error.hint = "\n".join(filter(None, [error.hint, again]))
        error.hint = f"the run is complete in {folder}, and only the push failed\n{error.hint}"
        raise


def _find(source: str) -> tuple[Path, Run | None]:
    """The folder of the model, and the run that made it."""
    if source in DEMO_IDS:
        return resolve_folder(source), None
    path = Path(source).expanduser()
    if not path.is_dir():
        hint = missing.near(source) or "give the folder that `vlsi distill` wrote, or that of a model"
        raise ModelError(f"there is no folder '{source}'", hint=hint)
    found = find_run(path)
    return (path if found is None else found.folder.student), found


def _require_fitting(source: str, folder: Path, found: Run | None, along: Along) -> None:
    """Refuse what only a run has, and a licence or scores for a card that is not written here."""
    if found is not None:
        return
    for option, given in (("--with-verbalizers", along.verbalizers), ("--with-metrics", along.metrics)):
        if given:
            raise ConfigError(
                f"{option} was given, but '{source}' is a model and not a run", hint="give the run's folder"
            )
    for option, wanted in (
        ("--license", along.licence is not None),
        ("--evaluation", bool(along.evaluations)),
    ):
        if wanted and (folder / CARD).is_file():
            raise ConfigError(
                f"{option} was given, but '{source}' has a card of its own",
                hint=f"change it in {folder / CARD}",
            )


def _load(folder: Path, shown: str) -> str:
    """Load the model and its processor with plain transformers and let it answer; its ``model_type``.

    Raises:
        ModelError: a reader could not load it, or it gives no numbers.
    """
    import torch

    from vlsi_cli.engine.backbones.families import read_config
    from vlsi_cli.engine.backbones.load import load_backbone
    from vlsi_cli.engine.backbones.saving import default_probes

    stored = read_config(folder, shown)
    parts = (stored, stored.get("text_config") or {})  # published configs have it in either
    names = (part.get(key) for part in parts for key in ("dtype", "torch_dtype"))
    dtype = getattr(torch, str(next(filter(None, names), "float32")), None)
    backbone = load_backbone(str(folder), dtype=dtype if isinstance(dtype, torch.dtype) else torch.float32)
    try:
        with torch.no_grad():
            logits = [backbone.head(backbone.forward_base(x)[:, -1:]) for x in default_probes(backbone)]
    except Exception as error:  # processors and models that do not fit each other raise errors of many kinds
        raise ModelError(f"'{shown}' loads, but cannot answer: {' '.join(str(error).split())}") from error
    if not all(bool(torch.isfinite(each).all()) for each in logits):
        raise ModelError(f"'{shown}' loads, but answers with numbers that are not finite")
    return backbone.family.name


def _of_run(found: Run, along: Along) -> list[Item]:
    """What a run adds to its student: the matched layers, the recipe, and what was asked for."""
    origin = f"the recipe {found.resolved.recipe}" if found.resolved.recipe else "the defaults"
    header = (
        f"The configuration of a run of vlsi that began from {origin}.\n"
        "Paths of the machine it ran on are reduced to names: put your own there."
    )
    items = [*_picture(found), contents.recipe_item(found.config.model_dump(mode="json"), header)]
    if along.verbalizers:
        items += contents.verbalizer_items(found.folder.path)
    if along.metrics:
        items += contents.metrics_items(found.folder.path)
    return items


def _picture(found: Run) -> list[Item]:
    """The matched layers of a run as a picture; none for a run that matched none."""
    if "interaction" not in found.folder.state.stages:
        return []
    stage = found.config.interaction
    if stage is None or not stage.matches:
        return []
    history = read_history(found.folder.path)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / PICTURE
        draw_matches(
            file,
            history.whole.shares,
            history.small_layers,
            history.large_layers,
            small=contents.portable(history.small),
            large=contents.portable(history.large),
            title=f"Matched layers in {history.steps} interaction steps",
        )
        return [Item(PICTURE, file.read_bytes())]


def _facts(
    source: str,
    folder: Path,
    found: Run | None,
    repo: str,
    family: str,
    along: Along,
    items: list[Item],
    *,
    ask: bool,
) -> Facts:
    if found is not None:
        facts = run_facts(found, repo, family, licence=along.licence, ask=ask)
    else:
        known = Licence(along.licence) if along.licence else licence_of(source, folder, None, ask=False)
        facts = Facts(repo=repo, family=family, licence=known, versions=plain_versions())
    paths = [item.path for item in items]
    return replace(
        facts,
        picture=PICTURE if PICTURE in paths else None,
        recipe=RECIPE if RECIPE in paths else None,
        metrics="training/metrics.jsonl" in paths,
        verbalizers=_second(paths, "verbalizers"),
        onnx=_second(paths, "onnx"),
    )


def _second(paths: Sequence[str], first: str) -> list[str]:
    """Names of the folders below a folder."""
    return list(dict.fromkeys(path.split("/")[1] for path in paths if re.match(rf"{first}/[^/]+/", path)))


def _message(found: Run | None, source: str) -> str:
    if found is None:
        return f"Upload {Path(source).resolve().name}"
    large = found.config.teacher
    return f"Upload the student of {Path(found.config.student.id).name}" + (
        f", distilled from {Path(large.id).name}" if large else ""
    )


def _command(source: str, target: Target, along: Along) -> str:
    """The command line that does the same again."""
    words: list[Any] = ["vlsi", "push", source, "--repo", target.repo]
    words += ["--private"] * target.private + ["--create-pr"] * target.create_pr
    for option, value in (("--branch", target.branch), ("--tag", target.tag), ("--license", along.licence)):
        words += [option, value] if value is not None else []
    words += ["--with-verbalizers"] * along.verbalizers + ["--with-metrics"] * along.metrics
    for option, folders in (("--with-onnx", along.onnx), ("--evaluation", along.evaluations)):
        for folder in folders:
            words += [option, str(folder)]
    return shlex.join(words)
