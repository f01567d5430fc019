"""Says which GPUs a slimmed installation has code for. Standard library only.

Slimming can remove the code for GPUs that an image will never run on. On such a GPU the first kernel would fail with
"no kernel image". torch's own list of architectures does not change, so this module reads the records of slimming.
"""

import json
import sys
from pathlib import Path

__all__ = ["SLIM_FOLDER", "applied_rules", "has_code_for", "kept_targets", "refusal"]

SLIM_FOLDER = Path(sys.prefix) / "slim"
"""Folder of the records that slimming writes; without it nothing was removed."""


def kept_targets(folder: Path = SLIM_FOLDER) -> tuple[tuple[int, int], ...] | None:
    """Returns the compute capabilities that every record in `folder` kept code for, ascending; None for all."""
    kept: set[tuple[int, int]] | None = None
    for record in sorted(folder.glob("*.json")):
        targets = json.loads(record.read_bytes())["targets"]
        if targets is not None:
            capabilities = {(int(major), int(minor)) for major, _, minor in (text.partition(".") for text in targets)}
            kept = capabilities if kept is None else kept & capabilities
    return None if kept is None else tuple(sorted(kept))


def applied_rules(folder: Path = SLIM_FOLDER) -> frozenset[str]:
    """Returns the names of the slim rules that removed files, by the records in `folder`."""
    records = (json.loads(record.read_bytes()) for record in sorted(folder.glob("*.json")))
    return frozenset(removal["rule"] for record in records for removal in record["removals"])


def has_code_for(capability: tuple[int, int], targets: tuple[tuple[int, int], ...] | None) -> bool:
    """Whether a GPU of this compute capability has code in an installation that kept `targets`.

    Code for X.y runs on X.z if z is at least y, and on no other X (CUDA C++ Programming Guide, "Binary
    Compatibility").
    """
    if targets is None:
        return True
    return any(major == capability[0] and minor <= capability[1] for major, minor in targets)


def refusal(capability: tuple[int, int], targets: tuple[tuple[int, int], ...] | None) -> str | None:
    """Returns one line that says why a GPU cannot be used and what to do; None if it can."""
    if has_code_for(capability, targets):
        return None
    kept = ", ".join(f"{major}.{minor}" for major, minor in targets or ()) or "none"
    return (
        f"this image has code for GPUs of compute capability {kept}, and this GPU has {capability[0]}.{capability[1]}: "
        "use an image built for it, such as the target `api`, which runs on all"
    )
