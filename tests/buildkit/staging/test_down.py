from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[3]


def test_what_is_stored_can_be_purged_after_the_swarm_was_left(docker: Sequence[str], tmp_path: Path) -> None:
    """`stage-down` leaves the swarm that was made for it; a later `--purge` finds the volume without one."""
    name, state = "tgdown", tmp_path / "state"
    volume, other = f"{name}_database", "tgother_database"
    for made, stack in ((volume, name), (other, "tgother")):
        label = f"com.docker.stack.namespace={stack}"
        subprocess.run([*docker, "volume", "create", "--label", label, made], check=True, capture_output=True)
    try:
        command = [sys.executable, "-m", "buildkit", "stage-down", "--purge", "--name", name, "--state", str(state)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        listed = subprocess.run([*docker, "volume", "ls", "--quiet"], capture_output=True, text=True, check=True).stdout
    finally:
        subprocess.run([*docker, "volume", "rm", "--force", volume, other], check=False, capture_output=True)

    assert done.returncode == 0, done.stderr
    assert f"removing the volume {volume}" in done.stderr
    assert volume not in listed.split()
    assert other in listed.split()
    assert not state.exists()
