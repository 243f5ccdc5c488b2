"""The calculator under examination: how it is built, called, and what precision it works in."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculatorSetupError
from ase.calculators.calculator import InputError as AseInputError

from crystalml.conformance.cases import FAMILIES, Cases, Pair, single
from crystalml.conformance.report import Result
from crystalml.errors import CrystalMLError, InputError

Dtype = Literal["float32", "float64"]

# A ValueError is a clear refusal if it names the matter; one out of the depths of an array library does not.
_MATTER = re.compile(
    r"pbc|period|bulk|slab|molecul|\bcell|lattice|vacuum|empty|no atoms|\b0 atoms|zero atoms"
    r"|at least one atom|isolat|neighbo|too close|overlap|distance|element|species|atomic number"
    r"|not support|unsupported",
    re.IGNORECASE,
)
_CLEAR = (NotImplementedError, CrystalMLError, CalculatorSetupError, AseInputError)


class Skipped(Exception):
    """The check does not apply to this calculator."""


class Refused(Exception):
    """The calculator said clearly that it does not serve this case."""


def refuses(error: BaseException, names: tuple[str, ...] = ()) -> bool:
    """Whether an exception tells the user what the matter is, rather than being an accident.

    Accidents are KeyError, IndexError, ZeroDivisionError, RuntimeError and the like whatever they say. With
    `names`, the message must hold one of them.
    """
    if isinstance(error, Refused):
        return True
    if not isinstance(error, (*_CLEAR, ValueError, TypeError)):
        return False
    text = str(error)
    if names:
        return any(re.search(rf"\b{re.escape(name)}\b", text) for name in names)
    return isinstance(error, _CLEAR) or _MATTER.search(text) is not None


@dataclass(frozen=True)
class Tolerances:
    """Largest allowed errors; each law adds ten times the noise of the energies it is made of."""

    energy: float  # eV/atom
    forces: float  # eV/A
    stress: float  # eV/A^3
    slope: float  # error of a derivative, relative to its largest component


TOLERANCES: dict[Dtype, Tolerances] = {
    "float64": Tolerances(1e-7, 1e-6, 1e-7, 1e-4),
    "float32": Tolerances(1e-4, 2e-3, 1e-4, 1e-2),
}


class Subject:
    """One calculator, kept for all checks; `fresh()` builds another where a check needs that."""

    def __init__(
        self,
        factory: Callable[[], Any],
        elements: Pair | None = None,
        pairs: tuple[Pair, ...] | None = None,
        all_pairs: bool = False,
        dtype: Dtype | None = None,
        seed: int = 0,
    ) -> None:
        self.fresh = factory
        self.calc = _made(factory)
        self.seed, self.pairs, self.all_pairs = seed, pairs, all_pairs
        self._dtype = dtype
        self._known: dict[str, bool] = {}
        self.cases = self._choose((elements,) if elements else FAMILIES)

    @property
    def name(self) -> str:
        """The class of the calculator."""
        return f"{type(self.calc).__module__}.{type(self.calc).__qualname__}"

    def attach(self, atoms: Atoms) -> Atoms:
        """A copy of the atoms with the calculator, which forgets what it computed before."""
        own = atoms.copy()
        if hasattr(self.calc, "reset"):
            self.calc.reset()
        own.calc = self.calc
        return own

    def energy(self, atoms: Atoms) -> float:
        """eV, computed anew."""
        with quiet():
            return number(self.attach(atoms).get_potential_energy())

    def forces(self, atoms: Atoms) -> np.ndarray:
        """eV/A, computed anew."""
        with quiet():
            return np.asarray(self.attach(atoms).get_forces(), dtype=float)

    def stress(self, atoms: Atoms) -> np.ndarray:
        """As the calculator gives it, in ASE's order of six; Refused if it has none for these atoms."""
        with quiet():
            try:
                return np.asarray(self.attach(atoms).get_stress(), dtype=float)
            except NotImplementedError as error:
                raise Refused(str(error) or "no stress for these atoms") from error

    def both(self, atoms: Atoms) -> tuple[float, np.ndarray]:
        """Energy and forces of one calculation."""
        with quiet():
            own = self.attach(atoms)
            return number(own.get_potential_energy()), np.asarray(own.get_forces(), dtype=float)

    def knows(self, symbol: str) -> bool:
        """Whether a crystal of this element can be computed."""
        if symbol not in self._known:
            try:
                self._known[symbol] = bool(np.isfinite(self.energy(single(symbol))))
            except Exception:  # whether it is refused well is a check of its own
                self._known[symbol] = False
        return self._known[symbol]

    def _choose(self, families: tuple[Pair, ...]) -> Cases:
        reasons = []
        for pair in families:
            cases = Cases(pair, self.seed)
            try:
                if np.isfinite(self.energy(cases.bulk())):
                    return cases
                reasons.append(f"{'-'.join(pair)}: not finite")
            except Exception as error:
                reasons.append(f"{'-'.join(pair)}: {describe(error)}")
        raise InputError(
            f"{self.name} computed no bulk crystal ({'; '.join(reasons)}): name two elements that it knows."
        )

    @cached_property
    def relative_noise(self) -> float:
        """Scatter of the energy around a smooth curve over steps of 1e-4 A, relative to max(1 eV, |E|)."""
        bulk, steps = self.cases.bulk(), np.arange(-7, 8)
        direction = np.random.default_rng(self.seed).uniform(-1, 1, bulk.positions.shape)
        energies = []
        for step in steps:
            moved = bulk.copy()
            moved.positions += 1e-4 * step * direction
            energies.append(self.energy(moved))
        values = np.array(energies) - energies[0]
        rest = values - np.polyval(np.polyfit(steps, values, 4), steps)
        return float(max(rest.std(), 1e-16) / max(1.0, abs(energies[0])))

    def noise(self, atoms: Atoms) -> float:
        """Scatter of the energy of these atoms, in eV."""
        return self.relative_noise * max(1.0, abs(self.energy(atoms)))

    @property
    def dtype(self) -> Dtype:
        """The precision that the noise tells of, unless it was given."""
        return self._dtype or ("float32" if self.relative_noise > 1e-10 else "float64")

    @property
    def limits(self) -> Tolerances:
        """The tolerances of this precision."""
        return TOLERANCES[self.dtype]

    @cached_property
    def box(self) -> bool:
        """Whether molecules must be put into a periodic box, because without a cell they do not work."""
        try:
            return not np.isfinite(self.energy(self.cases.dimer(self.cases.distance)))
        except Exception:  # the check on molecules reports it
            return True

    def dimer(self, distance: float, pair: Pair | None = None) -> Atoms:
        """Two atoms, in a box if need be."""
        return self.cases.dimer(distance, pair, self.box)


