"""How good is it: structure match rates and validity, by the protocols of the literature."""
