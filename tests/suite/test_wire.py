"""What goes over the line comes out as it was; what is malformed ends in an error that blames the method's side."""

from __future__ import annotations

import json
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from selfbench.suite.errors import MethodError
from selfbench.suite.meter import peak_memory_mb
from selfbench.suite.wire import MAX_BODY, MAX_HEADER, Message, Wire

PREFIX = struct.Struct("<IQ")


@pytest.fixture
def ends() -> Iterator[tuple[Wire, Wire]]:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.settimeout(20)
    with ours, theirs:
        yield Wire(ours), Wire(theirs)


def through(ends: tuple[Wire, Wire], kind: str, arrays: dict, **fields: object) -> Message:
    """Send from one end while the other receives, as big messages do not fit into the kernel's buffer."""
    sender = threading.Thread(target=ends[0].send, args=(kind, arrays), kwargs=fields)
    sender.start()
    message = ends[1].receive()
    sender.join()
    assert message is not None
    return message


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "<i2", "<i4", "<i8", "<u8", ">i4", "<f2", "<f4", "<f8", ">f8"])
def test_arrays_of_every_kind_come_through(ends: tuple[Wire, Wire], dtype: str) -> None:
    for shape in ((), (1,), (7,), (3, 5), (2, 0, 4), (0,), (2, 3, 4, 5)):
        sent = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
        [(name, got)] = through(ends, "point", {"a b": sent}).arrays.items()
        assert name == "a b"
        assert got.dtype == sent.dtype
        assert got.shape == sent.shape
        np.testing.assert_array_equal(got, sent)


def test_several_arrays_and_fields_come_through_in_order(ends: tuple[Wire, Wire]) -> None:
    arrays = {
        "odd": np.arange(3, dtype=np.uint8),
        "empty": np.empty((0, 4), np.float32),
        "strided": np.arange(20, dtype=np.float32).reshape(4, 5)[:, ::2],
        "turned": np.arange(6).reshape(2, 3).T,
        "nan": np.array([np.nan, np.inf, -0.0]),
    }
    message = through(ends, "point", arrays, x=0.1, index=3, text="é\n", nothing=None, many=[1, {"a": 2}])
    assert message.kind == "point"
    assert message.fields == {"x": 0.1, "index": 3, "text": "é\n", "nothing": None, "many": [1, {"a": 2}]}
    assert list(message.arrays) == list(arrays)
    for name, sent in arrays.items():
        np.testing.assert_array_equal(message.arrays[name], sent)


def test_a_message_without_arrays(ends: tuple[Wire, Wire]) -> None:
    ends[0].send("saved")
    assert ends[1].receive() == Message("saved", {}, {})


def test_a_message_larger_than_every_buffer(ends: tuple[Wire, Wire]) -> None:
    sent = np.random.default_rng(0).normal(size=(700_001, 3)).astype(np.float32)
    got = through(ends, "point", {"test": sent, "tail": np.arange(9)}).arrays
    np.testing.assert_array_equal(got["test"], sent)
    np.testing.assert_array_equal(got["tail"], np.arange(9))