def _made(factory: Callable[[], Any]) -> Any:
    """The calculator, or an InputError that says why there is none: no check can run without."""
    name = getattr(factory, "__name__", "the target")
    try:
        with quiet():
            made = factory()
    except CrystalMLError:
        raise
    except Exception as error:  # other people's code raises anything
        raise InputError(f"{name} made no calculator: {describe(error)}") from error
    if not hasattr(made, "get_potential_energy"):
        raise InputError(
            f"{name} gave {made!r:.80}, which is no ASE calculator: it has no get_potential_energy"
        )
    return made


def number(value: Any) -> float:
    """A number, also out of an array with one element: that is one failed check, not all."""
    return float(np.asarray(value, dtype=float).item())


def factory_of(calculator: Any) -> Callable[[], Any]:
    """A factory stays; an instance is copied where it can be, and else used again."""
    if isinstance(calculator, type) or not hasattr(calculator, "get_potential_energy"):
        return calculator  # type: ignore[no-any-return]
    unused = [calculator]

    def copied() -> Any:
        if unused:
            return unused.pop()
        try:
            return copy.deepcopy(calculator)
        except Exception:  # the check on copies reports it
            return calculator

    return copied


def guarded(name: str, check: Callable[[], Result]) -> Result:
    """The result of one case, or what its exception amounts to."""
    try:
        with quiet():
            return check()
    except Skipped as reason:
        return Result(name, "skip", message=str(reason))
    except Exception as error:  # any exception of somebody else's calculator is a finding
        return Result(name, "refused" if refuses(error) else "error", message=describe(error))


def describe(error: BaseException) -> str:
    """Type and first line of an exception."""
    text = str(error).strip()
    if isinstance(error, Refused):
        return text
    return f"{type(error).__name__}: {text.splitlines()[0][:160] if text else ''}"


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings: the cases are unusual on purpose."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
