"""Defines the image label that `build` writes and `diff` reads; imports nothing else, so that `build` starts fast."""

from typing import Final

__all__ = ["BASE_LAYERS_LABEL"]

BASE_LAYERS_LABEL: Final = "io.truthgraph.base.layers"
"""The image label with the number of lowest layers that belong to the base image."""
