"""Optimisation loop, moving averages and checkpoints."""
