"""One typed function per published system: which network meets which noise, objective and sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar

from crystalml.errors import ArchitectureError, InputError
from crystalml.models.crysformer import CrysformerConfig
from crystalml.models.cspnet import CSPNetConfig
from crystalml.models.fourierframenet import FourierFrameNetConfig
from crystalml.models.gemsnet import GemsNetConfig
from crystalml.models.heads import EnergyScale
from crystalml.models.model import CrystalModel, ModelConfig
from crystalml.models.periodic import PeriodicConfig
from crystalml.noise.product import CrystalNoise
from crystalml.objectives.denoising import Denoising
from crystalml.objectives.energy import IntermediateEnergy
from crystalml.objectives.geossl import (
    Contrastive,
    DistanceDenoising,
    GeoSSL,
    PositionFlowMatching,
    RepresentationReconstruction,
)
from crystalml.objectives.potential import Potential
from crystalml.objectives.reconstruction import Reconstruction
from crystalml.sample.base import Sampler
from crystalml.sample.solvers import solver

Size = Literal["tiny", "small", "base", "paper"]
C = TypeVar("C")

_CRYSFORMER: dict[Size, CrysformerConfig] = {
    "tiny": CrysformerConfig(32, 2, 4, 16, 8, 32, "log"),
    "small": CrysformerConfig(160, 5, 8, 64, 32, 128, "log"),
    "base": CrysformerConfig(256, 8, 8, 128, 64, 128, "log"),
    "paper": CrysformerConfig(),  # DAO, Appendix 3.1
}
_CSPNET: dict[Size, CSPNetConfig] = {
    "tiny": CSPNetConfig(32, 2, 8, 32, "log"),
    "small": CSPNetConfig(160, 5, 32, 128, "log"),
    "base": CSPNetConfig(256, 6, 64, 128, "log"),
    "paper": CSPNetConfig(),  # DiffCSP, Table 5
}
_GEMSNET: dict[Size, GemsNetConfig] = {
    "tiny": GemsNetConfig(16, 8, 4, 1, 8, 8, 6.0),
    "small": GemsNetConfig(128, 64, 32, 5, 24, 48, 8.0),
    "base": GemsNetConfig(256, 128, 32, 3, 32, 64, 8.0),
    "paper": GemsNetConfig(),  # GemsDiff, Table 1 and the published code
}
_PERIODIC: dict[Size, PeriodicConfig] = {
    "tiny": PeriodicConfig(16, 1, 2, 4, 8, 8, 6, 5.0, scale=6.0),
    "small": PeriodicConfig(64, 2, 8, 16, 32, 32, 10, 4.5, scale=6.0),
    "base": PeriodicConfig(128, 3, 8, 32, 64, 64, 12, 4.5, scale=6.0, hidden=8, order=3),
    # no paper's: the largest, for a GPU
    "paper": PeriodicConfig(256, 4, 8, 64, 128, 64, 16, 6.0, scale=6.0, hidden=8, order=3),
}

_FRAMENET: dict[Size, FourierFrameNetConfig] = {
    "tiny": FourierFrameNetConfig(16, 1, 1, 2, 4, 8, 8, 8, 4, 8, 4.0, chiral=False),
    "small": FourierFrameNetConfig(64, 2, 1, 4, 16, 32, 32, 24, 16, 32, 4.5, chiral=False),
    "base": FourierFrameNetConfig(128, 4, 2, 8, 32, 64, 64, 50, 32, 64, 5.0, chiral=False),
    "paper": FourierFrameNetConfig(),  # S as printed, the rest is not given
}

_GEMS_PAPER = partial(CrystalNoise.gemsdiff, last=2e-3, reach=1.0)  # Table 1; the code's steps
_NOISES: dict[str, Callable[[], CrystalNoise]] = {
    "diffcsp": CrystalNoise.diffcsp,
    "gemsdiff": CrystalNoise.gemsdiff,
    "gemsdiff-predict": partial(CrystalNoise.gemsdiff, lattice_mode="predict"),
    "gemsdiff-paper": _GEMS_PAPER,
    "gemsdiff-paper-predict": partial(_GEMS_PAPER, lattice_mode="predict"),
}
"""The published processes, by the name that models carry."""


@dataclass(frozen=True)
class Recipe:
    """A system ready to train: its model's description, its noise (a potential: None) and its objective."""

    name: str
    model: ModelConfig
    noise: CrystalNoise | None
    objective: Denoising | IntermediateEnergy | Potential | Reconstruction | GeoSSL


def _sized(table: dict[Size, C], size: str) -> C:
    try:
        return table[size]  # type: ignore[index]
    except KeyError:
        raise InputError(f"unknown size {size!r}; choose one of {', '.join(table)}") from None


def _centered(size: str) -> bool:
    """The published recipes keep the irreducible mean displacement; ours remove it."""
    return size != "paper"


def _focus(size: str) -> tuple[float, float] | None:
    """Levels around 0.6 T, where structures are decided, oftener: 0.4 and 0.8 by the loss at each level."""
    return None if size == "paper" else (0.4, 0.8)


