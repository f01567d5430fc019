"""Builds, measures, compares, slims, checks and releases container images; `python -m buildkit` is the command line."""
