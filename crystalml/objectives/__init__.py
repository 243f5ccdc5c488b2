"""Training objectives: a model, a batch and a generator in, named scalar losses out."""
