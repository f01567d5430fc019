"""Finds, installs, starts and calls the container engine."""
