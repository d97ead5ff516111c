"""Options that several verbs share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Results = Annotated[
    Path | None,
    typer.Option("--results", metavar="FOLDER", help="Results folder [default: $SELFBENCH_RESULTS or ./results]."),
]
SuiteName = Annotated[
    str | None, typer.Option("--suite", metavar="NAME", help="A suite by name, or the path of a suite's .toml file.")
]
Tasks = Annotated[list[str] | None, typer.Option("-t", "--task", metavar="NAME", help="A task; may be repeated.")]
Methods = Annotated[list[str] | None, typer.Option("-m", "--method", metavar="NAME", help="A method; may be repeated.")]
Seeds = Annotated[
    str | None, typer.Option("-s", "--seeds", metavar="LIST", help="Seeds, such as 0 or 0,1,2 or 0-9 [default: 0].")
]
Params = Annotated[
    list[str] | None,
    typer.Option("-p", "--param", metavar="NAME=VALUE", help="A hyper-parameter of the method; may be repeated."),
]
BudgetFields = Annotated[
    list[str] | None,
    typer.Option("--budget", metavar="NAME=VALUE", help="A field over the task's budget, such as limit=1e5."),
]
Selection = Annotated[str | None, typer.Option("--selection", metavar="RULE", help="Another selection rule.")]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda", help="Where the runs compute.")]
Precision = Annotated[str, typer.Option("--precision", metavar="auto|fp32|tf32|bf16", help="Declared precision.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of each run.")]
Generation = Annotated[
    str, typer.Option("--generation", metavar="native|vllm", help="What samples of language models come from.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
