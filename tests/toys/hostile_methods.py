"""Methods that break the rules, each in one way; the harness must answer with a record and go on."""

from __future__ import annotations

import ctypes
import errno
import gc
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from selfbench import AdaptationMethod, PolicyMethod, StreamMethod, hyper, register_method
from selfbench.suite.errors import BudgetExhausted


@register_method("raises", family="hostile", protocol="stream", paper="-")
@dataclass
class Raises(StreamMethod):
    """Raises in the fourth batch."""

    def setup(self, model, source) -> None:
        self.model, self.batch = model, 0

    def predict(self, images: Tensor) -> Tensor:
        self.batch += 1
        if self.batch == 4:
            raise ValueError("the fourth batch is unlucky")
        return self.model(images)


@register_method("finds-no-memory", family="hostile", protocol="stream", paper="-")
@dataclass
class FindsNoMemory(StreamMethod):
    """Raises what torch, Python or the system raise where there is no memory left."""

    kind: str = hyper("device")

    def predict(self, images: Tensor) -> Tensor:
        raise no_memory(self.kind)


@register_method("policy-finds-no-memory", family="hostile", protocol="policy", paper="-")
@dataclass
class PolicyFindsNoMemory(PolicyMethod):
    """Raises the same in its first round."""

    kind: str = hyper("device")

    def round(self, policy, view, number: int) -> None:
        raise no_memory(self.kind)


def no_memory(kind: str) -> BaseException:
    return {
        "device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."),
        "python": MemoryError(),
        "torch": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        "system": OSError(errno.ENOMEM, "Cannot allocate memory"),
    }[kind]


@register_method("hangs", family="hostile", protocol="stream", paper="-")
@dataclass
class Hangs(StreamMethod):
    """Never returns, and ignores the polite signals."""

    def predict(self, images: Tensor) -> Tensor:
        import signal

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        while True:
            time.sleep(60)


@register_method("nan", family="hostile", protocol="stream", paper="-")
@dataclass
class Nan(StreamMethod):
    """Returns NaN for one image."""

    def predict(self, images: Tensor) -> Tensor:
        logits = self.model(images).detach()
        logits[0, 0] = float("nan")
        return logits


@register_method("wrong-shape", family="hostile", protocol="stream", paper="-")
@dataclass
class WrongShape(StreamMethod):
    """Returns classes instead of logits."""

    def predict(self, images: Tensor) -> Tensor:
        return self.model(images).argmax(1)


@register_method("wrong-type", family="hostile", protocol="stream", paper="-")
@dataclass
class WrongType(StreamMethod):
    """Returns a list."""

    def predict(self, images: Tensor) -> list:
        return self.model(images).tolist()


@register_method("eats-memory", family="hostile", protocol="stream", paper="-")
@dataclass
class EatsMemory(StreamMethod):
    """Takes memory in blocks of 64 MiB until it is stopped."""

    def predict(self, images: Tensor) -> Tensor:
        blocks = []
        while True:
            blocks.append(np.ones(64 << 20, np.uint8))


@register_method("eats-memory-in-child", family="hostile", protocol="stream", paper="-")
@dataclass
class EatsMemoryInChild(StreamMethod):
    """Lets a child of its own take the memory."""

    def predict(self, images: Tensor) -> Tensor:
        code = "b = []\nimport time\nwhile True: b.append(bytearray(b'x') * (64 << 20)); time.sleep(0.01)"
        subprocess.run([sys.executable, "-c", code], check=True)
        return self.model(images)


@register_method("spawns", family="hostile", protocol="stream", paper="-")
@dataclass
class Spawns(StreamMethod):
    """Leaves children behind: one in its group, one in a session of its own, one orphaned twice."""

    def setup(self, model, source) -> None:
        self.model = model
        marker = "selfbench-test-child"
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", marker])
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", marker], start_new_session=True)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", marker])
            os._exit(0)

    def predict(self, images: Tensor) -> Tensor:
        return self.model(images)


@register_method("exits", family="hostile", protocol="stream", paper="-")
@dataclass
class Exits(StreamMethod):
    """Leaves without a word."""

    def predict(self, images: Tensor) -> Tensor:
        os._exit(0)


@register_method("crashes", family="hostile", protocol="stream", paper="-")
@dataclass
class Crashes(StreamMethod):
    """Reads address 0."""

    def predict(self, images: Tensor) -> Tensor:
        ctypes.string_at(0)
        return self.model(images)


@register_method("goes-on", family="hostile", protocol="stream", paper="-")
@dataclass
class GoesOn(StreamMethod):
    """Swallows the end of its budget and goes on."""

    def predict(self, images: Tensor) -> Tensor:
        logits = None
        for _ in range(10000):
            try:
                logits = self.model(images)
            except BudgetExhausted:
                continue
        return logits


@register_method("greedy", family="hostile", protocol="stream", paper="-")
@dataclass
class Greedy(StreamMethod):
    """Uses up its budget in the middle of the stream, through a copied teacher."""

    def setup(self, model: nn.Module, source) -> None:
        import copy

        self.model = model
        self.teacher = copy.deepcopy(model)

    def predict(self, images: Tensor) -> Tensor:
        for _ in range(20):
            self.teacher(images)
        return self.model(images)


