"""Stands in for sentence-transformers: returns the golden vectors."""

import json
import os
from pathlib import Path

FAULTS = os.environ.get("STANDIN_FAULTS", "").split(",")
if "import sentence_transformers" in FAULTS:
    raise ImportError("No module named 'transformers.models'")
__version__ = "6.1.0"


class SentenceTransformer:
    """The model in one folder."""

    def __init__(self, folder: str, device: str) -> None:
        del device
        self.vectors = json.loads((Path(folder) / "vectors.json").read_text())

    def encode(self, texts: list[str]) -> list[list[float]]:
        """Returns the golden vectors for any texts."""
        del texts
        shift = 0.01 if "embedding" in FAULTS else 0.0
        return [[value + shift for value in vector] for vector in self.vectors]
