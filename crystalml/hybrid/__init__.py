"""Known prototypes, refined and ranked: pool of proposals -> denoising -> relaxation -> ranking."""