def dao_g(size: Size = "small") -> Recipe:
    """DAO-G: Crysformer with noise heads, stage I of the paper."""
    noise = CrystalNoise.diffcsp(centered=_centered(size))
    model = ModelConfig(_sized(_CRYSFORMER, size), centered=noise.centered)
    return Recipe("dao-g", model, noise, Denoising(noise, focus=_focus(size)))


def diffcsp(size: Size = "small") -> Recipe:
    """DiffCSP: CSPNet in the same noise and objective (Jiao et al. 2023)."""
    noise = CrystalNoise.diffcsp(centered=_centered(size))
    model = ModelConfig(_sized(_CSPNET, size), centered=noise.centered)
    return Recipe("diffcsp", model, noise, Denoising(noise, focus=_focus(size)))


def gemsdiff(size: Size = "small", lattice_mode: Literal["diffuse", "predict"] = "diffuse") -> Recipe:
    """GemsDiff: GemsNet on the torus and the lattice's Lie algebra (Klipfel et al. 2024).

    size "paper" has the noise levels of Table 1 and the losses of the published code; the others noise
    coordinates until they are uniform. lattice_mode "predict": the lattice is not noised but predicted, as in
    its later code.
    """
    parts = ["gemsdiff", "paper" if size == "paper" else "", "predict" if lattice_mode == "predict" else ""]
    process = "-".join(part for part in parts if part)
    noise = _NOISES[process]()
    name = "gemsdiff" if lattice_mode == "diffuse" else "gemsdiff-predict"
    model = ModelConfig(_sized(_GEMSNET, size), centered=True, process=process)
    if size == "paper":
        return Recipe(name, model, noise, Reconstruction(noise, "params"))
    # Above half of T atoms are anywhere and there is little to learn; structures are decided around 0.3 T.
    return Recipe(name, model, noise, Reconstruction(noise, exchange=True, focus=(-0.9, 0.9)))


FORMATION_ENERGY = EnergyScale(mean=-4.5, std=1.0)
"""y = E + 4.5: formation energies lie in about -4.5..1 eV/atom, so exp(-y) stays in 0.004..1."""


def dao_p_diffusion(
    size: Size = "small",
    form: Literal["exp", "poisson"] = "exp",
    clean: float = 0.9,
    energy_weight: float = 2.0,
    noise_weight: float = 0.5,
) -> Recipe:
    """DAO-P on formation energy per atom: Crysformer with noise and energy heads.

    clean: share of unperturbed crystals, see `IntermediateEnergy`. It is high, and the energy's weight too,
    because a short run has to choose: most users ask for the energy of a crystal, not of a noisy one.
    """
    noise = CrystalNoise.diffcsp(centered=_centered(size))
    model = ModelConfig(_sized(_CRYSFORMER, size), centered=noise.centered, energy=FORMATION_ENERGY)
    objective = IntermediateEnergy(
        noise,
        FORMATION_ENERGY,
        form=form,
        clean=clean,
        energy_weight=energy_weight,
        noise_weight=noise_weight,
    )
    return Recipe("dao-p-diffusion", model, noise, objective)


def dao_p(size: Size = "small") -> Recipe:
    """Formation energy per atom with forces and stresses by the periodic Crysformer: any cell, any size."""
    scale = EnergyScale()  # the elements' shifts are fitted to the data before the first step
    model = ModelConfig(_sized(_PERIODIC, size), noise=False, energy=scale)
    return Recipe("dao-p", model, None, Potential(scale, forces_weight=4.0, dimers=16, moduli_weight=1.0))


GEOSSL: dict[str, GeoSSL] = {
    "pfm": PositionFlowMatching(),
    "ddm": DistanceDenoising(),
    "rr": RepresentationReconstruction(),
    "ebm-nce": Contrastive("ebm-nce"),
    "infonce": Contrastive("infonce"),
}
"""NeuralCrystal's pretraining and its four baselines, by the names of the paper."""


def fourierframenet(size: Size = "small", task: str = "pfm") -> Recipe:
    """FourierFrameNet pretrained without labels by one of the tasks of `GEOSSL`."""
    objective = GEOSSL[task]
    model = ModelConfig(_sized(_FRAMENET, size), noise=False, pretext=objective.pretext)
    return Recipe(f"fourierframenet-{task}", model, None, objective)


def noise_for(model: CrystalModel) -> CrystalNoise:
    """The noise process a loaded model was trained with."""
    process = model.config.process
    if process not in _NOISES:
        known = ", ".join(_NOISES)
        raise ArchitectureError(f"this version knows no noise called {process!r}; it knows {known}")
    return replace(_NOISES[process](), centered=model.config.centered)


def sampler(
    noise: CrystalNoise, steps: int | None = None, order: Literal["code", "paper"] = "code"
) -> Sampler:
    """The published sampler of a noise; steps = None visits all levels."""
    return solver("pc", noise, steps, order=order)
