"""Stands in for transformers."""

import os

if os.environ.get("STANDIN_FAULT") == "transformers import":
    raise ImportError("cannot import name 'AutoModel'")
__version__ = "5.20.0"
