"""The samplers by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from crystalml.errors import InputError
from crystalml.noise.product import CrystalNoise
from crystalml.noise.torus import TorusDDPM
from crystalml.noise.wrapped import WrappedNormal
from crystalml.sample.base import Sampler
from crystalml.sample.predictor_corrector import PredictorCorrector
from crystalml.sample.probability_flow import ProbabilityFlow

DENSITY = (0.05, 100.0)  # g/cm^3; GemsDiff's code begins at 0.1, which would forbid solid hydrogen
Solver = Literal["pc", "ancestral", "euler", "heun", "multistep"]


def solver(
    name: Solver,
    noise: CrystalNoise,
    steps: int | None = None,
    start: int | None = None,
    order: Literal["code", "paper"] = "code",
) -> Sampler:
    """The sampler called `name`.

    "pc": the published one, at all levels unless `steps` says less: predictor-corrector, two evaluations a
    step; GemsDiff's Algorithm 2, one, which corrects nothing and guards the density. "ancestral": without
    corrector, on GemsDiff's torus by exact posterior steps. "euler", "heun", "multistep": the
    probability-flow ODE, 25 steps unless `steps` says otherwise.
    start: see the samplers. order: of the predictor-corrector.
    """
    if name in ("pc", "ancestral"):
        scores = isinstance(noise.frac, WrappedNormal)
        corrector, density = name == "pc" and scores, None if scores else DENSITY
        if name == "ancestral" and isinstance(noise.frac, TorusDDPM):
            noise = replace(noise, frac=replace(noise.frac, posterior="exact"))
        return PredictorCorrector(noise, steps, order, corrector=corrector, density=density, start=start)
    if name in ("euler", "heun", "multistep"):
        return ProbabilityFlow(noise, 25 if steps is None else steps, name, start)
    raise InputError(f"solver must be one of {', '.join(get_args(Solver))}, not {name!r}")
