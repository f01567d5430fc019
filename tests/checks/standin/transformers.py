"""Stands in for transformers."""

import os

if "import transformers" in os.environ.get("STANDIN_FAULTS", "").split(","):
    raise ImportError("cannot import name 'AutoModel'")
__version__ = "5.20.0"
