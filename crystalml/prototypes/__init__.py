"""Known structure types: an atlas of symmetry prototypes, and prediction by substituting elements in them."""

from crystalml.prototypes.align import Closeness
from crystalml.prototypes.atlas import Candidate, PrototypeAtlas
from crystalml.prototypes.similarity import Similarity
from crystalml.prototypes.substitute import predictions, substitute

__all__ = ["Candidate", "Closeness", "PrototypeAtlas", "Similarity", "predictions", "substitute"]
