"""Imports the model libraries and embeds sentences with them, and prints versions, seconds and vectors as JSON.

    python3 - '{"model": "/opt/models/all-MiniLM-L6-v2", "texts": ["..."]}' < embedding.py

Each import is reported by itself, so that one that fails does not hide what the others do.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
import time
import traceback
from typing import Any

__all__: list[str] = []


def attempt(module: str, outcome: dict[str, Any]) -> Any:  # noqa: ANN401 - whatever the image has by that name
    """The imported module, or None; how it went is noted in *outcome*."""
    began = time.perf_counter()
    try:
        imported = importlib.import_module(module)
    except BaseException:  # noqa: BLE001 - the edge of the process: the message must reach the caller
        outcome[module] = {"error": traceback.format_exc(limit=-3)}
        return None
    seconds = time.perf_counter() - began
    outcome[module] = {"version": str(getattr(imported, "__version__", "")), "seconds": seconds}
    return imported


def uncompiled() -> list[str]:
    """The installed sources that this process has imported and had to compile first."""
    specs = [getattr(module, "__spec__", None) for module in list(sys.modules.values())]
    found = {(spec.origin, spec.cached) for spec in specs if spec is not None and spec.cached}
    return sorted(
        origin for origin, cached in found if origin and "/site-packages/" in origin and not os.path.exists(cached)
    )


def main() -> None:
    """Prints what the imports and the model give."""
    request = json.loads(sys.argv[1])
    outcome: dict[str, Any] = {"imports": {}}
    chatter = io.StringIO()
    with contextlib.redirect_stdout(chatter):
        torch = attempt("torch", outcome["imports"])
        attempt("transformers", outcome["imports"])
        library = attempt("sentence_transformers", outcome["imports"])
        if torch is not None:
            flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)()  # noqa: SLF001 - get_arch_list needs a GPU
            outcome["torch"] = {"cuda": torch.version.cuda, "targets": sorted((flags or "").split())}
        if library is not None:
            try:
                model = library.SentenceTransformer(request["model"], device="cpu")
                outcome["vectors"] = [[float(x) for x in row] for row in model.encode(request["texts"])]
            except BaseException:  # noqa: BLE001 - the edge of the process: the message must reach the caller
                outcome["error"] = traceback.format_exc(limit=-3)
    outcome["uncompiled"] = uncompiled()
    json.dump(outcome, sys.stdout)


main()
