"""Slims an installed CUDA environment: removes what an image does not use, and records every change.

It runs in a build stage, where only buildkit/slim, buildkit/binary and buildkit/errors.py are mounted:
`PYTHONPATH=/mnt python -m buildkit.slim TREE`. It imports only these and the standard library.
"""
