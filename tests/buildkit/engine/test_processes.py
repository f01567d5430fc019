from __future__ import annotations

import signal
import subprocess
import sys

from buildkit.engine import processes
from tests.support.polling import until

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


def test_process_that_ignores_the_request_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as process:
        (process.stdout or sys.stdin.buffer).readline()

        processes.end([process.pid], ask=signal.SIGTERM, patience_seconds=0.3)

        assert process.wait(timeout=60) == -signal.SIGKILL


def test_children_end_as_with_ctrl_c() -> None:
    script = (
        "import signal, subprocess; from buildkit.engine.processes import end_children\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell starts background jobs with it ignored
        "child = subprocess.Popen(['sleep', '600'])\n"
        "end_children(); print(child.wait(timeout=60))"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == str(-signal.SIGINT)


def test_ended_process_runs_no_program() -> None:
    with subprocess.Popen(["true"]) as process:
        until(lambda: processes.program_of(process.pid) is None, "the process ended")


def test_unknown_process_runs_no_program() -> None:
    assert processes.program_of(2**22 + 1) is None
