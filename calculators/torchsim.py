"""A potential of crystalml as a model of TorchSim, whose integrators and optimizers run batches of systems.

Needs torch-sim, which needs Python 3.12: pip install "crystalml-dao[torch-sim]".
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.device import pick_device
from crystalml.errors import UnsupportedError
from crystalml.geometry.box import enclose
from crystalml.geometry.torus import wrap
from crystalml.predict import Predictor
from crystalml.weights import as_model

if TYPE_CHECKING:
    from torch_sim.state import SimState

    from crystalml.models.model import CrystalModel

try:
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    raise UnsupportedError(
        'this adapter needs torch-sim (Python >= 3.12): pip install "crystalml-dao[torch-sim]"'
    ) from error


class DaoModel(ModelInterface):
    """Energy (b,) in eV, forces (n, 3) in eV/A and stress (b, 3, 3) in eV/A^3 of a TorchSim state.

    model: shipped name, path, "hf://" address or CrystalModel with a potential. device: None picks CUDA if
    there is one. dtype: torch.float32 or torch.float64, of the network and of the results. Stress is
    +(1/V) dE/d(strain), with V the volume of the state's cell, and 0 where that has none. Calibrated
    potentials also give energy_uncertainty (b,) in eV. Large states are split to fit the memory.

    Raises UnsupportedError for a model that is no potential, and WeightsError.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | CrystalModel = "dao-p",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        compute_forces: bool = True,
        compute_stress: bool = True,
    ) -> None:
        super().__init__()
        self._device = pick_device(device)
        self._dtype = dtype
        self._compute_forces = compute_forces
        self._compute_stress = compute_stress
        self._memory_scales_with = "n_atoms_x_density"
        self.model = as_model(model, self._device, dtype)
        if not self.model.is_potential:
            name = self.model.card.get("name", "this model")
            raise UnsupportedError(f"{name} is no potential: use one that is, such as 'dao-p'")
        self._predictor = Predictor(self.model)

    @property
    def compute_forces(self) -> bool:
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, value: bool) -> None:
        self._compute_forces = value

    @property
    def compute_stress(self) -> bool:
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, value: bool) -> None:
        self._compute_stress = value

    def forward(self, state: SimState, **kwargs: Any) -> dict[str, Tensor]:
        """See ModelInterface.forward; keyword arguments are those of other models and have no effect."""
        x = _to_batch(state)
        found = self._predictor(x, forces=self._compute_forces or self._compute_stress)
        out = {name: value for name, value in found.items() if name in ("energy", "energy_uncertainty")}
        if self._compute_forces:
            out["forces"] = found["forces"]
        if self._compute_stress:
            volume = torch.linalg.det(state.cell).abs().to(x.volume)
            share = torch.where(volume > 0, x.volume / volume, torch.zeros_like(volume))
            out["stress"] = found["stress"] * share[:, None, None]
        return {name: value.detach().to(self._device, self._dtype) for name, value in out.items()}


def _to_batch(state: SimState) -> CrystalBatch:
    """Cells of TorchSim hold vectors in columns, ours in rows; what is not periodic gets a box of its own."""
    counts = torch.bincount(state.system_idx, minlength=state.n_systems)
    lattice, points = state.cell.mT.contiguous(), state.positions
    numbers = state.atomic_numbers.long()
    pbc = state.pbc.to(points.device).expand(3)
    if pbc.all():
        inverse = torch.linalg.inv(lattice)[state.system_idx]
        return CrystalBatch(numbers, wrap(torch.einsum("ni,nij->nj", points, inverse)), lattice, counts)
    boxes = [
        enclose(rows, box, pbc) for rows, box in zip(points.split(counts.tolist()), lattice, strict=True)
    ]
    labels = {"pbc": pbc.expand(len(counts), 3)}
    frac = torch.cat([frac for _, frac in boxes])
    return CrystalBatch(numbers, frac, torch.stack([box for box, _ in boxes]), counts, labels)
