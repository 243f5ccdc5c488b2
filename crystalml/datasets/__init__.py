"""Data sets: reading the corpus, splitting it fairly, packing it for training."""
