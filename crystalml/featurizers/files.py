"""Crystals from files and tables, and the table of their features: the work behind `crystalml featurize`, and
how `crystalml predict` reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from crystalml.convert import read_structures, to_batch, told_alone
from crystalml.crystal import CrystalBatch
from crystalml.datasets.crysdb import read_parquet
from crystalml.elements import atomic_number, symbol
from crystalml.errors import CrystalMLError
from crystalml.featurizers.learned import DaoFeaturizer, FourierFrameNetFeaturizer
from crystalml.models.fourierframenet import FourierFrameNetConfig
from crystalml.models.model import CrystalModel

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure


@dataclass(frozen=True)
class Found:
    """names: one a crystal. crystals: batches of one. failures: (name, reason)."""

    names: list[str]
    crystals: list[CrystalBatch]
    failures: list[tuple[str, str]]


def read(
    paths: Sequence[str], n: int | None = None, seed: int = 0, known: Collection[int] | None = None
) -> Found:
    """Crystals of structure files, and of *.parquet tables with numbers, frac_coords and lattice.

    n: so many of them at random, in their order. known: the atomic numbers allowed (all). What cannot be read
    is listed in failures, and so is what is no ordered crystal of known elements.
    """
    names: list[str] = []
    crystals: list[CrystalBatch] = []
    failures: list[tuple[str, str]] = []
    for path in paths:
        for name, item in _items(path, n, seed, failures):
            try:
                crystals.append(to_batch(item, dtype=torch.float64, known=known))
                names.append(name)
            except CrystalMLError as error:
                failures.append((name, told_alone(error)))
    keep = _draw(len(names), n, seed)
    return Found([names[k] for k in keep], [crystals[k] for k in keep], failures)


def _items(
    path: str, n: int | None, seed: int, failures: list[tuple[str, str]]
) -> Iterable[tuple[str, CrystalBatch | Structure]]:
    if path.endswith(".parquet"):
        from crystalml.datasets.arrays import pack

        rows = read_parquet(path)
        keep = _draw(len(rows), n, seed)
        return zip([rows.ids[k] for k in keep], pack(rows[keep], labels=())[:].split(), strict=True)
    found = read_structures(path, on_error="skip")
    failures += [(name, str(error).removeprefix(f"{name}: ")) for name, error in found.failures]
    return found.structures


def elements(model: CrystalModel) -> set[int] | None:
    """The atomic numbers that the model knows, None for all."""
    return {atomic_number(name) for name in model.card.get("elements") or ()} or None


def _draw(count: int, n: int | None, seed: int) -> np.ndarray:
    if n is None or n >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:n])


def table(
    found: Found,
    model: CrystalModel,
    sites: bool = False,
    primitive: bool = True,
    device: str | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Columns file, formula (with sites also site and element) and one for each feature."""
    import pandas as pd

    ours = isinstance(model.config.encoder, FourierFrameNetConfig)
    kind: type[FourierFrameNetFeaturizer | DaoFeaturizer]
    kind = FourierFrameNetFeaturizer if ours else DaoFeaturizer
    featurizer = kind(
        model,
        per="site" if sites else "structure",
        primitive=primitive,
        device=device,
        progress=progress,
    )
    formulas = [_formula(x) for x in found.crystals]
    if not sites:
        rows = featurizer.featurize_many(found.crystals)
        head = pd.DataFrame({"file": found.names, "formula": formulas})
    else:
        places = [(k, i) for k, x in enumerate(found.crystals) for i in range(len(x.numbers))]
        rows = featurizer.featurize_many([(found.crystals[k], i) for k, i in places])
        head = pd.DataFrame(
            {
                "file": [found.names[k] for k, _ in places],
                "formula": [formulas[k] for k, _ in places],
                "site": [i for _, i in places],
                "element": [symbol(int(found.crystals[k].numbers[i])) for k, i in places],
            }
        )
    values = pd.DataFrame(rows.astype(np.float32), columns=featurizer.feature_labels())
    return pd.concat([head, values], axis=1)


def _formula(x: CrystalBatch) -> str:
    from pymatgen.core import Composition

    counts = Counter(x.numbers.tolist())
    return str(Composition({symbol(z): n for z, n in counts.items()}).reduced_formula)
