"""The commands of `python -m buildkit`, one module per group. Only they print results."""
