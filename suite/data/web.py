"""Files from the web, resumed where an earlier download stopped."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Callable
from pathlib import Path

CHUNK = 1 << 20
TIMEOUT = 60.0
"""Seconds without a byte after which a download is given up."""


def download(url: str, path: Path, size: int, progress: Callable[[int], None] | None = None) -> None:
    """Fetch `url` into `path`, going on after the bytes that are there; `size` is that of the whole file.

    Raises `OSError` when the server fails or sends less; what has come stays. `progress` is told the bytes present.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    have = path.stat().st_size if path.exists() else 0
    if have > size:
        path.unlink()
        have = 0
    if have < size:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            # A server that knows no ranges sends the whole file.
            resumed = answer.status == 206
            have = have if resumed else 0
            with path.open("ab" if resumed else "wb") as file:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    have += len(chunk)
                    if progress is not None:
                        progress(have)
                file.flush()
                os.fsync(file.fileno())
    if have != size:
        raise OSError(f"{have:,} of {size:,} bytes came")
