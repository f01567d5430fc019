"""Releases: push, migrate, update, check, watch and roll back, each a step that is recorded and can be undone."""
