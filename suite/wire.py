"""The line between a method's process and its scorer: frames of a JSON header and raw arrays, never pickles.

Frame: 4 bytes header length, 8 bytes body length (little endian), header (JSON), body (the arrays, end to end).
"""

from __future__ import annotations

import functools
import json
import math
import socket
import struct
import time
from typing import Any, NamedTuple

import numpy as np

from .errors import MethodError

Array = np.ndarray[Any, Any]
_PREFIX = struct.Struct("<IQ")
MAX_HEADER = 4 << 20
MAX_BODY = 1 << 30
_FIRST_READ = 1 << 20
_SHORTEST_WAIT = 0.1
_KINDS = frozenset("biuf")


class Message(NamedTuple):
    kind: str
    fields: dict[str, Any]
    arrays: dict[str, Array]


class Wire:
    """One end of the line."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end

    def send(self, kind: str, arrays: dict[str, Array] | None = None, **fields: Any) -> None:
        """Send one message; returns when the kernel has all of it."""
        described = []
        buffers: list[Any] = []
        for name, array in (arrays or {}).items():
            block = np.asarray(array, order="C")
            described.append((name, block.dtype.str, block.shape))
            buffers.append(block.reshape(-1).view(np.uint8).data if block.size else b"")
        header = json.dumps([kind, fields, described]).encode()
        size = sum(len(buffer) for buffer in buffers)
        self.socket.sendall(_PREFIX.pack(len(header), size) + header)
        for buffer in buffers:
            if len(buffer):
                self.socket.sendall(buffer)

    def seal(self, step: int, logits: Array) -> None:
        """Send the predictions of one batch: the hot path, one system call for a small batch."""
        header = _seal_header(logits.dtype.str, logits.shape)
        body = np.ascontiguousarray(logits).tobytes()
        number = step.to_bytes(8, "little")
        self.socket.sendall(_PREFIX.pack(len(header), len(body) + 8) + header + number + body)

    def receive(self, deadline: float | None = None) -> Message | None:
        """The next message, None at the end of the line.

        Raises `MethodError` on a malformed frame, and `TimeoutError` when it is not whole at `deadline` (a time of
        `time.monotonic`), however slowly it trickles in.
        """
        prefix = self._read(_PREFIX.size, deadline)
        if prefix is None:
            return None
        header_size, body_size = _PREFIX.unpack(prefix)
        if header_size > MAX_HEADER or body_size > MAX_BODY:
            raise MethodError("the method's process sent a malformed frame")
        header, body = self._read(header_size, deadline), self._read(body_size, deadline)
        if header is None or body is None:
            return None
        try:
            kind, fields, described = json.loads(header)
            if not isinstance(kind, str) or not isinstance(fields, dict):
                raise ValueError("its header is no kind with fields")
            arrays: dict[str, Array] = {}
            offset = 0
            for name, dtype, shape in described:
                kind_of = np.dtype(dtype)
                if kind_of.kind not in _KINDS:
                    raise ValueError(f"dtype {dtype}")
                size = math.prod(shape) * kind_of.itemsize
                arrays[name] = np.frombuffer(memoryview(body)[offset : offset + size], kind_of).reshape(shape)
                offset += size
            if offset != len(body):
                raise ValueError(f"{len(body)} bytes for arrays of {offset}")
        except (ValueError, TypeError, RecursionError) as error:
            raise MethodError(f"the method's process sent a malformed frame ({error})") from None
        return Message(kind, fields, arrays)

    def _read(self, size: int, deadline: float | None) -> bytearray | None:
        """`size` bytes, None at the end of the line. Memory grows with what has come, not with what was announced."""
        data = bytearray(min(size, _FIRST_READ))
        filled = 0
        while filled < size:
            if filled == len(data):
                data += bytes(min(size - filled, filled))
            if deadline is not None:
                self.socket.settimeout(max(_SHORTEST_WAIT, deadline - time.monotonic()))
            with memoryview(data) as view, view[filled:] as rest:
                got = self.socket.recv_into(rest)
            if not got:
                return None
            filled += got
            if deadline is not None and filled < size and time.monotonic() > deadline:
                raise TimeoutError
        return data


@functools.lru_cache(maxsize=64)
def _seal_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    return json.dumps(["seal", {}, [("step", "<i8", [1]), ("logits", dtype, shape)]]).encode()
