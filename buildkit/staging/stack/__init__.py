"""Drives the orchestrator and the registry: services, jobs, pushes, sidecar images."""
