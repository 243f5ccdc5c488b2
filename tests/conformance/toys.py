"""A sound pair potential, and calculators that break one law each."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from ase.units import GPa
from vesin import ase_neighbor_list as neighbor_list

CUTOFF = 4.6


def smooth_pair(r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """phi(r) = (8 / r^2 - 2) (1 - r / r_c)^3 in eV and its derivative: repulsive core, shallow well."""
    x = 1 - r / CUTOFF
    core = 8 / r**2 - 2
    return core * x**3, -16 / r**3 * x**3 - 3 * core * x**2 / CUTOFF


class Sound(Calculator):
    """Keeps every law."""

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress"]

    def pair(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return smooth_pair(r)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = ("energy",),
        system_changes: Any = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results = self.compute(self.atoms)

    def compute(self, atoms: Atoms) -> dict[str, Any]:
        if atoms.pbc.any() and not atoms.cell[atoms.pbc].any(axis=1).all():
            raise ValueError("periodic along a vector that the cell does not have")
        volume = abs(np.linalg.det(atoms.cell[:]))
        forces, virial, energy = np.zeros((len(atoms), 3)), np.zeros((3, 3)), 0.0
        if len(atoms):
            i, d, vector = neighbor_list("idD", atoms, CUTOFF)
            phi, slope = self.pair(d)
            energy = float(0.5 * phi.sum())
            pull = (slope / d)[:, None] * vector
            np.add.at(forces, i, pull)
            virial = 0.5 * np.einsum("na,nb->ab", pull, vector)
        results = {"energy": energy, "free_energy": energy, "forces": forces}
        return {**results, **({"stress": full_3x3_to_voigt_6_stress(virial / volume)} if volume else {})}


class Scaled(Sound):
    """Base of those whose results are changed afterwards."""

    def change(self, results: dict[str, Any], atoms: Atoms) -> None:
        raise NotImplementedError

    def compute(self, atoms: Atoms) -> dict[str, Any]:
        results = super().compute(atoms)
        self.change(results, atoms)
        return results


def scale_stress(name: str, function: Any) -> type[Scaled]:
    def change(self: Scaled, results: dict[str, Any], atoms: Atoms) -> None:
        if "stress" in results:
            results["stress"] = function(results["stress"])

    return type(name, (Scaled,), {"change": change, "__module__": __name__})


GigaPascal = scale_stress("GigaPascal", lambda s: s / GPa)
Pressure = scale_stress("Pressure", lambda s: -s)
OtherOrder = scale_stress("OtherOrder", lambda s: s[[0, 1, 2, 5, 4, 3]])
Matrix = scale_stress("Matrix", lambda s: s[[[0, 5, 4], [5, 1, 3], [4, 3, 2]]])


class DiluteStress(Scaled):
    """Slab stress over the wrong volume (the whole cube of the longest vector)."""

    def change(self, results, atoms):
        if not atoms.pbc.all() and atoms.pbc.any():
            results["stress"] = results["stress"] / 18


class NoPartialPeriodicity(Sound):
    """Drops all periodicity unless it is complete."""

    def compute(self, atoms):
        if not atoms.pbc.all():
            atoms = atoms.copy()
            atoms.pbc = False
        return super().compute(atoms)


class AlwaysPeriodic(Sound):
    """Takes every vector of the cell for a period."""

    def compute(self, atoms):
        if atoms.cell.rank == 3:
            atoms = atoms.copy()
            atoms.pbc = True
        return super().compute(atoms)


class WeakNoPartialPeriodicity(NoPartialPeriodicity):
    """The same with so little energy at stake that no fixed tolerance would notice."""

    def pair(self, r):
        phi, slope = super().pair(r)
        return 1e-4 * phi, 1e-4 * slope


class VirialForSlabs(Scaled):
    """Divides by the volume of crystals only."""

    def change(self, results, atoms):
        if not atoms.pbc.all() and "stress" in results:
            results["stress"] = results["stress"] * atoms.cell.volume


class AbruptCutoff(Sound):
    """Ten meV for every pair within reach."""

    def pair(self, r):
        phi, slope = super().pair(r)
        return phi + 0.01 * (r < 4.37), slope


class KinkedCutoff(Sound):
    """The energy is continuous, the force is not."""

    def pair(self, r):
        phi, slope = super().pair(r)
        inside = r < 4.37
        return phi + 0.02 * (r - 4.37) * inside, slope + 0.02 * inside


class Hole(Sound):
    """A smooth network's invention where it has seen no data."""

    def pair(self, r):
        phi, slope = super().pair(r)
        well = -400 * np.exp(-((r / 0.4) ** 2))
        return phi + well, slope - 2 * r / 0.16 * well


