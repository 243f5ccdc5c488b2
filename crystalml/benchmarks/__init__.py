"""What `crystalml benchmark ...` runs; every figure in the documentation comes from here."""
