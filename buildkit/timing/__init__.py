"""Times builds, phase by phase, and counts the bytes that a node must fetch afterwards."""
