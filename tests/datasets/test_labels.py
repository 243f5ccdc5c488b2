"""Labels: what is a number stays one, in whatever type it comes, and what is missing is told."""

from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from crystalml.datasets.labels import read_labels
from crystalml.errors import InputError


@pytest.mark.parametrize(
    "y",
    [
        [1, 2.5],
        np.array([1, 2.5], np.float32),
        pd.Series([1, 2.5], dtype=object),
        pd.Series([1, 2.5], dtype="Float64"),
        ["1", " 2.5 "],
        [1.0, "2.5"],
        np.array([b"1", b"2.5"]),
        [Decimal(1), Decimal("2.5")],
    ],
)
def test_numbers_of_any_type_are_numbers(y: Any) -> None:
    found = read_labels(y)
    assert found.dtype == np.float64 and found.tolist() == [1, 2.5]


@pytest.mark.parametrize(
    ("y", "names"),
    [
        (["metal", "gap"], ["metal", "gap"]),
        (pd.Series(["metal", "gap"], dtype="string"), ["metal", "gap"]),
        ([True, False], ["True", "False"]),
        (np.array([True, False], object), ["True", "False"]),
        (np.array([b"a", b"b"]), ["a", "b"]),
    ],
)
def test_text_and_bool_are_classes(y: Any, names: list[str]) -> None:
    assert read_labels(y).tolist() == names


def test_classes_can_be_asked_for() -> None:
    assert read_labels([225, 12], classes=True).tolist() == ["225", "12"]
    assert read_labels(["225", "3a"], classes=True).tolist() == ["225", "3a"]
    assert read_labels([True, False], classes=False).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("y", "said"),
    [
        ([155.0, None, 24.0], "not finite at 1 places, first at 1"),
        (pd.Series([1, 2, None], dtype="Int64"), "not finite at 1 places, first at 2"),
        (["1", "inf"], "not finite at 1 places, first at 1"),
        ([None, None], "not finite at 2 places"),
        (["a", np.nan, "b"], "missing at 1 places, first at 1"),
        ([True, None], "missing at 1 places"),
        (["1", "unknown", "3", "-"], "2 numbers and text: 'unknown' in row 1, '-' in row 3;"),
        ([1.0, "?", np.nan], "text: '[?]' in row 1;"),
        ([0.5, *"abcdef"], r"'e' in row 5, \.\.\.;"),
    ],
)
def test_what_is_no_label_is_named(y: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_labels(y)


def test_messages_speak_of_the_callers_rows() -> None:
    with pytest.raises(InputError, match="column 'K' holds 1 numbers and text: 'x' in row 3;"):
        read_labels(["1", "x"], called="column 'K'", first=2)
    with pytest.raises(InputError, match="'a' in row 0"):
        read_labels(["a", "b"], classes=False)
