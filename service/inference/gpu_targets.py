"""Which GPUs this installation still has code for, by what its slim wrote down. Standard library only.

An image can be made smaller by taking out code for GPUs that it will never meet. On any other GPU the first kernel
would fail with "no kernel image"; torch's own list of architectures does not know, so the image's record is asked.
"""

import json
import sys
from pathlib import Path

__all__ = ["SLIM_FOLDER", "is_served", "kept_targets", "left_out", "refusal"]

SLIM_FOLDER = Path(sys.prefix) / "slim"
"""Where an image keeps the record of its slim; no such folder means that nothing was taken out."""


def kept_targets(folder: Path = SLIM_FOLDER) -> tuple[tuple[int, int], ...] | None:
    """The compute capabilities that every record in `folder` kept code for, ascending; None where all are there."""
    kept: set[tuple[int, int]] | None = None
    for record in sorted(folder.glob("*.json")):
        targets = json.loads(record.read_bytes())["targets"]
        if targets is not None:
            capabilities = {(int(major), int(minor)) for major, _, minor in (text.partition(".") for text in targets)}
            kept = capabilities if kept is None else kept & capabilities
    return None if kept is None else tuple(sorted(kept))


def left_out(folder: Path = SLIM_FOLDER) -> frozenset[str]:
    """The names of the rules by which the records in `folder` took files out."""
    records = (json.loads(record.read_bytes()) for record in sorted(folder.glob("*.json")))
    return frozenset(removal["rule"] for record in records for removal in record["removals"])


def is_served(capability: tuple[int, int], targets: tuple[tuple[int, int], ...] | None) -> bool:
    """Whether a GPU of this compute capability finds code in an installation that kept `targets`.

    Code for X.y runs on X.z where z is y or more, and on no other X (CUDA C++ Programming Guide, "Binary
    Compatibility").
    """
    if targets is None:
        return True
    return any(major == capability[0] and minor <= capability[1] for major, minor in targets)


def refusal(capability: tuple[int, int], targets: tuple[tuple[int, int], ...] | None) -> str | None:
    """One line that says why a GPU cannot be used and what to do; None where it can."""
    if is_served(capability, targets):
        return None
    kept = ", ".join(f"{major}.{minor}" for major, minor in targets or ()) or "none"
    return (
        f"this image was made for GPUs of compute capability {kept}, and this one has {capability[0]}.{capability[1]}: "
        "use an image that was made for it, such as the target `api`, which runs on all"
    )
