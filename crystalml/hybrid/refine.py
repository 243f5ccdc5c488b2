"""What networks do to proposals: tell their energy, noise them partly and denoise them, relax them."""

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
class Judged:
    """A proposal as the potential sees it: eV/atom, and the root mean square force in eV/A.

    Both are NaN where no potential was asked or it had no answer.
    """

    structure: Structure
    energy: float = math.nan
    force: float = math.nan


@dataclass(frozen=True)
class Trust:
    """How far a relaxation may lead away from its start and still be believed.

    A potential's minimum far from a known structure is oftener its own mistake than the crystal. shift: root
    mean square displacement over (V/N)^(1/3). strain: greatest change of shape, |log stretch| less its mean.
    swelling: |log of the volume ratio|. share: of the way to the minimum that is gone in shape and
    coordinates (the volume is the minimum's): a known structure and a potential err in unlike ways, and
    between them they err less. Measured on validation crystals, see docs/generate.md.
    """

    shift: float = 0.15
    strain: float = 0.06
    swelling: float = 0.3
    share: float = 0.8


def judge_all(structures: Sequence[Structure], potential: Predictor) -> list[Judged]:
    """Energies and forces of all structures as they are, in batches."""
    if not structures:
        return []
    x = to_batch(list(structures))
    out = potential(x)
    square = out["forces"].double().cpu().square().sum(-1)
    index = x.index.cpu()
    force = (torch.zeros(len(x)).double().index_add(0, index, square) / x.num_atoms.cpu()).sqrt()
    rows = zip(structures, out["energy_per_atom"].tolist(), force.tolist(), strict=True)
    return [Judged(s, e, f) if math.isfinite(e) and math.isfinite(f) else Judged(s) for s, e, f in rows]


def relax_all(
    structures: Sequence[Structure],
    potential: Predictor,
    steps: int = 20,
    fmax: float = 0.03,
    trust: Trust | None = None,
) -> list[Structure]:
    """Atoms and cells relaxed in one batch with L-BFGS, each structure within its space group.

    What comes back lies on the way from start to minimum, at `trust.share`; one whose minimum is outside
    the trusted region is as it was. `properties` then hold relaxed (bool), relax_steps, the energy_per_atom
    it has now and the minimum_energy (eV/atom) where relaxation ended, believed or not, NaN where it failed.
    """
    region = trust or Trust()
    settings = RelaxSettings(fmax=fmax, max_steps=steps, fix_symmetry=True)
    crystals = [to_batch(structure, dtype=torch.float64) for structure in structures]
    found = dict(BatchRelaxer(potential, settings, room=1024).run(crystals))
    out = [_kept(s, c, found[i], region) for i, (s, c) in enumerate(zip(structures, crystals, strict=True))]
    for item in judge_all([structure for structure in out if structure.properties["relaxed"]], potential):
        item.structure.properties["energy_per_atom"] = item.energy
    return out


def denoise_all(
    structures: Sequence[Structure], model: CrystalModel, sampler: Sampler, seeds: Sequence[int]
) -> list[Structure]:
    """Each structure noised to the sampler's start level and denoised from there (SDEdit).

    One that comes back as no crystal is as it was. Of the others `properties` say noise_level (start over T)
    and no longer the prototype's space group, which noise does not keep.
    """
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
    found = []
    for i, structure in enumerate(structures):
        if _is_crystal(parts[i]):
            structure = _as_structure(parts[i], structure)
            structure.properties["noise_level"] = sampler.start / sampler.noise.num_steps
            for name in ("space_group", "space_group_symbol"):
                structure.properties.pop(name, None)
        found.append(structure)
    return found


def _kept(start: Structure, crystal: CrystalBatch, result: Relaxed, trust: Trust) -> Structure:
    end = result.crystal
    good = result.error is None and math.isfinite(result.energy) and within(crystal, end, trust)
    structure = _as_structure(between(crystal, end, trust.share), start) if good else start.copy()
    steps = result.steps if good else 0
    energy = math.nan if result.error else result.energy / len(start)
    known = {"relaxed": good, "relax_steps": steps, "minimum_energy": energy}
    structure.properties = {**start.properties, **known}
    return structure


def between(start: CrystalBatch, end: CrystalBatch, share: float) -> CrystalBatch:
    """A crystal at `share` of the way in shape and coordinates, with the volume of the end."""
    frac = start.frac + share * logmap(end.frac - start.frac)
    lattice = torch.lerp(start.lattice, end.lattice, share)
    scale = (end.volume / torch.linalg.det(lattice).abs()) ** (1 / 3)
    return end.replace(frac=frac, lattice=lattice * scale[:, None, None])


def within(start: CrystalBatch, end: CrystalBatch, trust: Trust) -> bool:
    """Whether a crystal's end is in the trusted region around its start."""
    stretch = torch.linalg.svdvals(torch.linalg.solve(start.lattice[0], end.lattice[0])).log()
    shift = remove_mean(logmap(end.frac - start.frac), end.index, end.num_atoms) @ end.lattice[0]
    size = (float(end.volume) / float(end.num_atoms)) ** (1 / 3)
    return (
        float(shift.square().sum(-1).mean().sqrt()) <= trust.shift * size
        and float((stretch - stretch.mean()).abs().max()) <= trust.strain
        and abs(float(stretch.sum())) <= trust.swelling
    )


def _is_crystal(x: CrystalBatch) -> bool:
    finite: Tensor = x.frac.isfinite().all() & x.lattice.isfinite().all()
    return bool(finite) and float(x.volume) > 1.0


def _as_structure(x: CrystalBatch, start: Structure) -> Structure:
    structure = to_structures(standardise(x))[0]
    structure.properties = dict(start.properties)
    return structure
