"""Features kept in one Parquet file, by what they were computed from."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystalml.crystal import CrystalBatch
from crystalml.errors import FileReadError, InputError, UnsupportedError
from crystalml.replacing import replacing

Array = NDArray[np.float64]


def key(crystal: CrystalBatch, model: str) -> str:
    """A digest of one crystal (float64 bytes) and of the weights that look at it."""
    digest = hashlib.blake2b(model.encode(), digest_size=16)
    for value in (crystal.numbers, crystal.lattice, crystal.frac):
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()


class FeatureCache:
    """A Parquet file of keys and rows, read and written whole; a kill leaves the old one or the new."""

    def __init__(self, path: str | os.PathLike[str], width: int) -> None:
        self.path, self.width = Path(path), width
        if self.path.suffix != ".parquet":
            raise InputError(f"cache {str(path)!r} must be named *.parquet")
        self.rows: dict[str, Array] = self._read() if self.path.exists() else {}

    def _read(self) -> dict[str, Array]:
        parquet = _parquet()
        try:
            table = parquet.read_table(self.path)
            keys = table.column("key").to_pylist()
            values = np.asarray(table.column("features").combine_chunks().flatten(), np.float64)
            values = values.reshape(len(keys), -1)
        except (OSError, ValueError, KeyError) as error:
            raise FileReadError(
                f"{self.path} is no cache of features ({error}); choose another name"
            ) from error
        if len(keys) and values.shape[1] != self.width:
            raise InputError(
                f"{self.path} holds rows of {values.shape[1]} features, this featurizer makes {self.width}; "
                "choose another name"
            )
        return dict(zip(keys, values, strict=True))

    def add(self, keys: list[str], values: Array) -> None:
        """Keep rows (m, width) and write the file."""
        import pyarrow

        self.rows.update(zip(keys, values, strict=True))
        flat = pyarrow.array(np.concatenate(list(self.rows.values())))
        lists = pyarrow.FixedSizeListArray.from_arrays(flat, self.width)
        table = pyarrow.table({"key": pyarrow.array(list(self.rows)), "features": lists})
        with replacing(self.path) as file:
            _parquet().write_table(table, file)


def _parquet():  # type: ignore[no-untyped-def]
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UnsupportedError('a cache needs pyarrow: pip install "crystalml-dao[data]"') from error
    return parquet
