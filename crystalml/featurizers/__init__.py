"""Featurizers: learned features behind the interfaces of matminer and scikit-learn."""

from crystalml.featurizers.learned import DaoFeaturizer, FourierFrameNetFeaturizer

__all__ = ["DaoFeaturizer", "FourierFrameNetFeaturizer"]
