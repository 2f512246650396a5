"""Options that more than one command has, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlsi_cli.config.run import Precision

_MODELS, _DATA, _RUN = "Models", "Data", "Run"

RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe", "-r", metavar="NAME|FILE", help="A shipped recipe or a YAML file.", show_default=False
    ),
]
TeacherOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The large model: hub id, folder, or a name such as Qwen2-VL-72B.",
        show_default=False,
        rich_help_panel=_MODELS,
    ),
]
StudentOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL|SIZE",
        help="The small model; a size such as 2b means that size of the teacher's family.",
        show_default=False,
        rich_help_panel=_MODELS,
    ),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="WORD",
        help="Training data: a .json or .jsonl file, a dataset folder, a parquet file, a hub id, or the word patterns. "
        "Give it again to mix.",
        show_default=False,
        rich_help_panel=_DATA,
    ),
]
NamedArgument = Annotated[
    list[str] | None, typer.Argument(metavar="DATA", help="As --data.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one value of the configuration, e.g. interaction.steps=100. Give it again for more.",
        show_default=False,
    ),
]
SeedOption = Annotated[
    int | None, typer.Option(min=0, help="Seed of the run.", show_default=False, rich_help_panel=_RUN)
]
DeviceOption = Annotated[
    str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", show_default=False, rich_help_panel=_RUN)
]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option(help="Precision of the computation.", show_default=False, rich_help_panel=_RUN),
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Run folder; default: runs/NAME-N, the first free N.",
                 show_default=False, rich_help_panel=_RUN),
]  # fmt: skip
ReportToOption = Annotated[
    list[str] | None,
    typer.Option("--report-to", metavar="TRACKER",
                 help="Tell every step to tensorboard, trackio or wandb too. Give it again for more.",
                 show_default=False, rich_help_panel=_RUN),
]  # fmt: skip
PushOption = Annotated[
    str | None,
    typer.Option("--push", metavar="OWNER/NAME", help="Send the finished student to this repository of the hub.",
                 show_default=False, rich_help_panel=_RUN),
]  # fmt: skip
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is there.", rich_help_panel=_RUN)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document to standard output.")]
