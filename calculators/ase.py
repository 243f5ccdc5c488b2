"""DaoCalculator: an energy model behind ASE's calculator interface."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.data import chemical_symbols
from ase.outputs import Properties, all_outputs
from ase.stress import full_3x3_to_voigt_6_stress

from crystalml.device import pick_device
from crystalml.errors import (
    CellError,
    EmptyStructureError,
    InputError,
    UnknownElementError,
    UnsupportedError,
)

if TYPE_CHECKING:
    import torch

    from crystalml.models.model import CrystalModel

PROPERTIES = ("energy", "free_energy", "forces", "stress")
HIGH = 10.0  # eV/atom; above it a look whether atoms coincide, which have no force to push them apart
MIN_DISTANCE = 0.5  # Angstrom; no training crystal has closer atoms, and a smooth network invents wells there


class DaoCalculator(Calculator):
    """Energy, forces and stress of bulk crystals by DAO-P (or any crystalml model with an energy head).

    model: shipped name, path, "hf://" address or CrystalModel. device: None picks CUDA if there is one.
    dtype: "float32" or "float64"; results are float64 either way. energy = free_energy in eV a cell, on the
    model's energy scale (see its card), forces in eV/A, stress = +(1/V) dE/d(strain) in eV/A^3, Voigt order
    xx yy zz yz xz xy. stress_weight is accepted because pymatgen passes it to calculator classes, and has no
    effect: units never change. A potential (a model with the periodic encoder) takes any cell, slabs, wires,
    molecules and single atoms, also gives the atoms' `energies`, and leaves out `stress` without a volume;
    calibrated (`crystalml calibrate`), it has `results["energy_uncertainty"]`, eV a cell as the energy: the
    true energy lies within so much in 68 of 100 crystals like those of the calibration. compile: a potential
    about twice as fast, see `crystalml.compile_potential`: minutes at first, once on each machine.
    Diffusion models see the cell as given and were trained on Niggli-reduced primitive
    cells: reduce a cell before, not during, a relaxation (`crystalml.relax` does).

    Raises UnknownElementError when attached to atoms with an element the model never saw, UnsupportedError
    for anything but a fully periodic bulk (a potential takes all) or a device that is not there, CellError,
    EmptyStructureError, OverlappingAtomsError (below 0.5 A, from a potential 0.01 A), WeightsError,
    DisorderedStructureError (a CIF file's partial occupancies), and InputError for dtypes and settings.
    """

    # A list of this class and, below, of each instance: BaseCalculator's own is shared by all of ASE.
    implemented_properties = list(PROPERTIES)  # noqa: RUF012
    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012  the model sees neither

    def __init__(
        self,
        model: str | os.PathLike[str] | CrystalModel = "dao-p",
        *,
        device: str | None = None,
        dtype: str | torch.dtype = "float32",
        stress_weight: float | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.implemented_properties = list(PROPERTIES)

        precision = str(dtype).removeprefix("torch.")
        if precision not in ("float32", "float64"):
            raise InputError(f"dtype must be 'float32' or 'float64', not {dtype!r}")
        place = str(pick_device(device))
        self._reference = _reference(model)
        self._attach(_prepare(model, place, precision, compile))
        if self.model.is_potential:
            self.implemented_properties.append("energies")
        if self.model.error_bar is not None:
            self.implemented_properties.append("energy_uncertainty")
        card = self.model.card
        # Plain strings: ASE writes the parameters as JSON into every trajectory and database.
        name = self._reference or str(card.get("name", "custom"))
        self.parameters.update(model=name, device=place, dtype=precision, compile=compile)

    def _attach(self, model: CrystalModel) -> None:
        from crystalml.predict import Predictor

        self._predictor = Predictor(model)
        symbols = model.card.get("elements") or chemical_symbols[1:]
        self._known = frozenset(chemical_symbols.index(symbol) for symbol in symbols)

    @property
    def model(self) -> CrystalModel:
        """The network in use, on its device, in evaluation mode."""
        return self._predictor.model

    def export_properties(self) -> Properties:
        """What ASE has a name for; the error bar, for which it has none, is in `results` only."""
        return Properties({name: value for name, value in self.results.items() if name in all_outputs})

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Settings are fixed at construction; ASE would store a misspelled one without a word."""
        if kwargs:
            raise InputError(f"DaoCalculator has no settings to change ({', '.join(kwargs)}): make a new one")
        return {}

    def set_atoms(self, atoms: Atoms) -> None:
        """Called by ASE on `atoms.calc = calculator`: refuse unknown elements at once, not hours later."""
        unknown = sorted(set(atoms.numbers.tolist()) - self._known)
        if unknown:
            names = ", ".join(f"{chemical_symbols[z]} (Z={z})" if z else "X (no element)" for z in unknown)
            raise UnknownElementError(
                f"{self.parameters['model']} was not trained on {names}; it knows {len(self._known)} "
                "elements. Use another model or replace these atoms."
            )

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation; nothing, most of the time, which is quick to see."""
        changes: list[str] = [] if atoms == self.atoms else super().check_state(atoms, tol)
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Compute all properties at once (they come from one gradient); see Calculator.calculate."""
        super().calculate(atoms, properties or ["energy"], system_changes)
        self.results = {}
        if self.atoms is None:
            raise EmptyStructureError("no atoms to calculate: attach them with atoms.calc = calculator")
        self._check(self.atoms)
        from crystalml.convert import COINCIDING, to_batch

        weight = next(self.model.parameters())
        potential = self.model.is_potential
        x = to_batch(
            self.atoms,
            dtype=weight.dtype,
            device=str(weight.device),
            min_distance=0.0 if potential else MIN_DISTANCE,
            bulk=not potential,
        )
        out = {key: value.double().cpu().numpy() for key, value in self._predictor(x).items()}
        energy = float(out["energy"][0])
        if potential and not energy < HIGH * len(x.numbers):
            to_batch(self.atoms, min_distance=COINCIDING, bulk=False)  # raises, naming the atoms
        self.results = {"energy": energy, "free_energy": energy, "forces": out["forces"]}
        if "energies" in out:
            self.results["energies"] = out["energies"]
        if "energy_uncertainty" in out:
            self.results["energy_uncertainty"] = float(out["energy_uncertainty"][0])
        if self.atoms.cell.rank == 3:  # without three vectors there is no volume to divide by
            stress = out["stress"][0] * float(x.volume[0]) / self.atoms.cell.volume
            self.results["stress"] = np.asarray(full_3x3_to_voigt_6_stress(stress))

    def _check(self, atoms: Atoms) -> None:
        if len(atoms) == 0:
            raise EmptyStructureError("cannot compute 0 atoms: add atoms to the cell")
        self.set_atoms(atoms)
        if self.model.is_potential:
            return
        if not atoms.pbc.all():
            raise UnsupportedError(
                f"{self.parameters['model']} describes bulk crystals only, but pbc = {atoms.pbc.tolist()}: "
                "slabs, wires and molecules are outside of what it learned. Use a bulk cell with pbc=True."
            )
        if atoms.cell.rank < 3:
            raise CellError(
                f"the cell {atoms.cell.tolist()} has rank {atoms.cell.rank}: a bulk crystal needs three "
                "independent vectors, for example atoms.set_cell([[4, 0, 0], [0, 4, 0], [0, 0, 4]])."
            )

    def __getstate__(self) -> dict[str, Any]:
        """A weight reference where there is one (small, same weights everywhere), else safetensors bytes."""
        state = {key: value for key, value in self.__dict__.items() if key not in ("_predictor", "_known")}
        state["_weights"] = None if self._reference else _to_bytes(self.model)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        weights = state.pop("_weights")
        self.__dict__.update(state)
        model = _from_bytes(*weights) if weights else self._reference
        assert model is not None
        wanted = self.parameters
        self._attach(_prepare(model, wanted["device"], wanted["dtype"], wanted["compile"]))

    def __deepcopy__(self, memo: dict[int, Any]) -> DaoCalculator:
        """An independent calculator (own atoms and results) that shares the weights, which never change."""
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        for key, value in self.__dict__.items():
            other.__dict__[key] = value if key == "_predictor" else copy.deepcopy(value, memo)
        return other


def _reference(model: object) -> str | None:
    """What to load again elsewhere: a name or address as it is, a path made absolute; None for a module."""
    if isinstance(model, str | os.PathLike):
        text = os.fspath(model)
        path = Path(text).expanduser()
        return str(path.resolve()) if path.is_file() and not str(text).startswith("hf://") else str(text)
    return None


def _prepare(
    model: str | os.PathLike[str] | CrystalModel, device: str, dtype: str, compile: bool
) -> CrystalModel:
    import torch

    if compile:
        from crystalml.compiled import compile_potential

        return compile_potential(model, device=device, dtype=getattr(torch, dtype))
    from crystalml.weights import as_model

    return as_model(model, device, getattr(torch, dtype))


def _to_bytes(model: CrystalModel) -> tuple[dict[str, Any], bytes, dict[str, Any]]:
    import safetensors.torch

    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    return model.config.to_dict(), safetensors.torch.save(tensors), dict(model.card)


def _from_bytes(config: dict[str, Any], tensors: bytes, card: dict[str, Any]) -> CrystalModel:
    import safetensors.torch

    from crystalml.models.model import CrystalModel, ModelConfig

    model = CrystalModel(ModelConfig.from_dict(config))
    state = safetensors.torch.load(tensors)
    model.to(next(value.dtype for value in state.values() if value.is_floating_point()))
    model.load_state_dict(state)
    model.card = card
    return model.eval()
