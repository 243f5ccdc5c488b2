"""Random close pairs are where they should be, and the penalty closes holes."""

import math

import pytest
import torch

from crystalml.elements import covalent_radii
from crystalml.geometry.neighbors import neighbor_list
from crystalml.models.derivatives import derivatives
from crystalml.models.heads import EnergyScale
from crystalml.models.model import CrystalModel, ModelConfig
from crystalml.models.periodic import PeriodicConfig
from crystalml.objectives.dimers import MAX_Z, RANGE, attraction, random_dimers

LIKE = torch.zeros(1, dtype=torch.float64)
SCALE = EnergyScale()


def _model(noise: float) -> CrystalModel:
    torch.manual_seed(0)
    config = ModelConfig(PeriodicConfig(16, 1, 2, 4, 8, 8, 8, 5.0), noise=False, energy=SCALE)
    model = config.build().double()
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * torch.randn_like(weight)
    return model


def _attraction(model: CrystalModel, count: int, generator: torch.Generator) -> torch.Tensor:
    return attraction(derivatives(model, random_dimers(count, LIKE, generator), create_graph=True).forces)


def test_pairs_are_close_and_know_each_other() -> None:
    x = random_dimers(200, LIKE, torch.Generator().manual_seed(0))
    found = neighbor_list(x, 5.0)
    assert torch.equal(found.i, torch.arange(400)) and not found.shift.any()
    ratio = found.distance[::2] / covalent_radii()[x.numbers].double().view(-1, 2).sum(-1)
    assert ratio.min() >= RANGE[0] and ratio.max() <= RANGE[1]
    assert x.numbers.min() >= 1 and x.numbers.max() <= MAX_Z and len(x.numbers.unique()) > 80


def test_repelling_pairs_cost_nothing() -> None:
    up = torch.tensor([0.0, 0.0, 1.0])
    assert float(attraction(torch.stack([-up, up]))) == 0
    assert float(attraction(torch.stack([up, -up]))) == pytest.approx(math.log(2.5))


def test_fresh_potentials_have_hardly_anything_to_answer_for() -> None:
    assert _attraction(_model(0.0), 200, torch.Generator().manual_seed(0)) < 0.1


def test_the_penalty_closes_holes() -> None:
    model, generator = _model(0.5), torch.Generator().manual_seed(0)

    def measure() -> float:
        return float(_attraction(model, 200, torch.Generator().manual_seed(1)).detach())

    before = measure()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        _attraction(model, 16, generator).backward()
        optimizer.step()
    assert before > 0.05 and measure() < 0.5 * before
