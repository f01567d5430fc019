"""Builds an image with BuildKit: base image, locks, build secrets, events, build record."""
