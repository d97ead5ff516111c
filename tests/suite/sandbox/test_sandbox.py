"""The sandbox: what code must not do, by each wall alone and by all together, and what is left of it afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from selfbench.suite.sandbox import Limits, Sandbox, SandboxError

WALLS: dict[str, tuple[str, ...]] = {"all": (), "landlock": ("namespaces",), "namespaces": ("landlock",)}

PACKAGES = ("numpy", "sympy")


def opened(limits: Limits, packages: tuple[str, ...] = ()) -> Sandbox:
    sandbox = Sandbox(limits, packages)
    try:
        assert sandbox.means
    except SandboxError as error:
        pytest.skip(f"this kernel cannot hold code so: {error}")
    return sandbox


@pytest.fixture(scope="module", params=list(WALLS))
def walled(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox of each kind."""
    with opened(Limits(cpu_seconds=1, wall_seconds=30.0, without=WALLS[request.param])) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with opened(Limits(cpu_seconds=1, wall_seconds=30.0)) as sandbox:
        yield sandbox


@pytest.fixture(scope="module", params=list(WALLS))
def packed(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox of each kind whose code may import numpy and sympy."""
    with opened(Limits(cpu_seconds=4, wall_seconds=60.0, without=WALLS[request.param]), PACKAGES) as sandbox:
        yield sandbox


def family(pid: int) -> set[int]:
    return {child.pid for child in psutil.Process(pid).children(recursive=True)}


def alive(pid: int) -> bool:
    """Whether the process runs; it may end between any two questions about it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def vanish(pids: set[int], seconds: float = 20.0) -> bool:
    """Whether none of the processes is left within some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(map(alive, pids)):
            return True
        time.sleep(0.02)
    return False


def test_code_prints_its_results(walled: Sandbox) -> None:
    found = walled.run(["print(6 * 7)", "import math\nprint(math.factorial(20))", "print(6 * 7)", "1 / 0", "(", ""])
    assert [ran.status for ran in found] == ["ok", "ok", "ok", "error", "error", "ok"]
    assert [ran.output for ran in found[:3]] == ["42\n", "2432902008176640000\n", "42\n"]
    assert found[3].error == "ZeroDivisionError: division by zero"
    assert found[4].error.startswith("SyntaxError")
    assert walled.run([]) == []


def test_the_standard_library_is_there_and_nothing_else(walled: Sandbox) -> None:
    good = "import json, fractions, statistics, decimal, datetime, sqlite3\nprint(fractions.Fraction(1, 3))"
    assert walled.run([good])[0].output == "1/3\n"
    for package in ("numpy", "torch", "selfbench", "server", "caller"):
        assert walled.run([f"import {package}"])[0].error.startswith("ModuleNotFoundError")


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("import sys; sys.exit()", "ok", ""),
        ("import sys; sys.exit(3)", "killed", "exit code 3"),
        ("import os; print(1, flush=True); os._exit(7)", "killed", "exit code 7"),
        ("import os; os.abort()", "killed", f"signal {int(signal.SIGABRT)}"),
        ("import os; os.kill(os.getpid(), 9)", "killed", "signal 9"),
        ("import os; os.kill(os.getpid(), 15)", "killed", "signal 15"),
        ("import ctypes; ctypes.string_at(0)", "killed", f"signal {int(signal.SIGSEGV)}"),
        ("raise KeyboardInterrupt", "error", "KeyboardInterrupt"),
        ("def f(n): return f(n + 1)\nf(0)", "error", "RecursionError: maximum recursion depth exceeded"),
        ("input()", "error", "EOFError: EOF when reading a line"),
        ("print('\\ud800')", "ok", ""),
        ("x = bytearray(10 ** 9)", "error", "MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(10 ** 6))", "error", "MemoryError"),
        ("print('x' * 10 ** 6)", "output", ""),
        ("import sys\nwhile True: sys.stderr.write('x' * 1000)", "output", ""),
    ],
)
def test_every_ending_is_a_result(sandbox: Sandbox, code: str, status: str, error: str) -> None:
    [ran, after] = sandbox.run([code, "print('still here')"])
    assert (ran.status, ran.error) == (status, error)
    assert after.output == "still here\n"


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "print(1, flush=True)\nimport os, signal\nos.close(0)\nos.close(1)\nos.close(2)\n"
        "for n in (24, 14, 15, 2): signal.signal(n, signal.SIG_IGN)\nwhile True:\n try:\n  while True: pass\n"
        " except BaseException: pass",
        "print(9 ** 9 ** 9)",
    ],
)  # fmt: skip
def test_loops_end(sandbox: Sandbox, code: str) -> None:
    began = time.monotonic()
    assert sandbox.run([code])[0] == ("time", "", "")
    assert time.monotonic() - began < 29


def test_sleep_ends() -> None:
    with opened(Limits(wall_seconds=0.5)) as sandbox:
        began = time.monotonic()
        asleep = ["import time\ntime.sleep(60)", "import os\nos.kill(os.getpid(), 19)", "import signal\nsignal.pause()"]
        assert [ran.status for ran in sandbox.run(asleep)] == ["time"] * 3
        assert time.monotonic() - began < 20


def test_no_process_is_made_and_none_is_left(walled: Sandbox) -> None:
    assert walled._server is not None
    ours, before = {walled._server.pid, *family(walled._server.pid)}, family(os.getpid())
    assert ours <= before
    for code in (
        "import os\nwhile True: os.fork()",
        "import os\nfor _ in range(100):\n  try: os.fork()\n  except OSError: pass\nraise OSError('none')",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
        "import os\nos.execv('/bin/true', ['true'])",
        "import threading\n[threading.Thread(target=input).start() for _ in range(1000)]",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
    ):
        ran = walled.run([code])[0]
        assert ran.status == "error", (code, ran)
        assert family(os.getpid()) == before
    walled.close()
    assert vanish(ours)
    assert not ours & family(os.getpid())


def test_files_of_this_machine_are_out_of_reach(walled: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the secret")
    home = Path("~").expanduser()
    for path in (secret, "/etc/passwd", Path(__file__), f"/proc/{os.getpid()}/environ", "/proc/self/maps", "/dev/sda"):
        ran = walled.run([f"print(open({str(path)!r}).read())"])[0]
        assert (ran.status, ran.output) == ("error", ""), (path, ran)
    # Of the way to the library, the folders are there.
    shown = {"work", "usr", "lib", "lib64", *Path(sys.base_prefix).resolve().parts}
    for folder in (tmp_path, home, Path("/etc"), Path("/tmp"), Path("/proc"), Path("/..")):
        ran = walled.run([f"import os\nprint(os.listdir({str(folder)!r}))"])[0]
        hidden = {item.name for item in folder.iterdir()} - shown
        assert not any(f"'{name}'" in ran.output for name in hidden), (folder, ran)
    for code in (f"open({str(secret)!r}, 'w')", f"import os\nos.unlink({str(secret)!r})", "open('/usr/lib/x', 'w')",
                 f"import os\nos.truncate({str(secret)!r}, 0)", "import os\nopen(os.__file__, 'a')",
                 f"import os\nos.rename({str(secret)!r}, 'mine')", f"import os\nos.mkdir({str(tmp_path / 'x')!r})",
                 "import os\nos.symlink('/etc', 'l')", f"import os\nos.chmod({str(secret)!r}, 0)"):  # fmt: skip
        assert walled.run([code])[0].status == "error", code
    assert secret.read_text() == "the secret"
    assert [*tmp_path.iterdir()] == [secret]


def test_its_own_folder_is_all_it_can_write_to_and_is_empty_again(walled: Sandbox) -> None:
    code = "open('a', 'w').write('here')\nimport os\nos.makedirs('b/c')\nprint(open('a').read(), os.listdir('.'))"
    ran = walled.run([code])[0]
    if not walled.can_write:
        assert ran.error.startswith("PermissionError")
        return
    assert ran.output == "here ['a', 'b']\n" or ran.output == "here ['b', 'a']\n"
    assert walled.run(["import os\nprint(os.listdir('.'))"])[0].output == "[]\n"
    assert walled.run(["open('big', 'wb').write(b'x' * (9 << 20))"])[0].error.startswith("OSError")
    many = "for n in range(99): open(str(n), 'wb').write(b'x' * (1 << 20))"
    assert walled.run([many])[0].error == "OSError: [Errno 28] No space left on device"
    assert walled.run(["open('ok', 'w').write('x')"])[0].status == "ok"
    # What cannot be removed goes with the server.
    for code in ("import os\nos.mkdir('shut')\nopen('shut/a', 'w').close()\nos.mkdir('shut/b', 0)",
                 "import os\nfor _ in range(1010):\n  os.mkdir('d')\n  os.chdir('d')"):  # fmt: skip
        assert walled.run([code, "import os\nprint(os.listdir('/work'))"])[1].output == "[]\n"


def test_there_is_no_network(walled: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)\nprint('connected')"
        # Out here it connects.
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"connected\n"
        server.settimeout(5)
        server.accept()[0].close()
        for bad in (code, "import socket\nsocket.socketpair()", "import socket\nsocket.socket(socket.AF_UNIX)",
                    "import socket\nsocket.socket(type=socket.SOCK_DGRAM)"):  # fmt: skip
            ran = walled.run([bad])[0]
            assert ran.error.startswith("PermissionError"), ran
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
@pytest.mark.parametrize(
    "call",
    ["41, 2, 1, 0", "0x40000000 + 41, 2, 1, 0", "56, 17, 0, 0, 0, 0", "57", "58", "101, 0, 0, 0, 0", "425, 8, 0",
     "310, 1, 0, 0, 0, 0, 0", "272, 0x10000000", "165, 0, 0, 0, 0, 0", "157, 1, 0", "62, 1, 9", "62, -1, 9", "62, 0, 9",
     "200, 1, 9", "234, 1, 1, 9", "160, 0, b'\\xff' * 16", "302, 0, 0, b'\\xff' * 16, None", "105, 0",
     "59, b'/bin/true'", "319, b'x', 0", "434, 1, 0", "86, b'a', b'b'", "90, b'.', 0",
     # fcntl: F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ, and the kernel's view of the first.
     "72, 1, 8, os.getppid()", "72, 1, 10, 9", "72, 1, 15, b'\\0' * 8", "72, 1, 1024, 0", "72, 1, 1026, 0",
     "72, 1, 1031, 1 << 20", "72, 1, c_long((1 << 32) + 8), os.getppid()",
     # ioctl: FIOASYNC, FIOSETOWN, SIOCSPGRP, TIOCSPGRP, TIOCSTI, TIOCSCTTY.
     "16, 1, 0x5452, b'\\1\\0\\0\\0'", "16, 1, 0x8901, 0", "16, 1, 0x8902, 0", "16, 1, 0x5410, 0",
     "16, 1, 0x5412, b'x'", "16, 1, 0x540e, 0"],
)  # fmt: skip
def test_calls_that_are_not_listed_are_refused(sandbox: Sandbox, call: str) -> None:
    code = (
        "import ctypes, os\nfrom ctypes import c_long\nc = ctypes.CDLL(None, use_errno=True)\n"
        f"print(c.syscall({call}), ctypes.get_errno())"
    )
    assert sandbox.run([code])[0].output == "-1 1\n"


_REPORTS = """
import fcntl, os
out, own = os.dup(1), os.getppid()
tried = [(fcntl.F_SETOWN, own), (10, 9), (15, b"\\1\\0\\0\\0" + own.to_bytes(4, "little"))]
for command, value in tried:
    try:
        fcntl.fcntl(out, command, value)
        print("taken", command)
    except PermissionError:
        pass
fcntl.fcntl(out, fcntl.F_SETFL, fcntl.fcntl(out, fcntl.F_GETFL) | os.O_ASYNC)
print("written", flush=True)
import time
time.sleep(0.2)
"""


def test_no_file_can_be_made_to_signal_the_server(walled: Sandbox) -> None:
    """A pipe that reports by SIGKILL, to its owner, that something was written."""
    assert walled.run(["print(1)"])[0].output == "1\n"
    assert walled._server is not None
    first = walled._server.pid
    assert walled.run([_REPORTS])[0] == ("ok", "written\n", "")
    assert walled.run(["print(2)"])[0].output == "2\n"
    assert walled._server.pid == first


def test_what_python_asks_of_descriptors_is_allowed(walled: Sandbox) -> None:
    """Their flags, copies, locks, and whether they are terminals: with errors of the kernel, not of the filter."""
    code = (
        "import errno, fcntl, os, shutil, sys\n"
        "a, b = os.pipe()\n"
        "for n in (b, os.dup(b)):\n"
        "  os.set_inheritable(n, True); os.set_inheritable(n, False); os.set_blocking(n, False)\n"
        "  print(os.get_inheritable(n), os.get_blocking(n), os.isatty(n))\n"
        "print(sys.stdout.isatty(), shutil.get_terminal_size().columns, fcntl.fcntl(a, 1032) > 0)\n"
        "try: os.get_terminal_size(1)\n"
        "except OSError as error: print(error.errno == errno.ENOTTY)\n"
        "print(os.write(b, b'abc'), os.fdopen(a).read(3))\n"
    )
    expected = "False False False\nFalse False False\nFalse 80 True\nTrue\n3 abc\n"
    assert walled.run([code])[0] == ("ok", expected, "")
    if walled.can_write:
        code = (
            "import fcntl, sqlite3\n"
            "with open('l', 'w') as file:\n  fcntl.lockf(file, fcntl.LOCK_EX); fcntl.lockf(file, fcntl.LOCK_UN)\n"
            "with sqlite3.connect('d') as d:\n"
            "  d.execute('create table t (x)'); d.execute('insert into t values (7)')\n"
            "print(sqlite3.connect('d').execute('select x from t').fetchone())"
        )
        assert walled.run([code])[0] == ("ok", "(7,)\n", "")


def test_limits_can_be_read_and_not_raised(sandbox: Sandbox) -> None:
    code = "from resource import *\nprint(getrlimit(RLIMIT_CPU))\nsetrlimit(RLIMIT_CPU, (9, 9))"
    [ran] = sandbox.run([code])
    assert ran.output == "(1, 2)\n"
    assert ran.status == "error"


def test_environment_and_open_files_are_not_inherited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("A_SECRET", "value")
    with (tmp_path / "open").open("w") as file, opened(Limits()) as sandbox:
        os.set_inheritable(file.fileno(), True)
        code = (
            "import os\nprint(dict(os.environ))\nfound = []\nfor n in range(64):\n"
            "  try: os.fstat(n); found.append(n)\n  except OSError: pass\nprint(found)"
        )
        assert sandbox.run([code])[0].output == "{}\n[0, 1, 2]\n"


def test_snippets_know_nothing_of_each_other(sandbox: Sandbox) -> None:
    first = "import math, builtins\nmath.pi = 3\nbuiltins.left = 1\nglobals()['x'] = 1"
    second = "import math\nprint(math.pi, 'left' in dir(__builtins__), 'x' in globals())"
    assert sandbox.run([first, second])[1].output.startswith("3.14")
    assert sandbox.run([second])[0].output.endswith("False False\n")


def test_results_are_those_of_the_code_alone() -> None:
    code = "import random\nprint(hash('a'), {'x', 'y', 'z'}, random.random())"
    found = []
    for _ in range(2):
        with opened(Limits()) as sandbox:
            found += sandbox.run([code, f"{code}\n"])
    assert len({ran.output for ran in found}) == 1


def test_what_cannot_hold_code_runs_none() -> None:
    with pytest.raises(SandboxError, match=r"user namespaces .*Landlock"):
        Sandbox(Limits(without=("namespaces", "landlock"))).run(["print(1)"])
    with pytest.raises(SandboxError, match="SECCOMP"):
        Sandbox(Limits(without=("seccomp",))).run(["print(1)"])


def test_a_lost_server_is_started_again_and_a_fork_has_its_own(sandbox: Sandbox) -> None:
    assert sandbox.run(["print(1)"])[0].output == "1\n"
    assert sandbox._server is not None
    first = sandbox._server.pid
    pid = os.fork()
    if not pid:
        good = sandbox.run(["print(2)"])[0].output == "2\n" and sandbox._server.pid != first
        sandbox.close()
        os._exit(0 if good else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert sandbox._server.pid == first
    assert sandbox.run(["print(3)"])[0].output == "3\n"
    os.kill(first, signal.SIGKILL)
    sandbox._server.wait()
    assert sandbox.run(["print(4)"])[0].output == "4\n"
    assert sandbox._server.pid != first


_CALLER = """
import json, os, sys, threading, time
import psutil
from selfbench.suite.sandbox import Limits, Sandbox
sandbox = Sandbox(Limits(wall_seconds=300.0, without=tuple(json.loads(sys.argv[1]))))
assert sandbox.means
before = len(psutil.Process().children(recursive=True))
threading.Thread(target=sandbox.run, args=(["import time\\ntime.sleep(200)"],), daemon=True).start()
while len(found := psutil.Process().children(recursive=True)) == before:
    time.sleep(0.01)
print(json.dumps([child.pid for child in found]), flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("walls", list(WALLS))
def test_nothing_outlives_a_killed_caller(walls: str) -> None:
    opened(Limits(without=WALLS[walls])).close()
    command = [sys.executable, "-c", _CALLER, json.dumps(WALLS[walls])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        pids = set(json.loads(caller.stdout.readline()))
        assert len(pids) >= 2
        assert all(psutil.pid_exists(pid) for pid in pids)
        caller.kill()
        caller.wait()
        assert vanish(pids)


def test_what_is_not_held_any_longer_is_ended() -> None:
    others = family(os.getpid())
    sandbox = opened(Limits())
    ours = family(os.getpid()) - others
    assert ours
    del sandbox
    assert vanish(ours)


def test_packages_that_are_granted_can_be_used(packed: Sandbox) -> None:
    found = packed.run([
        "from sympy import symbols, solve, Rational\nx = symbols('x')\nprint(solve(x**2 - 4), Rational(1, 3) + 1)",
        "import numpy as np\nprint(np.arange(4).sum(), np.linalg.det(2 * np.eye(3)).round(6))",
        # Loaded after the walls are up, as is what it imports.
        "import sys\nassert 'sympy.physics.units' not in sys.modules\nfrom sympy.physics.units import km, m\n"
        "from sympy.physics.units import convert_to\nprint(convert_to(3 * km, m))",
    ])  # fmt: skip
    assert [ran.error for ran in found] == [""] * 3
    assert [ran.output for ran in found] == ["[-2, 2] 4/3\n", "6 8.0\n", "3000*meter\n"]


def test_packages_open_no_other_door(packed: Sandbox, tmp_path: Path) -> None:
    import numpy

    room = Path(numpy.__file__).parent.parent
    (tmp_path / "secret").write_text("1 2 3")
    new = f"{room}/numpy/new.py"
    found = packed.run([
        "import torch", "import pydantic", "import selfbench", f"open({str(room / 'pydantic' / '__init__.py')!r})",
        f"import numpy\nnumpy.loadtxt({str(tmp_path / 'secret')!r})", "import numpy\nnumpy.fromfile('/etc/passwd')",
        f"open({new!r}, 'w')", f"import numpy\nnumpy.save({new!r}, numpy.ones(3))",
        f"import os\nos.remove({numpy.__file__!r})",
        "import numpy, socket\nsocket.socket()", "import numpy, os\nos.fork()",
        "import numpy, threading\nthreading.Thread(target=print).start()",
        "import numpy\nnumpy.ones(10 ** 9)",
    ])  # fmt: skip
    assert [ran.status for ran in found] == ["error"] * len(found)
    assert all(ran.error.startswith("ModuleNotFoundError") for ran in found[:3])
    assert all("rror: " in ran.error and "numpy" not in ran.error[:20] for ran in found[3:12])
    assert "MemoryError" in found[12].error
    assert not Path(new).exists()
    # What else lies beside them cannot even be seen.
    seen = packed.run([f"import os\nprint(*os.listdir({str(room)!r}))"])[0]
    assert seen.status == "error" or set(seen.output.split()) <= {"numpy", "numpy.libs", "sympy", "mpmath", "gmpy2"}
    assert packed.run(["import numpy\nwhile True: numpy.ones(9).sum()"])[0] == ("time", "", "")


def test_random_numbers_of_packages_are_those_of_the_code_alone() -> None:
    code = (
        "import numpy, sympy.core.random\n"
        "print(numpy.random.rand(), sympy.core.random.random(), {sympy.Symbol(name) for name in 'abc'})"
    )
    found = []
    for _ in range(2):
        with opened(Limits(cpu_seconds=4), PACKAGES) as sandbox:
            found += sandbox.run([code, f"{code}\n"])
    assert {ran.status for ran in found} == {"ok"}
    assert len({ran.output for ran in found}) == 1


def test_a_package_that_is_not_here_is_named() -> None:
    with pytest.raises(SandboxError, match="imports the package nosuchpackage: type `pip install nosuchpackage`"):
        Sandbox(packages=("nosuchpackage",)).run(["print(1)"])


def test_the_doctor_says_by_which_means() -> None:
    from selfbench.suite.cli.doctor import _sandbox

    opened(Limits()).close()
    found = _sandbox()
    assert found.ok
    assert "seccomp" in found.detail
