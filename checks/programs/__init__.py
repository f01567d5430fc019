"""Programs that run inside a checked image: they use the standard library only and print JSON."""
