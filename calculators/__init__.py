"""Adapters to other people's interfaces; no science lives here. Loaded on first use (PEP 562)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crystalml.calculators.ase import DaoCalculator

__all__ = ["DaoCalculator"]

_HOME = {"DaoCalculator": "crystalml.calculators.ase"}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
