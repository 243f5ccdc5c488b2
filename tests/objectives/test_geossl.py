"""Laws of GeoSSL: what each task can and cannot teach, and the collapse of the printed one."""

import math

import pytest
import torch
from torch import Tensor, nn

from crystalml.crystal import CrystalBatch
from crystalml.errors import ArchitectureError
from crystalml.geometry.neighbors import neighbor_list
from crystalml.geometry.torus import logmap, remove_mean
from crystalml.models.crysformer import CrysformerConfig
from crystalml.models.encoder import Features
from crystalml.models.fourierframenet import FourierFrameNetConfig
from crystalml.models.model import CrystalModel, ModelConfig, Outputs
from crystalml.models.pretext import DistanceHead, VelocityHead
from crystalml.objectives.geossl import (
    Contrastive,
    DistanceDenoising,
    GeoSSL,
    PositionFlowMatching,
    RepresentationReconstruction,
)
from crystalml.objectives.views import displaced, displacement
from crystalml.testing import alpha_quartz, hexagonal, perovskite, rand_crystals, random_rotation, rock_salt

ENCODER = FourierFrameNetConfig(16, 1, 1, 2, 4, 8, 8, 8, 4, 8, 4.0, chiral=False)
TASKS: dict[str, GeoSSL] = {
    "pfm": PositionFlowMatching(),
    "ddm": DistanceDenoising(pairs=64),
    "rr": RepresentationReconstruction(),
    "ebm-nce": Contrastive("ebm-nce"),
    "infonce": Contrastive("infonce"),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(task: GeoSSL) -> CrystalModel:
    torch.manual_seed(0)
    return ModelConfig(ENCODER, noise=False, pretext=task.pretext).build()


def test_views_differ_by_the_noise_that_was_asked_for() -> None:
    x = rand_crystals(0, 200)
    step = displacement(x, 0.3, generator())
    assert remove_mean(step, x.index, x.num_atoms).sub(step).abs().max() < 1e-12  # no translation
    free = step[x.num_atoms[x.index] > 1]
    atoms = x.num_atoms[x.num_atoms > 1]
    expected = 0.3 * math.sqrt(float((atoms - 1).sum() / atoms.sum()))
    assert float(free.std()) == pytest.approx(expected, rel=0.05)
    moved = displaced(x, step)
    assert ((moved.frac >= 0) & (moved.frac < 1)).all()
    back = torch.einsum("ni,nij->nj", logmap(moved.frac - x.frac), x.lattice[x.index])
    torch.testing.assert_close(back, step)


@pytest.mark.parametrize("name", TASKS)
def test_every_weight_learns(name: str) -> None:
    model, task = build(TASKS[name]), TASKS[name]
    losses = task(model, rand_crystals(0, 6, dtype=torch.float32), generator=generator())
    losses["loss"].backward()
    for weight, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), weight


@pytest.mark.parametrize("name", TASKS)
def test_the_same_generator_gives_the_same_loss(name: str) -> None:
    model, x = build(TASKS[name]), rand_crystals(0, 5, dtype=torch.float32)
    first, second = (float(TASKS[name](model, x, generator=generator(7))["loss"]) for _ in range(2))
    assert first == second != float(TASKS[name](model, x, generator=generator(8))["loss"])


