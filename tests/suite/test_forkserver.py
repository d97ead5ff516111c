"""The fork server's end: whatever state the line is in, it leaves in silence and takes its jobs along."""

from __future__ import annotations

import json
import select
from pathlib import Path

import psutil
import pytest

from selfbench.suite.engine.local import LocalExecutor


def test_an_engine_that_leaves_with_answers_unread(
    toys: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A socket closed with unread data resets the connection; that is an end like any other."""
    executor = LocalExecutor(2)
    server = psutil.Process(executor._server.pid)
    argument = tmp_path / "prepare.json"
    argument.write_text(json.dumps({}))
    for _ in range(4):
        executor.call("prepare", argument, tmp_path / "log")
    assert select.select([executor._line], [], [], 60)[0]
    executor.close()
    assert not server.is_running()
    assert "Traceback" not in capfd.readouterr().err


def test_a_tasks_module_that_cannot_be_imported_stops_no_server(toys: None) -> None:
    """What it lacks, the preparation of its task says."""
    with LocalExecutor(1, warm=("selfbench.tasks.nowhere",)) as executor:
        assert psutil.Process(executor._server.pid).is_running()
