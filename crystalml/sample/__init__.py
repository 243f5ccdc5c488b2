"""Samplers: turn a denoiser and a noise process into crystals."""
