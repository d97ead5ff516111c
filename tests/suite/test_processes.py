"""What counts as the memory of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from selfbench.suite.processes import group_memory_mb

HOLDS = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
if sys.argv[2] == "maps":
    total = sum(mapped[place] for place in range(0, len(mapped), 4096))
else:
    copy = bytearray(mapped)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="tells files from memory by a file of the Linux kernel")
def test_mapped_files_are_no_memory_of_a_run_and_copies_are(tmp_path: Path) -> None:
    file = tmp_path / "bundle.npy"
    file.write_bytes(b"x" * (64 << 20))
    taken = {}
    for what in ("maps", "copies"):
        command = [sys.executable, "-c", HOLDS, str(file), what]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            taken[what] = group_memory_mb(process.pid)
            process.stdin.close()
    assert 1 < taken["maps"] < 40
    assert 60 < taken["copies"] - taken["maps"] < 80


def test_a_process_that_has_gone_takes_none() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert group_memory_mb(process.pid) == 0
