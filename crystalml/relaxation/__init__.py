"""Relaxation of many crystals in one batch, on tensors; `crystalml.relax` is its face."""
