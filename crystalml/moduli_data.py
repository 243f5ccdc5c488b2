"""Crystals with DFT's elastic moduli, and how their atoms answer a strain: where curvature is learned."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.datasets.arrays import pack
from crystalml.datasets.moduli import moduli_split
from crystalml.datasets.packed import PackedDataset
from crystalml.errors import UnsupportedError
from crystalml.models.derivatives import derivatives
from crystalml.models.model import CrystalModel
from crystalml.objectives.moduli import unit_strains
from crystalml.progress import ProgressBar

MAX_ATOMS = 6
STRAIN, MOVE = 0.005, 0.01  # of the differences, the latter in Angstrom
STIFFEST = 1.0  # eV/A^2: softer modes answer as if they had this force constant
_COPIES = 600  # crystals at a time


def moduli_data(
    root: str | Path,
    model: CrystalModel,
    split: str = "train",
    max_atoms: int = MAX_ATOMS,
    *,
    progress: bool = True,
) -> PackedDataset:
    """Packed crystals of `moduli_split`: labels `bulk_modulus`, `shear_modulus` (GPa), site label `response`.

    `response` (n, 6, 3) is the potential's own answer, see `responses`; as long as it is about right, moduli
    are (`objectives.moduli.elastic_tensor`).
    """
    if not model.is_potential:
        raise UnsupportedError("only a potential (recipe dao-p) says how atoms answer a strain")
    data = pack(moduli_split(root, split, max_atoms))
    with ProgressBar(progress, "straining") as bar:
        bar.add(len(data))
        found = responses(model, data[slice(None)], bar)
    return replace(data, site_labels={"response": found})


def responses(model: CrystalModel, x: CrystalBatch, bar: ProgressBar | None = None) -> Tensor:
    """(n, 6, 3) where atoms go under each strain of `unit_strains`, in Angstrom per unit strain, float32.

    u = Phi^+ Lambda with Phi = -dF/dx, translations taken out, and Lambda = dF/d(strain), both by central
    differences in float64. It leaves no force to first order, but where a mode is softer than 1 eV/A^2 or
    unstable.
    """
    model = copy.deepcopy(model).double()  # the caller's stays as it is
    device = next(model.parameters()).device
    out = torch.zeros(len(x.numbers), 6, 3)
    order = x.num_atoms.argsort(stable=True)
    for count in x.num_atoms.unique().tolist():
        same = order[x.num_atoms[order] == count]
        for ids in same.split(max(1, _COPIES // (12 + 6 * count))):
            atoms = x.offsets[ids, None] + torch.arange(count)
            out[atoms] = _answers(model, x[ids].to(device, torch.float64)).float().cpu()
            if bar is not None:
                bar.advance(len(ids))
    return out


def _answers(model: CrystalModel, x: CrystalBatch) -> Tensor:
    """(b, N, 6, 3) for b crystals of N atoms each."""
    b, n = len(x), int(x.num_atoms[0])
    x = x.replace(labels={}, site_labels={})
    steps, frac = torch.linalg.inv(x.lattice), x.frac.view(b, n, 3)
    copies = []
    for sign in (1, -1):
        copies += [
            x.replace(lattice=x.lattice + sign * STRAIN * x.lattice @ e) for e in unit_strains(x.lattice)
        ]
    for sign in (1, -1):
        for atom in range(n):
            for axis in range(3):
                moved = frac.clone()
                moved[:, atom] += sign * MOVE * steps[:, axis]
                copies.append(x.replace(frac=moved.flatten(0, 1)))
    forces = derivatives(model, CrystalBatch.cat(copies)).forces.view(len(copies), b, 3 * n)
    push = (forces[:6] - forces[6:12]).movedim(0, 1) / (2 * STRAIN)
    up, down = forces[12:].chunk(2)
    phi = (down - up).movedim(0, 1) / (2 * MOVE)
    eye = torch.eye(3 * n, dtype=phi.dtype, device=phi.device)
    relative = eye - torch.kron(torch.full_like(eye[:n, :n], 1 / n), eye[:3, :3])
    values, modes = torch.linalg.eigh(relative @ (phi + phi.mT) @ relative / 2)
    answers = (push @ relative @ modes / values.clamp(min=STIFFEST)[:, None]) @ modes.mT @ relative
    return answers.unflatten(-1, (n, 3)).transpose(1, 2)
