"""A method that sends messages of its own over the line to the scorer."""

from __future__ import annotations

import gc
import json
import time
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from selfbench import StreamMethod, hyper, register_method
from selfbench.suite.wire import Wire


@register_method("forges", family="hostile", protocol="stream", paper="-")
@dataclass
class Forges(StreamMethod):
    """Sends one forged message in its second batch, then waits for the scorer's answer."""

    kind: str = hyper("seal", help="kind of the message")
    fields: str = hyper("{}", help="its fields, JSON")
    arrays: str = hyper("{}", help="its arrays, JSON")
    times: int = hyper(1, help="how often it is sent")
    raw: str = hyper("", help="bytes, in hexadecimal, instead of a message")

    def setup(self, model, source) -> None:
        self.model, self.batch = model, 0

    def predict(self, images: Tensor) -> Tensor:
        self.batch += 1
        if self.batch == 2:
            wire = next(item for item in gc.get_objects() if isinstance(item, Wire))
            if self.raw:
                wire.socket.sendall(bytes.fromhex(self.raw))
            else:
                arrays = {name: np.array(value) for name, value in json.loads(self.arrays).items()}
                for _ in range(self.times):
                    wire.send(self.kind, arrays, **json.loads(self.fields))
            time.sleep(60)
        return self.model(images)
