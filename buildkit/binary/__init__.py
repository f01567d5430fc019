"""Reads and rewrites ELF files and CUDA fat binaries. Standard library only."""
