"""Sessions: `python -m pip install nox && python -m nox -s quick` (or tests, lint, types, slow, bench, site)."""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2024.4"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True

QUICK = Path("build", "quick")
BESIDE = ("-n", "logical", "--maxprocesses", "4", "--dist", "loadfile", "--benchmark-disable")
"""Files of tests side by side; each process of pytest has a fork server of its own, of a gigabyte."""
PINNED_TOOLS = {"ruff": "ruff>=0.14,<1", "mypy": "mypy>=1.18,<3"}


@nox.session
def quick(session: nox.Session) -> None:
    """Install, run the suite `quick` on real data, and leave a leaderboard to open in a browser."""
    session.install("-e", ".")
    results = str(QUICK / "results")
    session.run("selfbench", "run", "--suite", "quick", "--results", results, *session.posargs)
    session.run("selfbench", "board", "--suite", "quick", "--results", results)
    session.run("selfbench", "site", "build", "--results", results, "--out", str(QUICK / "site"))
    session.log(f"Open {(QUICK / 'site' / 'index.html').resolve().as_uri()}")


@nox.session
def tests(session: nox.Session) -> None:
    """Install and run all tests but the slow ones."""
    session.install("-e", ".[test]")
    session.run("pytest", "-m", "not slow and not benchmark_session", *BESIDE, *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """The tests that take minutes: fifty kills of a real campaign, every method on every task."""
    session.install("-e", ".[test]")
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure speed, as ratios within one run (pytest-benchmark)."""
    session.install("-e", ".[test]")
    session.run("pytest", "-m", "benchmark_session", "tests/benchmarks", "-s", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and common mistakes."""
    session.install(PINNED_TOOLS["ruff"])
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict on the harness, as installed from the wheel."""
    session.install(".", PINNED_TOOLS["mypy"])
    session.run("mypy", "--strict", "-p", "selfbench.suite", "--config-file", str(Path("pyproject.toml").resolve()))


@nox.session
def site(session: nox.Session) -> None:
    """Build the leaderboard from the committed records."""
    session.install("-e", ".")
    session.run("selfbench", "site", "build", "--results", "results", "--out", str(Path("build", "site")))
    session.log(f"Open {Path('build', 'site', 'index.html').resolve().as_uri()}")
