"""Facts of a built image, as pytest-testinfra checks; run by `python -m buildkit verify`."""
