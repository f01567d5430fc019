"""How long builds take, phase by phase, and what a node must fetch afterwards: scenarios in turn, all samples kept."""
