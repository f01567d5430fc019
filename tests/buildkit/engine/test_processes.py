from __future__ import annotations

import signal
import subprocess
import sys
import time

from buildkit.engine import processes

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_process_that_ignores_being_asked_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        began = time.monotonic()

        processes.end([process.pid], ask=signal.SIGTERM, patience_seconds=0.3)

        assert process.wait(timeout=5) == -signal.SIGKILL
        assert time.monotonic() - began < 5


def test_children_end_as_with_ctrl_c() -> None:
    script = (
        "import signal, subprocess; from buildkit.engine.processes import end_children\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where the tests run in the background
        "child = subprocess.Popen(['sleep', '60'])\n"
        "end_children(); print(child.wait(timeout=5))"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == str(-signal.SIGINT)


def test_a_zombie_runs_nothing() -> None:
    with subprocess.Popen(["true"]) as process:
        deadline = time.monotonic() + 5
        while processes.program_of(process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)

        assert processes.program_of(process.pid) is None


def test_a_process_that_never_was_runs_nothing() -> None:
    assert processes.program_of(2**22 + 1) is None