@pytest.mark.parametrize("name", TASKS)
def test_a_short_run_improves(name: str) -> None:
    model, task = build(TASKS[name]), TASKS[name]
    x = CrystalBatch.cat([make() for make in (perovskite, alpha_quartz, hexagonal, rock_salt) * 4])
    if name == "infonce":  # among four copies of each it cannot fall below log 4
        x = rand_crystals(0, 16)
    x = x.to(dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def score() -> float:
        with torch.no_grad():
            return sum(float(task(model, x, generator=generator(100 + k))["loss"]) for k in range(4)) / 4

    before = score()
    for step in range(40):
        optimizer.zero_grad()
        task(model, x, generator=generator(step))["loss"].backward()
        optimizer.step()
    assert score() < 0.95 * before


class Toy(nn.Module):
    """Learns one number for each sign of the time: what it says is that number times the way to the data.

    It is told the displaced positions, so it knows that way exactly (a crystal of one known geometry).
    """

    def __init__(self, data: CrystalBatch) -> None:
        super().__init__()
        self.data, self.scale = data, nn.Parameter(torch.tensor([0.3, 0.3], dtype=data.dtype))
        self.pretext_head = lambda features: features.vector[..., 0]

    def forward(self, x: CrystalBatch, t: Tensor) -> Outputs:
        s = (t.abs() / 1000)[x.index, None].clamp(min=1e-3)
        way = torch.einsum("ni,nij->nj", logmap(self.data.frac - x.frac), x.lattice[x.index])
        way = remove_mean(way, x.index, x.num_atoms) / s / 0.3
        said = self.scale[(t < 0).long()][x.index, None] * way
        return Outputs(Features(x.frac, x.frac, vector=said[..., None]), None, None)


def _learned(task: PositionFlowMatching) -> tuple[Tensor, float]:
    data = rand_crystals(0, 16, max_atoms=4)
    toy = Toy(data)
    optimizer = torch.optim.Adam(toy.parameters(), lr=0.05)
    for step in range(300):
        optimizer.zero_grad()
        task(toy, data, generator=generator(step))["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        losses = task(toy, data, generator=generator(999))
    return toy.scale.detach(), float(losses["loss"])


def test_the_printed_symmetric_loss_collapses_and_the_direction_cures_it() -> None:
    scale, loss = _learned(PositionFlowMatching(directed=False))
    assert scale[0].abs() < 1e-2 and loss > 0.5  # v = 0, the best answer to two opposite questions
    scale, loss = _learned(PositionFlowMatching())
    torch.testing.assert_close(scale, torch.tensor([1.0, -1.0], dtype=scale.dtype), rtol=0, atol=1e-2)
    assert loss < 1e-3


def test_reverse_is_the_share_of_the_way_to_the_noise() -> None:
    scale, _ = _learned(PositionFlowMatching(reverse=0.0))
    assert scale[0] == pytest.approx(1.0, abs=1e-2) and scale[1] == pytest.approx(0.3)  # never asked


class Knowing(nn.Module):
    """Says exactly what was added to a distance, knowing the distances."""

    def __init__(self, distances: Tensor) -> None:
        super().__init__()
        self.distances = distances

    def forward(self, node: Tensor, i: Tensor, j: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        return -(noisy - self.distances) / sigma


def test_denoised_distances_reach_zero_and_silence_one_half() -> None:
    x = rand_crystals(0, 40)
    task = DistanceDenoising(sigma=0.0, pairs=100_000)
    model = ModelConfig(ENCODER, noise=False, pretext="distance").build().double()
    silent = model.pretext_head
    assert isinstance(silent, DistanceHead)
    with torch.no_grad():
        silent.net[-1].weight.zero_()  # type: ignore[operator, union-attr]
        silent.net[-1].bias.zero_()  # type: ignore[operator, union-attr]
        assert float(task(model, x, generator=generator())["loss"]) == pytest.approx(0.5, rel=0.05)
        found = neighbor_list(x, task.cutoff).distance
        g = generator(3)
        displacement(x, 0.0, g)  # what the task draws before it draws pairs
        order = torch.randperm(len(found), generator=g)
        model.pretext_head = Knowing(found[order])
        assert float(task(model, x, generator=generator(3))["loss"]) < 1e-12


def test_infonce_of_equal_views_and_of_guessing() -> None:
    """Without noise the two views agree: the loss is that of telling crystals apart, far below log b."""
    x = rand_crystals(2, 12, dtype=torch.float32)
    model = build(Contrastive("infonce"))
    clear = float(Contrastive("infonce", sigma=0.0, temperature=0.001)(model, x)["loss"].detach())
    vague = float(Contrastive("infonce", sigma=0.0, temperature=1e6)(model, x)["loss"].detach())
    assert clear < 0.1 and vague == pytest.approx(math.log(12), abs=1e-3)


def test_flow_matching_needs_vectors() -> None:
    with pytest.raises(ArchitectureError, match="FourierFrameNet"):
        ModelConfig(CrysformerConfig(8, 1, 2, 8, 2, 8), noise=False, pretext="velocity").build()
    with pytest.raises(ArchitectureError, match="'chess'"):
        ModelConfig(ENCODER, noise=False, pretext="chess").build()  # type: ignore[arg-type]


def test_the_velocity_turns_with_the_crystal() -> None:
    x, q = rand_crystals(5, 4), random_rotation(1, reflect=True)
    model = build(TASKS["pfm"]).double()
    assert isinstance(model.pretext_head, VelocityHead)

    def velocity(x: CrystalBatch) -> Tensor:
        return model.pretext_head(model(x, 100 * x.num_atoms).features).detach()  # type: ignore[misc]

    assert velocity(x).abs().max() > 1e-3
    torch.testing.assert_close(velocity(x.replace(lattice=x.lattice @ q.T)), velocity(x) @ q.T)
