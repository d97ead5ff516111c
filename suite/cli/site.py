"""`selfbench site`: build the site, and look at it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options

app = typer.Typer(no_args_is_help=True, help="Build the static site from the records, and look at it.")
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The folder of the site.")]


@app.command("build")
def build(
    results: options.Results = None,
    out: Out = Path("build/site"),
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite", metavar="NAME", help="A suite to show; may be repeated [default: all].", show_default=False
        ),
    ] = None,
) -> None:
    """Draw the whole site; the old one stays in place until the new one is complete.

    \b
    Examples:
      selfbench site build
      selfbench site build --results results --out build/site --suite quick
    """
    import sys

    from ..board.choose import load_suites
    from ..places import results_folder
    from ..render import build_site
    from ..store import Store
    from ..suites import suite_names

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done:,} of {total:,} run pages", end="\n" if done == total else "", file=sys.stderr, flush=True)

    with Store(results_folder(results)).index() as index:
        for item in index.broken():
            typer.echo(f"no valid record: {item.error}", err=True)
        suites = load_suites(suite or suite_names(), index.summaries())
        built = build_site(index, suites, out, show)
    typer.echo(
        f"{built.pages:,} pages of {built.runs:,} runs, fingerprint {built.fingerprint}: {built.out / 'index.html'}"
    )


@app.command("serve")
def serve(
    out: Out = Path("build/site"),
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port on this machine; 0 takes a free one.")
    ] = 8000,
) -> None:
    """Serve the built site on this machine until interrupted. It also opens as a file, without a server.

    \b
    Examples:
      selfbench site serve
      selfbench site serve --out build/site --port 8080
    """
    import contextlib
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    from ..errors import UsageError
    from ..render import MARKER

    if not (out / MARKER).is_file():
        raise UsageError(f"There is no site in '{out}'. `selfbench site build --out {out}` makes one.")
    handler = partial(SimpleHTTPRequestHandler, directory=str(out))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise UsageError(f"Cannot listen on port {port}: {error.strerror}. Choose another with --port.") from None
    with server:
        typer.echo(f"http://127.0.0.1:{server.server_port}/  (interrupt to stop)")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
