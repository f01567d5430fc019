"""Releases an image to staging, watches it, and rolls back."""
