"""Handles HTTP requests: one module for each group of routes; each lists its handlers in HANDLERS."""
