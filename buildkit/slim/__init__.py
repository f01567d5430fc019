"""The slim: takes out of an installed CUDA environment what the image never uses, and says what it took.

Standard library only: it runs inside a build stage by bind mount, `PYTHONPATH=/mnt python -m buildkit.slim TREE`.
"""
