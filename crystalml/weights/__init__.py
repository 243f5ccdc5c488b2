"""Trained weights: the ones shipped with the package and every other place they can come from."""

from crystalml.weights.registry import (
    DEFAULT_POTENTIAL,
    ModelInfo,
    as_model,
    list_models,
    load_model,
    model_info,
    register,
)

__all__ = [
    "DEFAULT_POTENTIAL",
    "ModelInfo",
    "as_model",
    "list_models",
    "load_model",
    "model_info",
    "register",
]
