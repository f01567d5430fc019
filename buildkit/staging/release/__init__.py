"""Releases an image to staging: the steps, their undo, and the record of each release."""
