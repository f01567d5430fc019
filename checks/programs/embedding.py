"""Imports the model libraries, embeds sentences with them, and prints versions, seconds and vectors as JSON.

Besides these libraries it uses the standard library only.

    python3 - '{"model": "/opt/models/all-MiniLM-L6-v2", "texts": ["..."]}' < embedding.py

Each import is reported separately: a failed one does not hide the others.
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


def import_module(module: str, outcome: dict[str, Any]) -> Any:  # noqa: ANN401 - any module
    """Returns the imported module, or None; adds its version and seconds, or its error, to *outcome*."""
    started = time.perf_counter()
    try:
        imported = importlib.import_module(module)
    except BaseException:  # noqa: BLE001 - the edge of the process: the message must reach the caller
        outcome[module] = {"error": traceback.format_exc(limit=-3)}
        return None
    seconds = time.perf_counter() - started
    outcome[module] = {"version": str(getattr(imported, "__version__", "")), "seconds": seconds}
    return imported


def uncompiled() -> list[str]:
    """Returns the installed sources that this process has imported and that have no bytecode."""
    specs = [getattr(module, "__spec__", None) for module in list(sys.modules.values())]
    found = {(spec.origin, spec.cached) for spec in specs if spec is not None and spec.cached}
    return sorted(
        origin for origin, cached in found if origin and "/site-packages/" in origin and not os.path.exists(cached)
    )


def main() -> None:
    """Imports, embeds and prints the results."""
    request = json.loads(sys.argv[1])
    outcome: dict[str, Any] = {"imports": {}}
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        torch = import_module("torch", outcome["imports"])
        import_module("transformers", outcome["imports"])
        library = import_module("sentence_transformers", outcome["imports"])
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
