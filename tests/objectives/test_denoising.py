import pytest
import torch
from torch import Tensor, nn

from crystalml.crystal import CrystalBatch, Tangent
from crystalml.models.model import Outputs
from crystalml.noise.product import CrystalNoise
from crystalml.objectives.denoising import Denoising, noise_losses, random_times
from crystalml.testing import rand_crystals


class Fixed(nn.Module):
    """Says the same whatever it sees."""

    def __init__(self, out: Tangent) -> None:
        super().__init__()
        self.out = out

    def forward(self, x: CrystalBatch, t: Tensor) -> Outputs:
        return Outputs(None, self.out, None)  # type: ignore[arg-type]


def test_the_true_noise_costs_nothing_and_zero_costs_one() -> None:
    noise, x = CrystalNoise.diffcsp(100), rand_crystals(0, 400)
    generator = torch.Generator().manual_seed(3)
    t = random_times(x, 100, generator)
    _, target = noise.perturb(x, t, generator)
    generator.manual_seed(3)
    perfect = Denoising(noise)(Fixed(target), x, generator=generator)
    assert perfect["loss"] == 0
    nothing = Tangent(lattice=torch.zeros_like(x.lattice), frac=torch.zeros_like(x.frac))
    losses = Denoising(noise, lattice_weight=2.0)(Fixed(nothing), x, generator=generator)
    torch.testing.assert_close(losses["lattice"], torch.ones_like(losses["lattice"]), atol=0.1, rtol=0)
    torch.testing.assert_close(losses["frac"], torch.ones_like(losses["frac"]), atol=0.1, rtol=0)
    torch.testing.assert_close(losses["loss"], 2 * losses["lattice"] + losses["frac"])


@pytest.mark.parametrize(("part", "other"), [("lattice", "frac"), ("frac", "lattice")])
def test_a_part_alone_is_noised_as_in_company_around_the_other_one_clean(part: str, other: str) -> None:
    noise, x = CrystalNoise.diffcsp(100, centered=True), rand_crystals(0, 50)
    both, alone = Denoising(noise), Denoising(noise, only=part)  # type: ignore[arg-type]
    together, t, target = both.noised(x, torch.Generator().manual_seed(3))
    found, same, _ = alone.noised(x, torch.Generator().manual_seed(3))
    assert torch.equal(t, same) and torch.equal(getattr(found, other), getattr(x, other))
    assert torch.equal(getattr(found, part), getattr(together, part))
    assert not torch.equal(getattr(found, part), getattr(x, part))
    assert target.lattice is not None and target.frac is not None
    wrong = Fixed(Tangent(lattice=target.lattice + 1, frac=target.frac + 1))
    losses = alone(wrong, x, generator=torch.Generator().manual_seed(3))
    assert set(losses) == {"loss", part}
    torch.testing.assert_close(losses["loss"], torch.ones_like(losses["loss"]))


def test_times_cover_every_level_evenly() -> None:
    x = rand_crystals(1, 200)
    t = random_times(x, 100, torch.Generator().manual_seed(0))
    assert torch.equal(t.sort().values, torch.arange(1, 101).repeat_interleave(2))


def test_focused_times_visit_all_levels_but_the_middle_oftener() -> None:
    x = rand_crystals(1, 4000, max_atoms=1)
    t = random_times(x, 100, torch.Generator().manual_seed(0), focus=(0.4, 0.8))
    counts = torch.bincount(t, minlength=101)[1:]
    assert counts.min() >= 9  # a quarter stays uniform: 10 a level
    assert counts[40:80].float().mean() > 4 * counts[:10].float().mean()
    u = (t - 0.5) / 100
    middle = u[(u > 0.02) & (u < 0.98)].logit().median()
    assert abs(middle - 0.4) < 0.15


def test_weights_of_zero_silence_a_crystal() -> None:
    x = rand_crystals(2, 3)
    target = Tangent(lattice=torch.zeros_like(x.lattice), frac=torch.zeros_like(x.frac))
    wrong = Tangent(
        lattice=torch.ones_like(x.lattice), frac=(x.index == 1)[:, None] * torch.ones_like(x.frac)
    )
    weight = torch.tensor([1.0, 0.0, 1.0], dtype=x.dtype)
    lattice, frac = noise_losses(wrong, target, weight, x.index)
    assert lattice == 1 and frac == 0
