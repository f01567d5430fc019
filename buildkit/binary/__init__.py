"""Reads and rewrites ELF files and CUDA fat binaries. Imports only the standard library and buildkit.errors."""
