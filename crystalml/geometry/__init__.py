"""Lattices, the torus of fractional coordinates, Fourier features and periodic neighbours."""
