"""The options of `vlsi eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_JUDGE = "Judge"

ModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        show_default=False,
        help="Hub id, folder, or a name such as Qwen2-VL-2B; again for more. Default: the demo pair.",
    ),
]
BenchOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bench",
        "-b",
        metavar="NAME[,NAME]",
        show_default=False,
        help="Benchmarks; any task of lmms-eval works too. Default: patterns.",
    ),
]
ListOption = Annotated[bool, typer.Option("--list", help="Print the benchmarks and what they need.")]
LimitOption = Annotated[
    int | None,
    typer.Option(min=1, show_default=False, help="Ask this many questions of each task, from the first."),
]
BatchOption = Annotated[
    str, typer.Option(metavar="N|auto", help="Questions at once; auto halves when memory runs out.")
]
LengthOption = Annotated[
    int | None,
    typer.Option(min=1, show_default=False, help="Longest answer, in place of what each task says."),
]
PaperOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ROW",
        show_default=False,
        help="The paper's row for each --model, in order, e.g. VLsI-2B; none for none. "
        "Default: found by the model's name.",
    ),
]
TasksOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", show_default=False, help="A folder with task files of your own."),
]
MinPixelsOption = Annotated[
    int | None, typer.Option(min=1, show_default=False, help="Smallest picture, in pixels.")
]
MaxPixelsOption = Annotated[
    int | None, typer.Option(min=1, show_default=False, help="Largest picture, in pixels.")
]
JudgeModelOption = Annotated[
    str | None,
    typer.Option(
        envvar="VLSI_JUDGE_MODEL",
        show_default=False,
        rich_help_panel=_JUDGE,
        help="The judge's name on its server. The key is read from VLSI_JUDGE_KEY or OPENAI_API_KEY.",
    ),
]
JudgeUrlOption = Annotated[
    str | None,
    typer.Option(
        envvar="VLSI_JUDGE_URL",
        show_default=False,
        rich_help_panel=_JUDGE,
        help="An OpenAI-compatible address such as http://localhost:8000/v1. Default: OpenAI's.",
    ),
]
JudgeTimeoutOption = Annotated[
    float | None,
    typer.Option(min=0.1, show_default=False, rich_help_panel=_JUDGE, help="Seconds to wait for a verdict."),
]
SkipOption = Annotated[
    bool,
    typer.Option(
        "--skip-unjudged", rich_help_panel=_JUDGE, help="Without a judge, leave out what needs one."
    ),
]
RequireOption = Annotated[
    list[str] | None,
    typer.Option(
        "--require",
        metavar="[MODEL:]BENCH>=N",
        show_default=False,
        help="Fail (exit code 10) unless the score is at least N, or with <= at most; of every model, or of the one "
        "named. Again for more. Quote it.",
    ),
]
_GATE = "Gate"

StoredBenchOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bench",
        "-b",
        metavar="NAME[,NAME]",
        show_default=False,
        help="Only these benchmarks. Default: all that were stored.",
    ),
]
FirstOption = Annotated[
    str | None, typer.Option("--first", metavar="MODEL", show_default=False, help="Only this model of A.")
]
SecondOption = Annotated[
    str | None, typer.Option("--second", metavar="MODEL", show_default=False, help="Only this model of B.")
]
NoWorseOption = Annotated[
    bool,
    typer.Option(
        "--no-worse",
        rich_help_panel=_GATE,
        help="Fail (exit code 10) if B is worse than A on any benchmark: if the 95 % interval of the difference lies "
        "wholly below zero.",
    ),
]
MarginOption = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        metavar="POINTS",
        show_default=False,
        rich_help_panel=_GATE,
        help="With --no-worse: fail unless the whole interval lies above minus this.",
    ),
]
FolderOption = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Folder of answers and report; what it holds is reused."
    ),
]
HtmlOption = Annotated[
    bool, typer.Option("--html", help="Write a page with questions, pictures and answers.")
]
