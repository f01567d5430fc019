"""Compares two measured images: layers, packages, files, bytes to fetch."""
