"""Labels as users have them: numbers, numbers as text, names of classes, and what is missing among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalml.errors import InputError

_SHOWN = 5  # bad values that a message quotes


def read_labels(
    y: Sequence[Any] | NDArray[Any], classes: bool | None = None, called: str = "y", first: int = 0
) -> NDArray[Any]:
    """Numbers (b,) as float64, or names (b,) of classes as str.

    classes: None takes bool, and text of which nothing is a number, for classes; "1.5" is a number.
    called, first: what messages call y and the first of its rows.
    Raises InputError for what is missing or not finite, and for text among numbers.
    """
    from pandas import isna, to_numeric

    given = np.asarray(y)
    given = given.astype(str) if given.dtype.kind == "S" else given
    mixed = given.dtype.kind == "U" and isinstance(y, list | tuple)  # where NumPy makes text of NaN
    values = np.asarray(y, object) if mixed else given.astype(object)
    missing = isna(values)
    numbers = np.array(to_numeric(values, errors="coerce"), np.float64)
    text = np.isnan(numbers) & ~missing
    if classes is None:
        bools = all(isinstance(value, bool | np.bool_) for value in values[~missing])
        classes = not missing.all() and (bools or bool((text | missing).all()))
    if text.any() and not classes:
        some = [f"{str(values[k])!r} in row {first + k}" for k in np.flatnonzero(text)[:_SHOWN]]
        more = ", ..." if text.sum() > _SHOWN else ""
        raise InputError(
            f"{called} holds {len(text) - text.sum()} numbers and text: {', '.join(some)}{more}; mend or "
            "leave out those rows (names of classes that look like numbers need classification=True)"
        )
    bad = np.flatnonzero(missing if classes else ~np.isfinite(numbers))
    if len(bad):
        what = "missing" if classes else "not finite"
        raise InputError(
            f"{called} is {what} at {len(bad)} places, first at {first + bad[0]}; leave those crystals out"
        )
    return given.astype(str) if classes else numbers
