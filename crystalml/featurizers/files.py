"""Crystals from files and tables, and the table of their features: the work behind `crystalml featurize`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from crystalml.convert import read_structures, to_batch
from crystalml.crystal import CrystalBatch
from crystalml.datasets.crysdb import read_parquet
from crystalml.device import pick_device
from crystalml.elements import symbol
from crystalml.errors import CrystalMLError
from crystalml.featurizers.learned import DaoFeaturizer, FourierFrameNetFeaturizer
from crystalml.models.fourierframenet import FourierFrameNetConfig
from crystalml.weights.registry import load_model

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Found:
    """names: one a crystal. crystals: batches of one. failures: (name, reason)."""

    names: list[str]
    crystals: list[CrystalBatch]
    failures: list[tuple[str, str]]


def read(paths: Sequence[str], n: int | None = None, seed: int = 0) -> Found:
    """Crystals of structure files, and of *.parquet tables with numbers, frac_coords and lattice.

    n: so many of them at random, in their order. What cannot be read is listed in failures.
    """
    names: list[str] = []
    crystals: list[CrystalBatch] = []
    failures: list[tuple[str, str]] = []
    for path in paths:
        if path.endswith(".parquet"):
            from crystalml.datasets.arrays import pack

            table = read_parquet(path)
            keep = _draw(len(table), n, seed)
            names += [table.ids[k] for k in keep]
            crystals += pack(table[keep], labels=())[:].split()
            continue
        found = read_structures(path, on_error="skip")
        failures += [(name, str(error)) for name, error in found.failures]
        for name, structure in found.structures:
            try:
                crystals.append(to_batch(structure))
                names.append(name)
            except CrystalMLError as error:
                failures.append((name, str(error)))
    keep = _draw(len(names), n, seed)
    return Found([names[k] for k in keep], [crystals[k] for k in keep], failures)


def _draw(count: int, n: int | None, seed: int) -> np.ndarray:
    if n is None or n >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:n])


def table(
    found: Found,
    model: str,
    sites: bool = False,
    primitive: bool = True,
    device: str | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Columns file, formula (with sites also site and element) and one for each feature."""
    import pandas as pd

    place = pick_device(device)
    network = load_model(model, place)
    ours = isinstance(network.config.encoder, FourierFrameNetConfig)
    kind: type[FourierFrameNetFeaturizer | DaoFeaturizer]
    kind = FourierFrameNetFeaturizer if ours else DaoFeaturizer
    featurizer = kind(
        network,
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