@pytest.mark.parametrize("shape", [(1, 3), (64, 10), (0, 10), (5000, 100)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_fast_path_of_predictions_sends_what_the_general_one_does(
    ends: tuple[Wire, Wire], shape: tuple[int, int], dtype: type
) -> None:
    logits = np.random.default_rng(1).normal(size=shape).astype(dtype)
    for given in (logits, np.asfortranarray(logits)):
        general = through(ends, "seal", {"step": np.array([12]), "logits": given})
        sender = threading.Thread(target=ends[0].seal, args=(12, given))
        sender.start()
        fast = ends[1].receive()
        sender.join()
        assert fast is not None
        assert (fast.kind, fast.fields, list(fast.arrays)) == (general.kind, general.fields, list(general.arrays))
        for name in fast.arrays:
            assert fast.arrays[name].dtype == general.arrays[name].dtype
            np.testing.assert_array_equal(fast.arrays[name], general.arrays[name])


def test_the_end_of_the_line_is_no_message(ends: tuple[Wire, Wire]) -> None:
    ends[0].socket.close()
    assert ends[1].receive() is None


@pytest.mark.parametrize("keep", [1, 11, 12, 20, -1])
def test_a_frame_that_stops_halfway_is_no_message(ends: tuple[Wire, Wire], keep: int) -> None:
    header = json.dumps(["seal", {}, [["a", "<f4", [4]]]]).encode()
    frame = PREFIX.pack(len(header), 16) + header + bytes(16)
    ends[0].socket.sendall(frame[:keep])
    ends[0].socket.close()
    assert ends[1].receive() is None


def frame(header: object, body: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return PREFIX.pack(len(raw), len(body)) + raw + body


@pytest.mark.parametrize(
    "raw",
    [
        PREFIX.pack(MAX_HEADER + 1, 0),
        PREFIX.pack(0, MAX_BODY + 1),
        PREFIX.pack(2**32 - 1, 2**64 - 1),
        b"\xff" * 12,
        frame(b""),
        frame(b"{"),
        frame(b"\xff\xfe"),
        frame(b"[" * 100_000),
        frame(["seal", {}]),
        frame(["seal", {}, [], []]),
        frame([7, {}, []]),
        frame(["seal", [], []]),
        frame({"a": 1, "b": 2, "c": 3}),
        frame(["seal", {}, 7]),
        frame(["seal", {}, [["a", "<f4"]]]),
        frame(["seal", {}, [["a", "O", [1]]]], bytes(8)),
        frame(["seal", {}, [["a", "V8", [1]]]], bytes(8)),
        frame(["seal", {}, [["a", "U2", [1]]]], bytes(8)),
        frame(["seal", {}, [["a", "M8[s]", [1]]]], bytes(8)),
        frame(["seal", {}, [["a", "nonsense", [1]]]], bytes(8)),
        frame(["seal", {}, [["a", ["f4"], [1]]]], bytes(8)),
        frame(["seal", {}, [["a", "<f4", [3]]]], bytes(8)),
        frame(["seal", {}, [["a", "<f4", [1]]]], bytes(8)),
        frame(["seal", {}, [["a", "<f4", ["2"]]]], bytes(8)),
        frame(["seal", {}, [["a", "<f4", [2.0]]]], bytes(8)),
        frame(["seal", {}, [["a", "<f4", [-1, 2]]]], bytes(8)),
        frame(["seal", {}, [["a", "<f4", [2**62, 2**62]]]], bytes(8)),
        frame(["seal", {}, [["a", "<f4", [2**70]]]], bytes(8)),
        frame(["seal", {}, [["a", "<f4", [0, 2**70]]]]),
        frame(["seal", {}, [["a", "<f4", None]]], bytes(8)),
    ],
    ids=range(30),
)
def test_a_malformed_frame_blames_the_methods_process(ends: tuple[Wire, Wire], raw: bytes) -> None:
    sender = threading.Thread(target=ends[0].socket.sendall, args=(raw,))
    sender.start()
    with pytest.raises(MethodError, match="the method's process sent a malformed frame"):
        ends[1].receive()
    sender.join()


def test_any_garbage_is_an_error_or_the_end(ends: tuple[Wire, Wire]) -> None:
    """Random bytes in a frame of plausible size never raise anything else."""
    rng = random.Random(0)
    good = json.dumps(["seal", {}, [["step", "<i8", [1]], ["logits", "<f4", [2, 2]]]]).encode()
    for _ in range(300):
        header = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            header[rng.randrange(len(header))] = rng.randrange(256)
        ends[0].socket.sendall(frame(bytes(header), bytes(24)))
        try:
            message = ends[1].receive()
        except MethodError:
            continue
        assert message is not None
        assert isinstance(message.kind, str)
        assert sum(array.nbytes for array in message.arrays.values()) == 24


def test_an_announced_size_takes_no_memory(ends: tuple[Wire, Wire]) -> None:
    """A frame that announces gigabytes and sends nothing costs the scorer nothing."""
    before = peak_memory_mb()
    ends[0].socket.sendall(PREFIX.pack(2, MAX_BODY) + b"{}" + b"x" * 1000)
    ends[0].socket.close()
    assert ends[1].receive() is None
    assert peak_memory_mb() - before < 100


def test_a_frame_that_trickles_in_ends_at_the_deadline(ends: tuple[Wire, Wire]) -> None:
    """Every byte comes in time, the frame as a whole does not."""
    stop = threading.Event()

    def trickle() -> None:
        ends[0].socket.sendall(PREFIX.pack(2, 1000) + b"{}")
        while not stop.wait(0.02):
            ends[0].socket.sendall(b"x")

    sender = threading.Thread(target=trickle)
    sender.start()
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        ends[1].receive(deadline=started + 0.3)
    stop.set()
    sender.join()
    assert time.monotonic() - started < 5


def test_a_deadline_leaves_whole_messages_alone(ends: tuple[Wire, Wire]) -> None:
    ends[0].send("saved", {"a": np.arange(3)})
    message = ends[1].receive(deadline=time.monotonic() - 1.0)
    assert message is not None
    assert message.kind == "saved"


@pytest.mark.parametrize(
    ("params", "status", "says"),
    [
        ({"kind": "seal", "arrays": "{}"}, "failed", "'seal' that cannot be scored"),
        ({"kind": "seal", "arrays": '{"step": [1], "logits": [0.5]}'}, "failed", "has the shape|have the shape"),
        ({"kind": "seal", "arrays": '{"step": [-1], "logits": [0.5]}'}, "failed", "out of order"),
        ({"kind": "seal", "arrays": '{"step": [23], "logits": [0.5]}'}, "failed", "out of order"),
        ({"kind": "checkpoint", "fields": '{"step": "x"}'}, "failed", "'checkpoint' that cannot be scored"),
        ({"kind": "grade"}, "failed", "unknown message 'grade'"),
        ({"kind": "finished"}, "failed", "ended before the stream did"),
        ({"kind": "finished", "fields": '{"passes": "many"}'}, "failed", "counts that make no sense"),
        ({"kind": "finished", "fields": '{"colour": 1}'}, "failed", "counts that make no sense"),
        ({"kind": "failed", "fields": '{"counts": [1], "status": "ok"}'}, "failed", "counts that make no sense"),
        ({"kind": "failed", "fields": '{"status": "ok", "reason": 7}'}, "failed", "7"),
        ({"raw": "ff" * 12}, "failed", "malformed frame"),
        ({"raw": PREFIX.pack(3, 0).hex() + b"[1]".hex()}, "failed", "malformed frame"),
        ({"raw": PREFIX.pack(10, MAX_BODY).hex() + "00" * 64}, "timeout", "hard limit of 3 seconds"),
        ({"kind": "checkpoint", "fields": '{"step": 1}', "times": 50_000}, "timeout", "hard limit of 3 seconds"),
    ],
    ids=range(15),
)
def test_a_forged_message_fails_its_run_and_nothing_else(campaign, params: dict, status: str, says: str) -> None:
    """The scorer answers with a record; a method that never reads its answers is stopped at its hard limit."""
    summary = campaign("toy-stream", {"name": "forges", "params": params}, budget={"wall_seconds": 3})
    assert not summary.lost
    [record] = summary.finished
    assert record.status == status
    assert re.search(says, record.reason)
    assert record.provenance.attempt == 1
    assert not record.metrics
