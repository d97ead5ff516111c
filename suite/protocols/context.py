"""What the loops of all protocols share: device, precision, checks of predictions, progress, checkpoints."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import checkpoint
from ..errors import MethodError
from ..spec import RunSpec
from ..wire import Wire

_PROGRESS_EVERY = 0.5


@dataclass
class Context:
    """The surroundings of one run in the method's process.

    `checkpoint_seconds` is the time between checkpoints; it changes no result. 0 makes one at every chance. A run of
    several trainings says at which of how many it is (`part`), and what of it belongs into a checkpoint (`kept`).
    """

    spec: RunSpec
    device: torch.device
    wire: Wire
    work: Path
    checkpoint_seconds: float = 30.0
    resumed: int = 0
    part: tuple[int, int] = (0, 1)
    kept: Mapping[str, Any] = field(default_factory=dict)
    _last_progress: float = 0.0
    _last_checkpoint: float = field(default_factory=time.monotonic)

    def progress(self, share: float, now: float | None = None) -> None:
        """Leave the done share of the run, or of its part, where the engine reads it; at most twice a second."""
        now = time.monotonic() if now is None else now
        if now - self._last_progress >= _PROGRESS_EVERY:
            self._last_progress = now
            with contextlib.suppress(OSError):
                done, parts = self.part
                (self.work / "progress").write_text(f"{(done + share) / parts:.4f}")

    def checkpoint_due(self, now: float | None = None) -> bool:
        """Whether it is time for a checkpoint. `now` (of `time.monotonic`) saves a reading of the clock."""
        now = time.monotonic() if now is None else now
        return now - self._last_checkpoint >= self.checkpoint_seconds

    def save_checkpoint(self, state: Mapping[str, Any], step: int) -> None:
        """The scorer saves what it holds first, then the method's side follows: neither is ever ahead of its data."""
        self.wire.send("checkpoint", step=step)
        reply = self.wire.receive()
        if reply is None or reply.kind != "saved":
            raise MethodError("the scorer has gone")
        state = dict(state) | {"resumed": self.resumed, "kept": dict(self.kept)}
        # A full disk costs the checkpoint, not the run.
        with contextlib.suppress(OSError):
            checkpoint.save(self.work / "checkpoint.pt", state, self.device)
        self._last_checkpoint = time.monotonic()

    def load_checkpoint(self) -> dict[str, Any] | None:
        state = checkpoint.load(self.work / "checkpoint.pt", self.device)
        if state is not None:
            self.resumed = int(state["resumed"]) + 1
        return state


def autocast(context: Context) -> contextlib.AbstractContextManager[Any]:
    """bf16 where the spec declares it; nothing otherwise."""
    if context.spec.precision == "bf16":
        return torch.autocast(context.device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def prepare_torch(spec: RunSpec) -> torch.device:
    """Set threads, determinism and precision for one run in this process; returns its device."""
    torch.set_num_threads(spec.threads)
    torch.use_deterministic_algorithms(True)
    # Filling every new tensor first guards against reading what was never written, at a tenth of a small model's time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    allow = spec.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allow
    torch.backends.cudnn.allow_tf32 = allow
    torch.backends.cudnn.benchmark = False
    return torch.device(spec.device)


def as_logits(value: Any, n: int, n_classes: int, owner: str, where: str, batch: int | None = None) -> Tensor:
    """`value` as float32 logits (n, n_classes); raises `MethodError` that says what was expected.

    `where` names what was predicted, with its number `batch` if it has one.
    """
    if isinstance(value, Tensor) and value.shape == (n, n_classes):
        plain = value.detach() if value.requires_grad else value
        return plain if plain.dtype is torch.float32 else plain.float()
    place = where if batch is None else f"{where} {batch}"
    if not isinstance(value, Tensor):
        raise MethodError(
            f"method '{owner}' returned a {type(value).__name__} for {place}; return its logits, a tensor "
            f"({n}, {n_classes})"
        )
    raise MethodError(
        f"method '{owner}' returned logits of shape {tuple(value.shape)} for {place}; expected ({n}, {n_classes}): "
        "return a row for each example and a column for each class, in the order given"
    )
