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

from vlsi_cli.config.catalog import DEMO_IDS
from vlsi_cli.engine.backbones.folders import resolve_folder
from vlsi_cli.engine.hub import contents
from vlsi_cli.engine.hub.card import Facts, make_card
from vlsi_cli.engine.hub.contents import CARD, PICTURE, RECIPE, Item
from vlsi_cli.engine.hub.licences import Licence, licence_of
from vlsi_cli.engine.hub.upload import Hub, Target
from vlsi_cli.engine.runs.push_facts import Run, find_run, plain_versions, run_facts
from vlsi_cli.errors import ConfigError, HubError, Interrupted, ModelError, VlsiError
from vlsi_cli.events import Events, Note, Warn, ignore

__all__ = ["FileLine", "PushReport", "Target", "after_run", "check", "run"]


@dataclass(frozen=True)
class FileLine:
    """A file of a push: its place in the repository and its bytes."""

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
    *,
    with_verbalizers: bool = False,
    with_metrics: bool = False,
    with_onnx: Sequence[Path] = (),
    licence: str | None = None,
    dry_run: bool = False,
    events: Events = ignore,
) -> PushReport:
    """Check a model, write its card, and send both with what else was asked for.

    Args:
        source: a run folder, its ``student/``, another checkpoint's folder, or ``demo/large|small``.
        target: where to.
        with_verbalizers: send the run's trained sets.
        with_metrics: send every step's metrics, the matched layers, the scores and the versions.
        with_onnx: folders of exported graphs.
        licence: identifier for the card, in place of that of the small base.
        dry_run: check everything on this machine, ask no hub, send nothing.
        events: told of what happens.

    Raises:
        ModelError, CheckpointError: what was given cannot be loaded by a reader, or is not finished.
        ConfigError: options that do not fit together.
        HubError: files that must not travel, or a hub that refuses or fails. Nothing is half visible then.
        Interrupted: stopped by Ctrl-C.
    """
    hub = None if dry_run else Hub(target)
    if hub is not None:
        hub.check()
    folder, found = _find(source)
    if found is None and (with_verbalizers or with_metrics):
        asked = "--with-verbalizers" if with_verbalizers else "--with-metrics"
        raise ConfigError(
            f"{asked} was given, but '{source}' is a model and not a run", hint="give the run's folder"
        )
    items = contents.model_items(folder, source)
    extras = contents.onnx_items(with_onnx)
    if found is not None and with_verbalizers:
        extras += contents.verbalizer_items(found.folder.path)
    if found is not None and with_metrics:
        extras += contents.metrics_items(found.folder.path)
    family = _load(folder, source)
    picture = _picture(found)
    if found is not None:
        items = (
            [item for item in items if item.path not in (CARD, PICTURE, RECIPE)] + picture + [_recipe(found)]
        )
    items += extras
    facts = _facts(source, folder, found, target.repo, family, licence, items, ask=not dry_run)
    if facts.licence is None:
        events(Warn("the card names no licence, since no card of the base does: give one with --license"))
    card = _card(folder, found, facts)
    items = [Item(CARD, card.encode()), *(item for item in items if item.path != CARD)]
    contents.screen(items, (hub.token,) if hub is not None else ())

    files = tuple(FileLine(item.path, item.size) for item in items)
    report = PushReport(source, target.repo, files, sum(file.size for file in files), card, dry_run)
    if hub is None:
        return report
    again = _command(source, target, with_verbalizers, with_metrics, with_onnx, licence)
    with _repeatable(again, target.repo):
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
        again = f"repeat it with: {_command(str(folder), target, False, False, (), None)}"
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
        raise ModelError(
            f"there is no folder '{source}'",
            hint="give the folder that `vlsi distill` wrote, or that of a model",
        )
    found = find_run(path)
    return (path if found is None else found.folder.student), found


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
    name = str(stored.get("dtype") or stored.get("torch_dtype") or "float32")
    dtype = getattr(torch, name, None)
    backbone = load_backbone(str(folder), dtype=dtype if isinstance(dtype, torch.dtype) else torch.float32)
    for inputs in default_probes(backbone):
        with torch.no_grad():
            logits = backbone.head(backbone.forward_base(inputs)[:, -1:])
        if not bool(torch.isfinite(logits).all()):
            raise ModelError(f"'{shown}' loads, but answers with numbers that are not finite")
    return backbone.family.name


def _picture(found: Run | None) -> list[Item]:
    """The matched layers of a run as a picture; none for a run that matched none."""
    if found is None or "interaction" not in found.folder.state.stages:
        return []
    stage = found.config.interaction
    if stage is None or stage.intermediate in ("ce", "none"):
        return []
    from vlsi_cli.engine.runs.match_history import draw_history

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / PICTURE
        draw_history(found.folder.path, file)
        return [Item(PICTURE, file.read_bytes())]


def _recipe(found: Run) -> Item:
    origin = f"the recipe {found.resolved.recipe}" if found.resolved.recipe else "the defaults"
    header = (
        f"The configuration of a run of vlsi that began from {origin}.\n"
        "Paths of the machine it ran on are reduced to names: put your own there."
    )
    return contents.recipe_item(found.config.model_dump(mode="json"), header)


def _facts(
    source: str,
    folder: Path,
    found: Run | None,
    repo: str,
    family: str,
    licence: str | None,
    items: list[Item],
    *,
    ask: bool,
) -> Facts:
    if found is not None:
        facts = run_facts(found, repo, family, licence=licence, ask=ask)
    else:
        known = Licence(licence) if licence else licence_of(source, folder, None, ask=False)
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


def _card(folder: Path, found: Run | None, facts: Facts) -> str:
    """The card that is written here; or a model's own, where it has one and no run of ours says more."""
    own = folder / CARD
    if found is None and own.is_file():
        return own.read_text(encoding="utf-8")
    return make_card(facts)


def _message(found: Run | None, source: str) -> str:
    if found is None:
        return f"Upload {Path(source).resolve().name}"
    large = found.config.teacher
    return f"Upload the student of {Path(found.config.student.id).name}" + (
        f", distilled from {Path(large.id).name}" if large else ""
    )


def _command(
    source: str,
    target: Target,
    with_verbalizers: bool,
    with_metrics: bool,
    with_onnx: Sequence[Path],
    licence: str | None,
) -> str:
    """The command line that does the same again."""
    words: list[Any] = ["vlsi", "push", source, "--repo", target.repo]
    words += ["--private"] * target.private + ["--create-pr"] * target.create_pr
    for option, value in (("--branch", target.branch), ("--tag", target.tag), ("--license", licence)):
        words += [option, value] if value is not None else []
    words += ["--with-verbalizers"] * with_verbalizers + ["--with-metrics"] * with_metrics
    for folder in with_onnx:
        words += ["--with-onnx", str(folder)]
    return shlex.join(words)
