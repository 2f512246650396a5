"""``vlsi push``: a run or a model to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlsi_cli import events as ev
from vlsi_cli.commands import _options as opt
from vlsi_cli.commands import _output, _tables_push
from vlsi_cli.config.repos import check_repo_name

_WHAT, _WHERE = "What is sent", "Where to"


def push(
    source: Annotated[
        str,
        typer.Argument(metavar="RUN|MODEL", help="A run folder, a checkpoint's folder, or demo/large|small."),
    ],
    repo: Annotated[
        str,
        typer.Option(
            metavar="OWNER/NAME", help="The repository; made where there is none.", rich_help_panel=_WHERE
        ),
    ],
    private: Annotated[
        bool,
        typer.Option("--private", help="Make it private; a public one is refused.", rich_help_panel=_WHERE),
    ] = False,
    branch: Annotated[
        str | None,
        typer.Option(
            help="Push to this branch, made where there is none.", show_default=False, rich_help_panel=_WHERE
        ),
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead.", rich_help_panel=_WHERE)
    ] = False,
    tag: Annotated[
        str | None, typer.Option(help="Tag the commit.", show_default=False, rich_help_panel=_WHERE)
    ] = None,
    with_verbalizers: Annotated[
        bool,
        typer.Option("--with-verbalizers", help="Send the run's verbalizers too.", rich_help_panel=_WHAT),
    ] = False,
    with_metrics: Annotated[
        bool,
        typer.Option(
            "--with-metrics", help="Send the run's metrics and matched layers too.", rich_help_panel=_WHAT
        ),
    ] = False,
    with_onnx: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Send a folder of exported graphs too. Give it again for more.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Put the scores of this vlsi eval of the model on the card; default: one in the run folder, if any.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="ID",
            help="Licence for the card, e.g. apache-2.0; default: that of the small base.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print files, sizes and card; ask no hub, send nothing.")
    ] = False,
    json: opt.JsonOption = False,
) -> None:
    """Send a run's student, or another checkpoint, to the Hugging Face hub, with a model card.

    The model is loaded first as a reader would load it, and every file is searched for what must not travel. The
    token is that of `hf auth login` or of the variable HF_TOKEN. Readers see all of a push or nothing of it.
    """
    _output.use_json(json)
    check_repo_name(repo)

    from vlsi_cli.engine.runs import push as engine

    target = engine.Target(repo, private=private, branch=branch, create_pr=create_pr, tag=tag)
    along = engine.Along(
        with_verbalizers, with_metrics, tuple(with_onnx or ()), licence, tuple(evaluation or ())
    )
    report = engine.run(source, target, along, dry_run=dry_run, events=tell)
    if json:
        _output.document(report)
        return
    for part in _tables_push.push_parts(report):
        _output.data(part)


def tell(event: ev.Event) -> None:
    """Show what happens on the way."""
    match event:
        case ev.Note(text):
            _output.say(text)
        case ev.Warn(text):
            _output.warn(text)
