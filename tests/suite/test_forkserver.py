"""The fork server's end: whatever state the line is in, it leaves in silence and takes its jobs along."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from selfbench.suite.engine.local import LocalExecutor
from selfbench.suite.engine.preparation import warm_modules
from selfbench.suite.suites import expand


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


def test_only_campaigns_of_adaptation_wait_for_scikit_learn(toys: None) -> None:
    """Its import takes longer than torch's, and the other protocols never call it."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, selfbench.suite.worker as _; print('sklearn' in sys.modules)"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == "False"
    [stream] = expand(tasks=["toy-stream"], methods=["source"], seeds=[0])
    [adaptation] = expand(tasks=["toy-adaptation"], methods=["supervised"], seeds=[0])
    assert "sklearn.neighbors" not in warm_modules([stream])
    assert "sklearn.neighbors" in warm_modules([adaptation])
