"""Sends requests to a running release: smoke tests, load, metrics, commands inside containers."""