@register_method("bad-frame", family="hostile", protocol="stream", paper="-")
@dataclass
class BadFrame(StreamMethod):
    """Writes garbage over the line to the scorer."""

    def predict(self, images: Tensor) -> Tensor:
        for number in range(3, 64):
            try:
                os.write(number, b"\xff" * 64)
            except OSError:
                continue
        time.sleep(60)
        return self.model(images)


@register_method("cheats-order", family="hostile", protocol="stream", paper="-")
@dataclass
class CheatsOrder(StreamMethod):
    """Tries to replace predictions that are sealed."""

    def predict(self, images: Tensor) -> Tensor:
        from selfbench.suite.wire import Wire

        wire = next(item for item in gc.get_objects() if isinstance(item, Wire))
        wire.seal(0, np.zeros((len(images), 3), np.float32))
        return self.model(images)


@register_method("walks", family="hostile", protocol="stream", paper="-")
@dataclass
class Walks(StreamMethod):
    """Looks for the labels in everything its own process can reach, and writes what it finds into a file.

    `needle` is the path of a file with the true labels in stream order; it is read only to recognise them.
    """

    needle: str = hyper("", help="file of the true labels (npy)")
    report: str = hyper("", help="file that is written")

    def predict(self, images: Tensor) -> Tensor:
        if not hasattr(self, "walked"):
            self.walked = True
            Path(self.report).write_text(json.dumps(self.walk()))
        return self.model(images)

    def walk(self) -> list[str]:
        found = []
        # Frames and modules are reached through gc and sys; arrays are compared by content.
        seen: set[int] = set()
        frames = []
        frame = sys._getframe()
        while frame is not None:
            frames.append(frame)
            frame = frame.f_back
        frame_values = [f.f_locals for f in frames] + [f.f_globals for f in frames]
        roots = [gc.get_objects(), list(sys.modules.values()), frame_values]
        stack = [(root, "root") for root in roots]
        truth = np.load(self.needle)
        while stack:
            item, path = stack.pop()
            if id(item) in seen or item is truth:
                continue
            seen.add(id(item))
            kind = type(item)  # isinstance would ask the object itself, and some answer with a warning.
            if issubclass(kind, (np.ndarray, Tensor)):
                values = item.detach().cpu().numpy() if issubclass(kind, Tensor) else item
                if self.matches(values, truth):
                    found.append(f"array at {path}")
            elif issubclass(kind, dict):
                stack += [(value, f"{path}.{key!r:.40}") for key, value in list(dict.items(item))]
            elif issubclass(kind, (list, tuple, set, frozenset)):
                if len(item) >= 50 and self.matches_list(item, truth):
                    found.append(f"{type(item).__name__} at {path}")
                stack += [(value, path) for value in list(item)]
            else:
                try:
                    stack.append((vars(item), f"{path}<{type(item).__name__}>"))
                except Exception:  # Some objects refuse to be looked at.
                    continue
        found += self.open_files(truth)
        return found

    @staticmethod
    def matches(values: np.ndarray, truth: np.ndarray) -> bool:
        if values.dtype.kind not in "iuf" or values.size < 100 or values is truth:
            return False
        flat = np.asarray(values).reshape(-1)
        n = min(len(flat), len(truth))
        base = truth[: n // 2]
        return any(np.array_equal(flat[: len(piece)], piece) for piece in (truth[:n], base))

    @staticmethod
    def matches_list(item, truth: np.ndarray) -> bool:
        values = list(item)[: len(truth)]
        if not all(isinstance(value, (int, np.integer)) for value in values):
            return False
        return np.array_equal(np.array(values), truth[: len(values)])

    @staticmethod
    def open_files(truth: np.ndarray) -> list[str]:
        found = []
        for name in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{name}")
                if "private" in target:
                    found.append(f"open file {target}")
                if Path(target).is_file() and int(name) > 2:
                    np.load(io.BytesIO(Path(target).read_bytes()))
            except (OSError, ValueError, EOFError):
                continue
        maps = Path("/proc/self/maps").read_text()
        found += [f"mapped file {line.split()[-1]}" for line in maps.splitlines() if "private/" in line]
        return found


@register_method("bad-loss", family="hostile", protocol="adaptation", paper="-")
@dataclass
class BadLoss(AdaptationMethod):
    """Returns a loss per example."""

    def loss(self, labeled, unlabeled) -> Tensor:
        return torch.nn.functional.cross_entropy(self.model(labeled.x), labeled.y, reduction="none")


@register_method("bad-state", family="hostile", protocol="stream", paper="-")
@dataclass
class BadState(StreamMethod):
    """Holds what a checkpoint cannot keep."""

    def setup(self, model, source) -> None:
        self.model, self.thing = model, (item for item in range(3))

    def predict(self, images: Tensor) -> Tensor:
        return self.model(images)
