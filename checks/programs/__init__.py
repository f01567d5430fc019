"""Programs that run inside a checked image: the standard library only, each prints one JSON document."""
