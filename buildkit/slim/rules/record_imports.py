"""Records the installed modules that a program imports in `imported.txt`, the list of modules that rules keep.

Run it by path with the interpreter of an image, once for each use of the image. Each run adds to the list:

    python record_imports.py imported.txt service serve    a module with its arguments, until it ends
    python record_imports.py imported.txt --encoders       transformers' text encoders and sentence-transformers
"""

from __future__ import annotations

import atexit
import importlib
import importlib.metadata
import pkgutil
import re
import runpy
import sys
from pathlib import Path

__all__ = ["imported", "main"]

_SITE = "/site-packages/"
_HEADER = "# Made by record_imports.py: modules imported by serving, migrating, embedding and loading text encoders.\n"
_VERSIONS = "# Recorded with: "


def imported() -> set[str]:
    """Returns the path in site-packages of each Python source that this process has imported."""
    files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    return {file.split(_SITE)[1] for file in files if _SITE in file and file.endswith(".py")}


def main() -> None:
    """Runs the command line described in the module docstring."""
    listing = Path(sys.argv[1])
    atexit.register(_add, listing)
    if sys.argv[2] != "--encoders":
        sys.argv[1:] = sys.argv[3:] if len(sys.argv) > 2 else []  # noqa: PLR2004 - the program's own arguments
        runpy.run_module(_MODULE, run_name="__main__", alter_sys=True)
        return
    encoders = importlib.import_module("transformers.models")
    kept = importlib.import_module("buildkit.slim.rules.rule_sets").ENCODERS
    for family in pkgutil.iter_modules(encoders.__path__):
        if family.name in {"auto", *kept}:
            package = importlib.import_module(f"transformers.models.{family.name}")
            for module in pkgutil.iter_modules(package.__path__):
                if not module.name.startswith(("convert_", "modular_", "image_", "video_", "processing_")):
                    importlib.import_module(f"{package.__name__}.{module.name}")
    importlib.import_module("sentence_transformers").SentenceTransformer("/opt/models/all-MiniLM-L6-v2").encode(["x"])


def _add(listing: Path) -> None:
    """Adds the imported modules and their versions to the list; exits if it has another version of one."""
    lines = listing.read_text("utf-8").splitlines()
    paths = sorted({line for line in lines if line and not line.startswith("#")} | imported())
    recorded = next((line for line in lines if line.startswith(_VERSIONS)), "").removeprefix(_VERSIONS)
    before = dict(entry.split(" ") for entry in recorded.split(", ") if entry)
    now = _versions(paths)
    other = [f"{name} {before[name]}, not {now[name]}" for name in before.keys() & now if before[name] != now[name]]
    if other:
        sys.exit(f"{listing} was recorded with {'; '.join(sorted(other))}: empty it and record every use again")
    versions = ", ".join(f"{name} {version}" for name, version in sorted({**before, **now}.items()))
    listing.write_text(f"{_HEADER}{_VERSIONS}{versions}\n" + "".join(f"{path}\n" for path in paths), "utf-8")


def _versions(paths: list[str]) -> dict[str, str]:
    """Returns the versions of their distributions, by name as in import_list.py."""
    holders = importlib.metadata.packages_distributions()
    names = {name for path in paths for name in holders.get(path.partition("/")[0].removesuffix(".py"), ())}
    return {re.sub(r"[-_.]+", "_", name).lower(): importlib.metadata.version(name) for name in names}


_MODULE = sys.argv[2] if len(sys.argv) > 2 else ""  # noqa: PLR2004 - after the list

if __name__ == "__main__":
    main()
