"""Diffusion of a property: CARD's posterior, what each head can learn, chains that find the distribution."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch, Tangent
from crystalml.models.cspnet import CSPNetConfig
from crystalml.models.model import ModelConfig
from crystalml.models.property_head import DiffusionHead, PropertyConfig
from crystalml.models.scalar_head import Kind, ScalarNoiseHead
from crystalml.noise.gaussian import property_ddpm
from crystalml.noise.product import CrystalNoise
from crystalml.objectives.denoising import Denoising
from crystalml.objectives.scalar import PropertyDenoising, ScalarDenoising
from crystalml.sample.scalar import ScalarChains
from crystalml.testing import rand_crystals

NOISE = property_ddpm()
T = torch.arange(1, 1001)


def gammas() -> tuple[Tensor, Tensor, Tensor]:
    """As printed by CARD, (T,) each."""
    beta, bar = NOISE.betas, NOISE.alpha_bar
    b, a, now, before = beta[1:], 1 - beta[1:], bar[1:], bar[:-1]
    return (
        b * before.sqrt() / (1 - now),
        (1 - before) * a.sqrt() / (1 - now),
        1 + (now.sqrt() - 1) * (a.sqrt() + before.sqrt()) / (1 - now),
    )


def test_gammas_sum_to_one() -> None:
    torch.testing.assert_close(sum(gammas()), torch.ones(1000, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_posterior_of_card_is_ddpm_around_the_mean() -> None:
    g = torch.Generator().manual_seed(0)
    y_0, y_t, mean = (torch.randn(1000, generator=g, dtype=torch.float64) for _ in range(3))
    eps = NOISE.noise(y_t - mean, y_0 - mean, T)
    found = mean + NOISE.step(y_t - mean, eps, T, T - 1, torch.zeros_like(y_t))
    first, second, third = gammas()
    torch.testing.assert_close(found, first * y_0 + second * y_t + third * mean, rtol=1e-9, atol=1e-9)


def test_forward_marginals_around_a_mean() -> None:
    g = torch.Generator().manual_seed(0)
    n, mean, y_0 = 400_000, 0.7, 2.0
    for t in (1, 300, 1000):
        eps = torch.randn(n, generator=g, dtype=torch.float64)
        y = mean + NOISE.perturb(torch.full((n,), y_0 - mean, dtype=torch.float64), torch.tensor([t]), eps)
        bar = float(NOISE.alpha_bar[t])
        assert float(y.mean()) == pytest.approx(bar**0.5 * y_0 + (1 - bar**0.5) * mean, abs=0.01)
        assert float(y.var()) == pytest.approx(1 - bar, rel=0.01)


class Oracle(ScalarNoiseHead):
    """Knows y_0, which stands in for the features."""

    def __init__(self) -> None:
        super().__init__(1)
        self.of_features = torch.nn.Identity()  # type: ignore[assignment]

    def read(self, base: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return NOISE.noise(y, base.expand_as(y), t)


@pytest.mark.parametrize("steps", [None, 100, 7])
def test_an_oracle_leads_every_chain_home(steps: int | None) -> None:
    y_0 = torch.tensor([-1.3, 0.0, 2.1], dtype=torch.float64)
    chains = ScalarChains(NOISE, -3, 3, steps)(Oracle(), y_0[:, None], 5)
    torch.testing.assert_close(chains, y_0[:, None].expand(3, 5), rtol=0, atol=1e-4)


def _trained(kind: Kind, spread: float = 0.0, steps: int = 1500) -> tuple[ScalarNoiseHead, float]:
    """A head that has seen y = 1 - 2 h + spread N(0, 1), and its last losses."""
    torch.manual_seed(0)
    head, objective = ScalarNoiseHead(1, kind, hidden=64), ScalarDenoising(NOISE)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        h = (torch.rand(64, 1) > 0.5).float()
        loss = objective(head, h, 1 - 2 * h[:, 0] + spread * torch.randn(64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return head.eval(), sum(losses[-200:]) / 200


def test_the_affine_head_learns_what_the_printed_one_cannot() -> None:
    assert _trained("affine")[1] < 1e-2
    assert _trained("paper")[1] > 0.15


@pytest.mark.parametrize("kind", ["affine", "mlp"])
def test_chains_have_the_spread_of_the_data(kind: Kind) -> None:
    head, _ = _trained(kind, spread=0.3)
    with torch.no_grad():
        y = ScalarChains(NOISE, -4, 4)(head, torch.tensor([[0.0], [1.0]]), 4000)
    assert y.mean(1).tolist() == pytest.approx([1.0, -1.0], abs=0.08)
    assert y.std(1).tolist() == pytest.approx([0.3, 0.3], rel=0.25)


def test_company_does_not_matter() -> None:
    head, chains = _trained("affine", 0.3, 50)[0], ScalarChains(NOISE, -4, 4)
    h = torch.rand(9, 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together, alone = chains(head, h, 8, seed=3), chains(head, h[4:5], 8, seed=3)
    torch.testing.assert_close(together[4:5], alone, rtol=0, atol=1e-6)
    assert not torch.equal(together, chains(head, h, 8, seed=4))


class Silent(CrystalNoise):
    """Draws levels and noise as ever, but leaves the crystal as it is."""

    def perturb(
        self, x: CrystalBatch, t: Tensor, generator: torch.Generator | None = None
    ) -> tuple[CrystalBatch, Tangent]:
        return x, super().perturb(x, t, generator)[1]


@pytest.mark.parametrize("steps", [1000, 100])
def test_joint_diffusion_around_a_crystal_without_noise_is_that_of_the_property(steps: int) -> None:
    """L = L_y + L_L + L_F, L_y at the level of the crystal, from what the encoder says at that level."""
    torch.manual_seed(0)
    target = PropertyConfig(head="diffusion")
    model = ModelConfig(CSPNetConfig(8, 1, 2, 8, "log"), target=target).build().double()
    head = model.property_head
    assert isinstance(head, DiffusionHead)
    torch.nn.init.normal_(head.noise.out.weight)
    torch.nn.init.normal_(model.noise_head.lattice.weight)  # type: ignore[union-attr, arg-type]
    x = rand_crystals(0, 30)
    x = x.replace(labels={"target": torch.linspace(-2, 2, 30, dtype=torch.float64)})
    noise = CrystalNoise.diffcsp(steps)
    property_alone = ScalarDenoising(NOISE, repeats=3)
    joint = PropertyDenoising(property_alone, structure=Denoising(noise))
    losses = joint(model, x, generator=torch.Generator().manual_seed(1))
    assert set(losses) == {"loss", "property", "lattice", "frac"}
    torch.testing.assert_close(losses["loss"], losses["property"] + losses["lattice"] + losses["frac"])

    silent = Denoising(Silent(noise.lattice, noise.frac))
    generator = torch.Generator().manual_seed(1)
    found = replace(joint, structure=silent)(model, x, generator=generator)["property"]
    generator.manual_seed(1)
    _, t, _ = silent.noised(x, generator)
    h = head.standard(model(x, t).features.graph)
    expected = property_alone(head.noise, h, x.labels["target"], generator, t * 1000 // steps)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not torch.equal(found, losses["property"])


def test_joint_diffusion_is_watched_around_clean_crystals() -> None:
    alone = PropertyDenoising(ScalarDenoising(NOISE))
    joint = PropertyDenoising(
        ScalarDenoising(NOISE), mirrored=True, structure=Denoising(CrystalNoise.diffcsp())
    )
    assert joint.watched() == alone.watched()
