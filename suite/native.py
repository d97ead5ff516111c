"""Which precision the processor computes in without emulating it; known without importing torch."""

from __future__ import annotations

import contextlib
from pathlib import Path

AUTO = "auto"
"""The declared precision that stands for `native_precision` until the spec is made."""
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""As Linux names the instructions of x86-64 and Arm."""


def native_precision(device: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """`bf16` on a GPU and on a processor with instructions for it (two to three times as fast there), else `fp32`."""
    if device != "cpu":
        return "bf16"
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            name, _, values = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return "bf16" if _BF16 & set(values.split()) else "fp32"
    return "fp32"
