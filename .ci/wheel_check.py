"""Run outside the checkout with only the wheel installed: is everything inside that must be?"""

import sys
from pathlib import Path

import crystalml
import crystalml.calculators
from crystalml import DaoCalculator, StructureGenerator, list_models

home = Path(crystalml.__file__).parent
assert Path(sys.prefix) in home.parents, f"imported from {home}, not from the wheel"
assert Path(crystalml.calculators.__file__).parent == home / "calculators"
assert (home / "py.typed").is_file()
assert DaoCalculator
assert StructureGenerator
models = list_models()
assert models, "no weights are registered"
for model in models:
    weights = home / "weights" / model.file
    assert weights.stat().st_size == model.bytes, f"{weights} is not what the registry says"
    assert weights.stat().st_size <= 16 * 2**20, f"{weights} is larger than 16 MiB"
print(f"wheel: {home}, {len(models)} models")
