"""Energies, forces and stresses in physical units from any model with an energy head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.errors import UnsupportedError
from crystalml.models.derivatives import atomic_energies, crystal_mean, derivatives
from crystalml.models.model import CrystalModel
from crystalml.models.periodic import PeriodicConfig

# Dense pair tensors (b, nmax, nmax, width) dominate memory. Kept for the gradient, in bytes a pair: 8k for
# the small Crysformer, 49k for the paper's; without gradient a few rows of the widest edge tensor.
_CPU_PAIRS = {True: 2**12, False: 2**12}  # larger groups leave the cache and run at half the speed
_CUDA_BYTES_A_PAIR = {True: 60_000, False: 12_000}
_PER_ATOM = ("forces", "energies")


def pair_budget(device: torch.device, gradient: bool) -> int:
    """How many padded pairs (b * nmax^2) to evaluate at once: fixed on a CPU, from free memory on a GPU."""
    if device.type != "cuda":
        return _CPU_PAIRS[gradient]
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, int(0.6 * free) // _CUDA_BYTES_A_PAIR[gradient])


def pack_neighbors(x: CrystalBatch, cutoff: float, max_pairs: int) -> list[Tensor]:
    """Group crystals of similar density so that each group's atoms x neighbours stay within max_pairs."""
    width = (4.19 * cutoff**3 * x.num_atoms / x.volume).cpu()
    order = torch.argsort(width, descending=True, stable=True)
    groups: list[list[int]] = []
    room = 0.0
    for k, cost in zip(order.tolist(), (width * x.num_atoms.cpu())[order].tolist(), strict=True):
        if not groups or cost > room:
            groups.append([])
            room = float(max_pairs)
        groups[-1].append(k)
        room -= cost
    return [torch.tensor(group) for group in groups]


