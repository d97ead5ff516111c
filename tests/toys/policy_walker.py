"""A policy method that looks for the answers of the evaluation in everything its process can reach."""

from __future__ import annotations

import gc
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from selfbench import PolicyMethod, hyper, register_method

ENOUGH = 12
"""So many true answers in a row are no accident."""
LOOKED_AT = (str, bytes, list, tuple, np.ndarray, np.memmap, torch.Tensor, torch.nn.Parameter)


@register_method("policy-walks", family="hostile", protocol="policy", paper="-")
@dataclass
class PolicyWalks(PolicyMethod):
    """Writes where it found answers into a file; `needle` holds them, and is read only to recognise them."""

    needle: str = hyper("", help="file of the true answers (npy)")
    report: str = hyper("", help="file that is written")

    def round(self, policy, view, number: int) -> None:
        if number == 1:
            Path(self.report).write_text(json.dumps(self.walk()))

    def walk(self) -> list[str]:
        truth = np.load(self.needle)
        texts = [str(answer) for answer in truth[:ENOUGH].tolist()]
        packed = np.array([text.encode() for text in texts], dtype=np.bytes_).tobytes()
        forms = [packed, ",".join(texts).encode(), b"\n".join(text.encode() for text in texts)]
        found, seen = [], {id(truth), id(texts), id(packed), id(forms), *map(id, forms)}
        # Whatever holds something is known to gc; it names what is held without asking the objects themselves.
        todo = [*gc.get_objects(), *self.frames()]
        while todo:
            owner = todo.pop()
            for item in [] if owner is forms else gc.get_referents(owner):
                kind = type(item)
                if id(item) in seen:
                    continue
                if kind in LOOKED_AT:
                    seen.add(id(item))
                    if self.recognised(item, truth, texts, forms):
                        found.append(f"{kind.__name__} in a {type(owner).__name__}")
                # Containers of plain values are not tracked.
                if kind in (dict, list, tuple) and not gc.is_tracked(item):
                    seen.add(id(item))
                    todo.append(item)
        open_files = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")
                      if os.path.lexists(f"/proc/self/fd/{name}")]  # fmt: skip
        return found + [f"open file {name}" for name in open_files if "private" in name]

    @staticmethod
    def frames() -> list[dict[str, object]]:
        """What the calls under way hold, but for the walk itself."""
        frame, found = sys._getframe(2), []
        while frame is not None:
            found.append(dict(frame.f_locals))
            frame = frame.f_back
        return found

    @staticmethod
    def recognised(item: object, truth: np.ndarray, texts: list[str], forms: list[bytes]) -> bool:
        if isinstance(item, (str, bytes)):
            raw = item.encode(errors="replace") if isinstance(item, str) else item
            return len(raw) > 2 * ENOUGH and any(form in raw for form in forms)
        if isinstance(item, (list, tuple)):
            begin = list(item[:ENOUGH])
            # Items of other kinds may refuse to be compared.
            plain = len(begin) == ENOUGH and all(type(value) in (int, str) for value in begin)
            return plain and begin in (texts, truth[:ENOUGH].tolist())
        values = item.detach().cpu().numpy() if isinstance(item, torch.Tensor) else np.asarray(item)
        if values.dtype.kind not in "iufS" or values.size < ENOUGH:
            return False
        flat = values.reshape(-1)
        if flat.dtype.kind != "S" and np.array_equal(flat[:ENOUGH], truth[:ENOUGH]):
            return True
        return flat.dtype.itemsize <= 8 and any(form in flat.tobytes() for form in forms)
