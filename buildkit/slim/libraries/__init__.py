"""Removes GPU code and symbols from one shared library, and checks the result against the original."""
