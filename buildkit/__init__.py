"""The harness: builds, measures and proves images with BuildKit; `python -m buildkit` is its command line."""
