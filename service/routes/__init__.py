"""The HTTP surface: one module per group of routes, and `table`, which declares them all."""
