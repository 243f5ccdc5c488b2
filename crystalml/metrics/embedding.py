"""What the Frechet distance is measured in: anything that turns crystals into vectors of one length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pymatgen.core.structure import Structure

from crystalml.errors import InputError


@runtime_checkable
class Embedder(Protocol):
    """structures -> (n, d) array, one row a crystal, the same whatever the others are.

    name: which network and layer, with the version of its weights; figures of two names are not comparable.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, structures: Sequence[Structure]) -> NDArray[Any]: ...


@dataclass(frozen=True)
class _Function:
    name: str
    call: Callable[[Sequence[Structure]], Any]

    def __call__(self, structures: Sequence[Structure]) -> NDArray[np.float64]:
        rows = np.asarray(self.call(structures), dtype=np.float64)
        if rows.ndim != 2 or len(rows) != len(structures):
            raise InputError(
                f"the embedder {self.name} must give one row for each of {len(structures)} crystals, not an "
                f"array of shape {rows.shape}"
            )
        return rows


def as_embedder(thing: Any, name: str | None = None) -> Embedder:
    """An embedder from an object with `transform` (scikit-learn, matminer style) or from any function.

    name: by default the object's own `name`, else that of its class or function. Every answer is checked for
    its shape. Raises InputError for what can be neither.
    """
    own = name or getattr(thing, "name", None) or getattr(thing, "__name__", None) or type(thing).__name__
    call = getattr(thing, "transform", None) or (thing if callable(thing) else None)
    if call is None:
        raise InputError(f"{thing!r} is no embedder: it has no `transform` and cannot be called")
    return _Function(str(own), call)
