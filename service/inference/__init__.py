"""Runs models: batching scheduler, worker threads, torch models, model folders."""