class SinglePrecisionArrays(Scaled):
    def change(self, results, atoms):
        results["forces"] = results["forces"].astype(np.float32)


class ArrayEnergy(Scaled):
    def change(self, results, atoms):
        results["energy"] = np.array([results["energy"]])


class NotExtensive(Scaled):
    """Scaled by the number of atoms, as a mean over a graph would be."""

    def change(self, results, atoms):
        for key in results:
            results[key] = results[key] * max(len(atoms), 1) ** 0.1


class OnlyNearestImages(Sound):
    """The minimum image convention, in cells of any size."""

    def compute(self, atoms):
        inside = atoms.copy()
        inside.wrap()
        i, j, d = neighbor_list("ijd", inside, CUTOFF)
        first: dict[tuple[int, int], int] = {}
        for k in np.argsort(d):
            if i[k] != j[k]:
                first.setdefault((int(i[k]), int(j[k])), int(k))
        chosen = list(first.values())
        phi, _ = self.pair(d[chosen])
        results = super().compute(atoms)
        results["energy"] = results["free_energy"] = float(0.5 * phi.sum())
        return results


class WrongForces(Scaled):
    def change(self, results, atoms):
        results["forces"] = 1.05 * results["forces"]


class NoFreeEnergy(Sound):
    implemented_properties: ClassVar[list[str]] = ["energy", "forces", "stress"]


class Forgetful(Sound):
    """Never uses what it computed."""

    def calculation_required(self, atoms, properties):
        return True

    def get_property(self, name, atoms=None, allow_calculation=True):
        self.reset()
        return super().get_property(name, atoms, allow_calculation)


class Stale(Sound):
    """Depends on atoms.info, which ASE's cache does not look at."""

    def compute(self, atoms):
        results = super().compute(atoms)
        results["energy"] += 0.5 * atoms.info.get("charge", 0)
        results["free_energy"] = results["energy"]
        return results


class Wandering(Scaled):
    """Another answer each time."""

    count = 0

    def change(self, results, atoms):
        type(self).count += 1
        results["forces"] = results["forces"] + 1e-3 * (type(self).count % 7)


class Meddler(Sound):
    """Leaves a note in the caller's atoms."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        atoms.info["computed"] = True


class NoPickle(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.model = lambda: None


class NoCopyAfterUse(Sound):
    """Keeps a handle that cannot be copied, as those of graphs that hold gradients."""

    graph = None

    def compute(self, atoms):
        self.graph = 1
        return super().compute(atoms)

    def __deepcopy__(self, memo):
        if self.graph:
            raise RuntimeError("Only Tensors created explicitly by the user support the deepcopy protocol")
        return type(self)()

    def __getstate__(self):
        return {key: value for key, value in copy.copy(self.__dict__).items() if key != "graph"}


class ModelInParameters(Sound):
    """As a calculator whose misspelled keyword holds the model."""

    def __init__(self, model: object = object) -> None:
        super().__init__(model=model)


class KeyErrorForElements(Sound):
    message: ClassVar[type[Exception]] = KeyError

    def compute(self, atoms):
        for symbol in atoms.get_chemical_symbols():
            if symbol in ("Og", "Po"):
                raise self.message(symbol)
        return super().compute(atoms)


class ValueErrorForElements(KeyErrorForElements):
    message = ValueError


class CrashOnEmpty(Sound):
    def compute(self, atoms):
        atoms.positions.max()  # of nothing
        return super().compute(atoms)


class BulkOnly(Sound):
    """Refuses what it does not serve, clearly."""

    def compute(self, atoms):
        if not atoms.pbc.all():
            raise NotImplementedError("slabs and molecules are not served")
        return super().compute(atoms)


class NoStress(Sound):
    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces"]
