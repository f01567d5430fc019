"""Proves on a copy that a slimmed tree behaves like the original."""
