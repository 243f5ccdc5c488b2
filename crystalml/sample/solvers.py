"""The samplers by name."""

from __future__ import annotations

from typing import Literal, get_args

from crystalml.errors import InputError
from crystalml.noise.product import CrystalNoise
from crystalml.sample.base import Sampler
from crystalml.sample.predictor_corrector import PredictorCorrector
from crystalml.sample.probability_flow import ProbabilityFlow

Solver = Literal["pc", "ancestral", "euler", "heun", "multistep"]


def solver(
    name: Solver,
    noise: CrystalNoise,
    steps: int | None = None,
    start: int | None = None,
    order: Literal["code", "paper"] = "code",
) -> Sampler:
    """The sampler called `name`.

    "pc": predictor-corrector, two evaluations a step, all 1000 steps as published unless `steps` says
    less; "ancestral": the same without corrector; "euler", "heun", "multistep": the probability-flow ODE, 25
    steps unless `steps` says otherwise. start: see the samplers. order: of the predictor-corrector.
    """
    if name == "pc":
        return PredictorCorrector(noise, steps, order, start=start)
    if name == "ancestral":
        return PredictorCorrector(noise, steps, corrector=False, start=start)
    if name in ("euler", "heun", "multistep"):
        return ProbabilityFlow(noise, 25 if steps is None else steps, name, start)
    raise InputError(f"solver must be one of {', '.join(get_args(Solver))}, not {name!r}")
