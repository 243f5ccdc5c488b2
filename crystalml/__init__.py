"""Diffusion models and potentials for inorganic crystals.

Names are loaded on first use (PEP 562): `import crystalml` costs milliseconds and touches neither torch,
nor the network, nor the disk.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from crystalml import errors

if TYPE_CHECKING:
    from crystalml.calculators.ase import DaoCalculator
    from crystalml.compiled import compile_potential
    from crystalml.convert import read_structures, to_atoms, to_batch, to_structures
    from crystalml.crystal import CrystalBatch
    from crystalml.evaluation.run import evaluate
    from crystalml.featurizers import DaoFeaturizer, FourierFrameNetFeaturizer
    from crystalml.generate import StructureGenerator
    from crystalml.predict import Predictor
    from crystalml.property import PropertyPredictor
    from crystalml.prototypes.atlas import PrototypeAtlas
    from crystalml.prototypes.substitute import substitute
    from crystalml.relax import relax
    from crystalml.weights.registry import list_models, load_model

__version__ = "0.1.0"

__all__ = [
    "CrystalBatch",
    "DaoCalculator",
    "DaoFeaturizer",
    "FourierFrameNetFeaturizer",
    "Predictor",
    "PropertyPredictor",
    "PrototypeAtlas",
    "StructureGenerator",
    "__version__",
    "compile_potential",
    "errors",
    "evaluate",
    "list_models",
    "load_model",
    "read_structures",
    "relax",
    "substitute",
    "to_atoms",
    "to_batch",
    "to_structures",
]

_HOME = {
    "CrystalBatch": "crystalml.crystal",
    "DaoCalculator": "crystalml.calculators.ase",
    "DaoFeaturizer": "crystalml.featurizers",
    "FourierFrameNetFeaturizer": "crystalml.featurizers",
    "Predictor": "crystalml.predict",
    "PropertyPredictor": "crystalml.property",
    "PrototypeAtlas": "crystalml.prototypes.atlas",
    "StructureGenerator": "crystalml.generate",
    "compile_potential": "crystalml.compiled",
    "evaluate": "crystalml.evaluation.run",
    "list_models": "crystalml.weights.registry",
    "load_model": "crystalml.weights.registry",
    "read_structures": "crystalml.convert",
    "relax": "crystalml.relax",
    "substitute": "crystalml.prototypes.substitute",
    "to_atoms": "crystalml.convert",
    "to_batch": "crystalml.convert",
    "to_structures": "crystalml.convert",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps a public name its own when a submodule is called the same.

    Importing `crystalml.relax` makes Python bind the module to the package's attribute `relax`, over the
    function; which of the two a user saw would depend on what was imported before.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
