"""Which installed modules a program imports: the list by which bytecode is left out, `imported.txt`.

A program of its own, run by path with the interpreter of an image, once for each thing that the image is for; it adds
to the list:

    python trace.py imported.txt service serve          a module with its arguments, until it ends
    python trace.py imported.txt --encoders             transformers' text encoders and sentence-transformers
"""

from __future__ import annotations

import atexit
import importlib
import importlib.metadata
import pkgutil
import runpy
import sys
from pathlib import Path

__all__ = ["imported", "main"]

_SITE = "/site-packages/"
_HEADER = (
    "# Made by trace.py: what serving, migrating, embedding and loading text encoders import. One module a line.\n"
)


def imported() -> set[str]:
    """The path in site-packages of each Python source that this process has imported."""
    files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    return {file.split(_SITE)[1] for file in files if _SITE in file and file.endswith(".py")}


def main() -> None:
    """Reads the command line; see the module's text."""
    listing = Path(sys.argv[1])
    atexit.register(_add, listing)
    if sys.argv[2] != "--encoders":
        sys.argv[1:] = sys.argv[3:] if len(sys.argv) > 2 else []  # noqa: PLR2004 - the program's own arguments
        runpy.run_module(_MODULE, run_name="__main__", alter_sys=True)
        return
    encoders = importlib.import_module("transformers.models")
    kept = importlib.import_module("buildkit.diet.rules").ENCODERS
    for family in pkgutil.iter_modules(encoders.__path__):
        if family.name in {"auto", *kept}:
            package = importlib.import_module(f"transformers.models.{family.name}")
            for module in pkgutil.iter_modules(package.__path__):
                if not module.name.startswith(("convert_", "modular_", "image_", "video_", "processing_")):
                    importlib.import_module(f"{package.__name__}.{module.name}")
    importlib.import_module("sentence_transformers").SentenceTransformer("/opt/models/all-MiniLM-L6-v2").encode(["x"])


def _add(listing: Path) -> None:
    known = {line for line in listing.read_text("utf-8").splitlines() if line and not line.startswith("#")}
    paths = sorted(known | imported())
    listing.write_text(_HEADER + _versions(paths) + "".join(f"{path}\n" for path in paths), "utf-8")


def _versions(paths: list[str]) -> str:
    """The line that says which version of which distribution holds them, names as .dist-info folders have them."""
    holders = importlib.metadata.packages_distributions()
    names = {name for path in paths for name in holders.get(path.partition("/")[0].removesuffix(".py"), ())}
    versions = {name.lower().replace("-", "_").replace(".", "_"): importlib.metadata.version(name) for name in names}
    return f"# Traced with: {', '.join(f'{name} {version}' for name, version in sorted(versions.items()))}\n"


_MODULE = sys.argv[2] if len(sys.argv) > 2 else ""  # noqa: PLR2004 - after the list

if __name__ == "__main__":
    main()
