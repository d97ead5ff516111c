"""Methods that try to get labels they did not buy, or to hide those they bought."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import stat
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from selfbench import AdaptationMethod, hyper, register_method

SHIFT = 100
"""The needle is the true labels plus this, so that looking for them does not put them into memory."""
RUN = 60
"""So many hidden labels in a row are no coincidence."""
FORMS = ("u1", "<i4", "<i8", "<f4")
MOST = 200_000
LAST = 27
"""Labels in the last round of `toy-active`."""


@register_method("forgets-labels", family="hostile", protocol="adaptation", paper="-")
@dataclass
class ForgetsLabels(AdaptationMethod):
    """Says in the end that it had three labels."""

    def loss(self, labeled: Any, unlabeled: Any) -> Tensor:
        if len(self.view.labels) == LAST:
            self.view.meter.counts.labels = 3
        return F.cross_entropy(self.model(labeled.weak), labeled.y)


@register_method("steals-labels", family="hostile", protocol="adaptation", paper="-")
@dataclass
class StealsLabels(AdaptationMethod):
    """Looks in one way for labels of examples that are still in the pool, or of the test, in its last round.

    `needle` is the path of a file with the true labels of all examples, shifted; it is read to recognise them.
    """

    needle: str = hyper("", help="file of the true labels plus 100, uint8 (npy)")
    report: str = hyper("", help="file that is written")
    way: str = hyper("objects", help="where to look")

    def loss(self, labeled: Any, unlabeled: Any) -> Tensor:
        return F.cross_entropy(self.model(labeled.weak), labeled.y)

    def fit(self, view: Any) -> None:
        if len(view.labels) == LAST:
            self.prepare(self.locals_of_the_loop()["plan"]["unlabeled"], view.context.work)
            looked_at, found = self.search()
            Path(self.report).write_text(json.dumps({"looked_at": looked_at, "found": found}))
        view.train(self)

    @staticmethod
    def locals_of_the_loop() -> dict[str, Any]:
        frame = sys._getframe()
        while frame is not None and frame.f_code.co_name != "run_active":
            frame = frame.f_back
        return frame.f_locals

    def prepare(self, hidden: np.ndarray, work: Path) -> None:
        shifted = np.load(self.needle)
        self.work = work
        self.wanted = [shifted[:RUN], shifted[hidden][:RUN], shifted[400 : 400 + RUN]]

    def search(self) -> tuple[int, list[str]]:
        """At how many things it looked, and what it found."""
        looked_at, found = 0, []
        for name, item in getattr(self, f"_{self.way}")():
            looked_at += 1
            if self.holds_labels(item):
                found.append(str(name)[:80])
        return looked_at, found

    def holds_labels(self, item: Any) -> bool:
        """Whether an array, a tensor, a sequence of numbers, or raw bytes hold labels that were wanted."""
        kind = type(item)
        if issubclass(kind, (bytes, bytearray, memoryview)):
            return self.in_bytes(item)
        if issubclass(kind, str):
            digits = np.frombuffer(item.encode(errors="replace"), np.uint8)
            return self.in_values(digits.astype(np.int64) - 48)
        if issubclass(kind, Tensor):
            with contextlib.suppress(Exception):
                return self.in_values(item.detach().cpu().numpy())
        if issubclass(kind, np.ndarray):
            return item is not self.wanted and self.in_values(item)
        if issubclass(kind, (list, tuple)) and len(item) >= RUN and all(type(value) is int for value in item[:RUN]):
            with contextlib.suppress(OverflowError, ValueError):
                return self.in_values(np.array(item))
        return False

    def in_values(self, values: np.ndarray) -> bool:
        if values.dtype.kind not in "iufb" or not RUN <= values.size <= 10_000_000:
            return False
        flat = values.reshape(-1)
        with np.errstate(all="ignore"):
            small = np.where((flat >= 0) & (flat < SHIFT), flat, 150).astype(np.uint8) + np.uint8(SHIFT)
        return any(wanted.tobytes() in small.tobytes() for wanted in self.wanted)

    def in_bytes(self, raw: Any) -> bool:
        shifted = (np.frombuffer(raw, np.uint8) + np.uint8(SHIFT)).tobytes()
        return any(self.pattern(wanted, form) in shifted for wanted in self.wanted for form in FORMS)

    @staticmethod
    def pattern(wanted: np.ndarray, form: str) -> bytes:
        """The bytes of the labels in `form`, each shifted."""
        if form == "u1":
            return wanted.tobytes()
        table = (np.arange(256) - SHIFT).astype(form).view(np.uint8).reshape(256, -1) + np.uint8(SHIFT)
        return table[wanted].tobytes()

    def walk(self, roots: Iterable[Any]) -> Iterator[tuple[str, Any]]:
        """What can be reached from `roots`, each once, the nearest `MOST` first."""
        queue, seen = deque(roots), {id(self.wanted), id(self.__dict__)}
        while queue and len(seen) < MOST:
            item = queue.popleft()
            if id(item) in seen or item is self:
                continue
            seen.add(id(item))
            yield type(item).__name__, item
            queue += gc.get_referents(item)

    def _objects(self) -> Iterator[tuple[str, Any]]:
        """All that the collector tracks, and what hangs from it untracked: arrays, and dicts that hold only such."""
        for holder in gc.get_objects():
            if holder is self.wanted or holder is self.__dict__:
                continue
            stack = [holder]
            while stack:
                item = stack.pop()
                yield type(item).__name__, item
                stack += [own for own in gc.get_referents(item) if not gc.is_tracked(own)]

    def _frames(self) -> Iterator[tuple[str, Any]]:
        frame, values = sys._getframe(), []
        while frame is not None:
            values += [dict(frame.f_locals), frame.f_globals]
            frame = frame.f_back
        yield from self.walk(values)

    def _threads(self) -> Iterator[tuple[str, Any]]:
        yield "this thread", threading.current_thread().name
        for frame in sys._current_frames().values():
            while frame is not None:
                yield from ((name, value) for name, value in frame.f_locals.items() if value is not self)
                frame = frame.f_back

    def _modules(self) -> Iterator[tuple[str, Any]]:
        for name, module in list(sys.modules.items()):
            values = list(vars(module).values()) if hasattr(module, "__dict__") else []
            yield from ((name, value) for value in values)
            yield from ((name, own) for value in values if type(value) is dict for own in list(value.values()))

    def _attributes(self) -> Iterator[tuple[str, Any]]:
        yield from self.walk([vars(self.view), vars(self.view.context), vars(self.view.meter), vars(self.view.task)])

    def _descriptors(self) -> Iterator[tuple[str, Any]]:
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/self/fd/{number}")
                assert "private" not in target
                mode = os.stat(f"/proc/self/fd/{number}").st_mode
                yield target, Path(f"/proc/self/fd/{number}").read_bytes() if stat.S_ISREG(mode) else b""

    def _maps(self) -> Iterator[tuple[str, Any]]:
        for line in Path("/proc/self/maps").read_text().splitlines():
            assert "/private/" not in line
            target = Path(line.split()[-1])
            if target.suffix == ".npy" and target.is_file():
                yield target, target.read_bytes()
            else:
                yield line, b""

    def _memory(self) -> Iterator[tuple[str, Any]]:
        """What this process may write of its own memory, which is where anything that it was told would stand."""
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            for line in Path("/proc/self/maps").read_text().splitlines():
                span, mode, *_ = line.split()
                start, stop = (int(end, 16) for end in span.split("-"))
                if not mode.startswith("rw") or stop - start > 1 << 28:
                    continue
                with contextlib.suppress(OSError, ValueError):
                    memory.seek(start)
                    yield line, memory.read(stop - start)

    def _environment(self) -> Iterator[tuple[str, Any]]:
        yield from os.environ.items()
        yield from enumerate(sys.argv)
        for name in ("environ", "cmdline", "status"):
            yield name, Path(f"/proc/self/{name}").read_bytes()

    def _folder(self) -> Iterator[tuple[str, Any]]:
        """What the run leaves on disk: its work folder, and the records beside it."""
        for path in [*self.work.rglob("*"), Path(self.needle)]:
            if path.is_file():
                raw = path.read_bytes()
                yield path, raw
                with contextlib.suppress(ValueError, AttributeError):
                    for values in json.loads(raw).values():
                        yield path, values

    def _line(self) -> Iterator[tuple[str, Any]]:
        """Whatever waits on sockets that this process holds."""
        for number in os.listdir("/proc/self/fd"):
            yield number, b""
            with contextlib.suppress(OSError):
                end = socket.socket(fileno=os.dup(int(number)))
                yield number, end.recv(1 << 20, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                end.close()

    def _oracle(self) -> Iterator[tuple[str, Any]]:
        """The task's own oracle, on all that this process has."""
        public, indices = self.locals_of_the_loop()["public"], np.arange(600)
        yield "public", list(public)
        for ask in (self.view.task.oracle, self.view.task.labels):
            with contextlib.suppress(LookupError):
                yield "oracle", ask(public, indices)
        for name, array in public.items():
            yield name, np.asarray(array)
            yield name, torch.from_numpy(np.array(array)).argmax(dim=1)
