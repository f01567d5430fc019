"""Runs a kernel and the embedding model on the GPU, and prints the results as JSON.

Besides the image's torch and sentence-transformers it uses the standard library only.

    python3 - '{"model": "/opt/models/all-MiniLM-L6-v2", "texts": ["..."]}' < device.py
"""

from __future__ import annotations

import json
import sys
from typing import Any

__all__: list[str] = []


def main() -> None:
    """Prints the name of the GPU and the results."""
    import torch  # noqa: PLC0415 - a failing import must show as this program's error

    request = json.loads(sys.argv[1])
    outcome: dict[str, Any] = {"is_available": torch.cuda.is_available(), "count": torch.cuda.device_count()}
    if outcome["is_available"]:
        outcome["name"] = torch.cuda.get_device_name(0)
        outcome["capability"] = "sm_{}{}".format(*torch.cuda.get_device_capability(0))
        left = torch.arange(64 * 64, dtype=torch.float64).reshape(64, 64) % 17
        product = (left.cuda() @ left.cuda().T).cpu()
        outcome["is_product_equal"] = bool(torch.equal(product, left @ left.T))
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - not needed to say that there is no GPU

        model = SentenceTransformer(request["model"], device="cuda")
        outcome["vectors"] = [[float(x) for x in row] for row in model.encode(request["texts"])]
    json.dump(outcome, sys.stdout)


main()
