"""Prunes and strips one shared library, and checks the result against the original."""
