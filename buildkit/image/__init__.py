"""Reads images from engines, layouts and archives, and analyzes them: layers, files, packages, waste, GPU code."""
