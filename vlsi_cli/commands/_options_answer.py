"""The options of `vlsi data answer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_ANSWERS, _RUN = "Answers", "Run"

FileOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="The .jsonl file to write.", show_default=False)
]
PromptOption = Annotated[
    str | None,
    typer.Option("--prompt", "-p", help="Take folders for folders of pictures, and ask this of each picture.",
                 show_default=False, rich_help_panel="Data"),
]  # fmt: skip
ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="MODEL", help="Who answers: hub id, folder, run folder (its student), or a "
                 "name such as Qwen2-VL-72B; default: the recipe's teacher.", show_default=False),
]  # fmt: skip
ReplaceOption = Annotated[
    bool,
    typer.Option("--replace", help="Answer every turn anew, each behind the new answers before it.",
                 rich_help_panel=_ANSWERS),
]  # fmt: skip
LengthOption = Annotated[
    int | None,
    typer.Option(min=1, help="Longest answer; a record with a longer one is left out. Default: 1024.",
                 show_default=False, rich_help_panel=_ANSWERS),
]  # fmt: skip
TemperatureOption = Annotated[
    float | None,
    typer.Option(min=0.0, max=100.0, help="Draw answers at this temperature. Default: 0, the likeliest token each "
                 "time.", show_default=False, rich_help_panel=_ANSWERS),
]  # fmt: skip
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, help="Seed of what is drawn.", show_default=False, rich_help_panel=_ANSWERS),
]
ThinkOption = Annotated[
    bool,
    typer.Option("--think", help="Have a model that can think do so, and keep its thoughts.",
                 rich_help_panel=_ANSWERS),
]  # fmt: skip
LimitOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Take this many records of each of the data, from the first.", show_default=False
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=0, help="Processes that read pictures ahead of the model. Default: as data.workers "
                 "says.", show_default=False, rich_help_panel=_RUN),
]  # fmt: skip
DryOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what there is to answer; load no weights, write nothing.")
]
