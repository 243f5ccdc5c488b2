"""Refine proposals: noise them partly and denoise them again, relax them with a potential."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pymatgen.core import Structure
from torch import Tensor

from crystalml.convert import to_batch, to_structures
from crystalml.crystal import CrystalBatch
from crystalml.errors import InputError
from crystalml.geometry.torus import logmap, remove_mean
from crystalml.guard import standardise
from crystalml.models.model import CrystalModel
from crystalml.predict import Predictor, pack, pair_budget
from crystalml.relaxation.batch import BatchRelaxer, Relaxed
from crystalml.relaxation.settings import RelaxSettings
from crystalml.sample.base import Sampler, last


@dataclass(frozen=True)
class Refined:
    """A relaxed proposal and what relaxing it took. start: the proposal before.

    energy, start_energy: eV/atom after and before. fmax: eV/A at the end. shift: root mean square
    displacement over (V/N)^(1/3). strain: largest entry of |log(L_0^-1 L)|'s symmetric part without its mean,
    that is, of shape; swelling: log of the volume's growth. All NaN and the start itself where the potential
    has no answer.
    """

    structure: Structure
    start: Structure
    energy: float
    start_energy: float
    fmax: float
    steps: int
    shift: float
    strain: float
    swelling: float


def unrefined(structure: Structure) -> Refined:
    """A proposal that no potential has seen."""
    nan = math.nan
    return Refined(structure, structure, nan, nan, nan, 0, nan, nan, nan)


def relax_all(
    structures: Sequence[Structure], potential: Predictor, steps: int = 20, fmax: float = 0.03
) -> list[Refined]:
    """Relax atoms and cells in one batch with L-BFGS, each structure within its space group."""
    settings = RelaxSettings(fmax=fmax, max_steps=steps, fix_symmetry=True, trajectory=True)
    crystals = [to_batch(structure, dtype=torch.float64) for structure in structures]
    relaxer = BatchRelaxer(potential, settings, room=1024)
    found: dict[int, Refined] = {}
    for place, result in relaxer.run(crystals):
        found[place] = _refined(structures[place], crystals[place], result)
    return [found[place] for place in range(len(structures))]


def denoise_all(
    structures: Sequence[Structure], model: CrystalModel, sampler: Sampler, seeds: Sequence[int]
) -> list[Structure]:
    """Each structure noised to the sampler's start level and denoised from there (SDEdit)."""
    if sampler.start is None:
        raise InputError("partial noising needs a sampler with a start level, such as start=200")
    weight = next(model.parameters())
    x = to_batch(list(structures), dtype=weight.dtype).to(weight.device)
    keys = torch.tensor(list(seeds), device=weight.device)
    parts: dict[int, CrystalBatch] = {}
    for group in pack(x.num_atoms, pair_budget(weight.device, gradient=False)):
        group = group.to(weight.device)
        out = last(sampler.trajectory(model.denoise, x[group], keys[group]))
        parts |= dict(zip(group.tolist(), out.to("cpu", torch.float64).split(), strict=True))
    return [
        _as_structure(parts[i], structure) if bool(parts[i].frac.isfinite().all()) else structure
        for i, structure in enumerate(structures)
    ]


def _refined(start: Structure, crystal: CrystalBatch, result: Relaxed) -> Refined:
    count = float(crystal.num_atoms)
    if result.error is not None or not math.isfinite(result.energy):
        return unrefined(start)
    end = result.crystal
    strain, swelling = _deformation(crystal.lattice[0], end.lattice[0])
    shift = remove_mean(logmap(end.frac - crystal.frac), end.index, end.num_atoms) @ end.lattice[0]
    size = float(end.volume) / count
    return Refined(
        structure=_as_structure(end, start),
        start=start,
        energy=result.energy / count,
        start_energy=result.frames[0].energy / count,
        fmax=result.fmax,
        steps=result.steps,
        shift=float(shift.square().sum(-1).mean().sqrt()) / size ** (1 / 3),
        strain=strain,
        swelling=swelling,
    )


def _deformation(before: Tensor, after: Tensor) -> tuple[float, float]:
    """(greatest shape strain, log of the volume ratio)."""
    stretch = torch.linalg.svdvals(torch.linalg.solve(before, after)).log()
    return float((stretch - stretch.mean()).abs().max()), float(stretch.sum())


def _as_structure(x: CrystalBatch, start: Structure) -> Structure:
    structure = to_structures(standardise(x))[0]
    structure.properties = dict(start.properties)
    return structure
