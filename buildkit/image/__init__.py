"""An image, from whatever holds it to a merged file system: sources, blobs, layers, entries, packages, GPU code."""