def pack(num_atoms: Tensor, max_pairs: int) -> list[Tensor]:
    """Group crystals of similar size so that each group's b * nmax^2 stays within max_pairs.

    Returns index tensors, largest crystals first (memory trouble shows at once); a group has at least one.
    """
    order = torch.argsort(num_atoms.cpu(), descending=True, stable=True)
    groups, start = [], 0
    while start < len(order):
        widest = int(num_atoms[order[start]])
        take = max(1, max_pairs // max(1, widest * widest))
        groups.append(order[start : start + take])
        start += take
    return groups


@dataclass(frozen=True)
class Predictor:
    """Maps a batch to energy (b,), energy_per_atom (b,), forces (n, 3) and stress (b, 3, 3).

    A potential also gives energies (n,), the atoms' parts of the energy, and takes the label "pbc"; a
    calibrated one energy_uncertainty (b,), half the width in eV a cell of the interval that holds 68 % of
    the true energies (`ErrorBar`): N times that of an atom, the errors of alike atoms being alike.
    energy and energy_per_atom are float64, all else is of the model's dtype.
    E = N e(F, L) in eV, with e the model's energy per atom; forces = -dE/dX = -dE/dF L^-T in eV/A;
    stress = sym(L^T dE/dL|_F) / V = +(1/V) dE/d(strain) in eV/A^3, positive when the cell wants to shrink.
    The batch is moved to the model's device and dtype and split so that b * nmax^2 (with a potential: the
    neighbour pairs) <= max_pairs (None: chosen from the device). Raises UnsupportedError for a model without
    an energy head.
    """

    model: CrystalModel
    max_pairs: int | None = None

    def __post_init__(self) -> None:
        if not self.model.has_energy:
            name = self.model.card.get("name", "this model")
            raise UnsupportedError(f"{name} has no energy head: use one that has, such as 'dao-p'.")
        self.model.eval()

    def __call__(self, x: CrystalBatch, forces: bool = True) -> dict[str, Tensor]:
        """Predict every crystal of x; forces=False returns the energies only, at a fraction of the cost."""
        weight = next(self.model.parameters())
        x = x.to(weight.device, weight.dtype)
        if len(x) == 0:
            return self._nothing(x, forces)
        if len(x) == 1:
            return self._group(x, forces)
        budget = self.max_pairs or pair_budget(weight.device, forces)
        encoder = self.model.config.encoder
        if isinstance(encoder, PeriodicConfig):
            groups = pack_neighbors(x, encoder.cutoff, budget)
        else:
            groups = pack(x.num_atoms, budget)
        parts = [self._group(x[group.to(weight.device)], forces) for group in groups]
        back = torch.argsort(torch.cat(groups)).to(weight.device)
        joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        counts = torch.cat([x.num_atoms[group.to(weight.device)] for group in groups])
        sites = CrystalBatch(counts.new_zeros(len(x.numbers)), x.frac, x.lattice, counts, site_labels={
            key: value for key, value in joined.items() if key in _PER_ATOM
        })[back].site_labels  # fmt: skip
        return {key: sites[key] if key in _PER_ATOM else value[back] for key, value in joined.items()}

    def _nothing(self, x: CrystalBatch, forces: bool) -> dict[str, Tensor]:
        """Of no crystals: empty, under the same names."""
        names: list[str] = []
        none = x.frac.new_zeros
        if self.model.is_potential:
            names += ["energies"] if self.model.error_bar is None else ["energies", "energy_uncertainty"]
        slopes = {"forces": none(0, 3), "stress": none(0, 3, 3)} if forces else {}
        return _totals(none(0), x) | {name: none(0) for name in names} | slopes

    def _group(self, x: CrystalBatch, forces: bool) -> dict[str, Tensor]:
        try:
            return self._gradients(x) if forces else self._energies(x)
        except torch.OutOfMemoryError:
            if len(x) == 1:
                raise
        half = len(x) // 2  # the estimate was too bold: each half needs half the memory
        first, second = (self._group(x[part], forces) for part in (slice(half), slice(half, None)))
        return {key: torch.cat([first[key], second[key]]) for key in first}

    def _energies(self, x: CrystalBatch) -> dict[str, Tensor]:
        with torch.no_grad():
            if not self.model.is_potential:
                return _totals(self.model.energy(x), x)
            energies, last = atomic_energies(self.model, x)
        return self._of_atoms(x, energies, last)

    def _of_atoms(self, x: CrystalBatch, energies: Tensor, last: Tensor | None) -> dict[str, Tensor]:
        """Of a potential: summed in float32, a thousand atoms would be off by some 20 meV."""
        found = _totals(crystal_mean(energies.double(), x), x)
        return found | {"energies": energies} | self._uncertainty(x, last)

    def _uncertainty(self, x: CrystalBatch, last: Tensor | None) -> dict[str, Tensor]:
        bar = self.model.error_bar
        if bar is None or last is None:
            return {}
        return {"energy_uncertainty": x.num_atoms * bar(crystal_mean(last, x))}

    def _gradients(self, x: CrystalBatch) -> dict[str, Tensor]:
        if self.model.is_potential:
            found = derivatives(self.model, x)
            slopes = {"forces": found.forces, "stress": found.stress}
            return self._of_atoms(x, found.energies, found.last) | slopes
        # A caller's no_grad or inference_mode must not break forces: leaves are made outside of both.
        with torch.inference_mode(False), torch.enable_grad():
            frac = x.frac.detach().clone().requires_grad_(True)
            lattice = x.lattice.detach().clone().requires_grad_(True)
            leaves = CrystalBatch(x.numbers.clone(), frac, lattice, x.num_atoms.clone())
            per_atom = self.model.energy(leaves)
            energy = per_atom * leaves.num_atoms
            d_frac, d_lattice = torch.autograd.grad(energy.sum(), (frac, lattice))
        gradient = torch.linalg.solve(x.lattice[x.index], d_frac[..., None]).squeeze(-1)
        virial = x.lattice.transpose(-1, -2) @ d_lattice
        stress = (virial + virial.transpose(-1, -2)) / (2 * x.volume[:, None, None])
        return _totals(per_atom.detach(), x) | {"forces": -gradient, "stress": stress}


def _totals(per_atom: Tensor, x: CrystalBatch) -> dict[str, Tensor]:
    per_atom = per_atom.double()
    return {"energy": per_atom * x.num_atoms, "energy_per_atom": per_atom}
