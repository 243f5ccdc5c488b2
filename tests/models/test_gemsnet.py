"""Laws of GemsNet and its actions: methods §5, Accept."""

import pytest
import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.geometry import lie
from crystalml.geometry.torus import wrap
from crystalml.models.actions import ActionHead
from crystalml.models.encoder import EdgeFeatures
from crystalml.models.gemsnet import GemsNetConfig, harmonics
from crystalml.models.heads import EnergyScale
from crystalml.models.model import CrystalModel, ModelConfig
from crystalml.models.pairs import Pairs
from crystalml.testing import (
    assert_symmetric,
    bcc,
    fcc,
    hexagonal,
    perovskite,
    rand_crystals,
    random_rotation,
    rock_salt,
)

CONFIG = GemsNetConfig(24, 12, 6, 2, 16, 12, 6.0)
KINDS = {"energy": "invariant", "node": "node-invariant", "frac": "node-invariant", "lattice": "invariant"}


def build(dtype: torch.dtype = torch.float64, centered: bool = True) -> CrystalModel:
    torch.manual_seed(0)
    config = ModelConfig(CONFIG, centered=centered, energy=EnergyScale(), process="gemsdiff")
    model = config.build().to(dtype).eval()
    with torch.no_grad():  # heads start at zero, where every law holds for free
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model


def outputs(model: CrystalModel, x: CrystalBatch) -> dict[str, Tensor]:
    out = model(x, 1 + x.num_atoms % 7)  # a level that follows the crystal when the batch is split
    assert out.noise is not None and out.noise.frac is not None and out.noise.lattice is not None
    return {
        "energy": out.energy,
        "node": out.features.node,
        "frac": out.noise.frac,
        "lattice": out.noise.lattice,
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("centered", [True, False])
def test_symmetries(dtype: torch.dtype, centered: bool) -> None:
    """Rotation and reflection, permutation, translation, company in the batch.

    The displacement is a vector in fractional components and log P_0 is told in the polar frame: both stay.
    """
    model = build(dtype, centered)
    assert_symmetric(lambda x: outputs(model, x), rand_crystals(1, 6, dtype=dtype), KINDS)  # type: ignore[arg-type]


def test_another_cell_of_the_same_crystal() -> None:
    """L -> U L, F -> F U^-1 with U in SL3(Z): features stay, the Cartesian displacement too (to 1e-4)."""
    model, x = build(), rand_crystals(2, 5)
    u = torch.tensor([[1.0, 1, 0], [0, 1, -1], [1, 1, 1]], dtype=torch.float64)
    assert torch.linalg.det(u) == 1
    moved = x.replace(lattice=u @ x.lattice, frac=wrap(x.frac @ torch.linalg.inv(u)))
    before, after = outputs(model, x), outputs(model, moved)
    for name in ("energy", "node"):
        torch.testing.assert_close(after[name], before[name], atol=1e-4, rtol=0)
    torch.testing.assert_close(after["frac"] @ u, before["frac"], atol=1e-5, rtol=0)


def test_permuted_axes_turn_the_vector_field() -> None:
    """A signed permutation of the axes turns the polar frame, and the field of the edges with it."""
    model, x = build(), rand_crystals(3, 5)
    head = model.noise_head
    assert isinstance(head, ActionHead)
    with torch.no_grad():  # what is guessed in the axes' own frame cannot follow
        head.guess.weight[:5] = 0.0
        head.guess.bias[:5] = 0.0
        head.guess.weight[6:11], head.guess.bias[6:11] = head.guess.weight[11], head.guess.bias[11]
    u = torch.tensor([[0.0, 1, 0], [0, 0, -1], [-1, 0, 0]], dtype=torch.float64)
    before = outputs(model, x)["lattice"]
    after = outputs(model, x.replace(lattice=u @ x.lattice, frac=wrap(x.frac @ u.T)))["lattice"]
    assert (before - u @ before @ u.T).abs().max() > 1e-3  # it is not isotropic anyway
    torch.testing.assert_close(after, u @ before @ u.T, atol=1e-8, rtol=0)


@pytest.mark.parametrize("crystal", [fcc, bcc, rock_salt, hexagonal, perovskite])
def test_ties_among_neighbours_do_not_matter(crystal) -> None:  # type: ignore[no-untyped-def]
    """In perfect crystals the 16th and 17th neighbour are equally far; which is kept must not show."""
    model, x = build(), crystal()
    shaken = x.replace(frac=wrap(x.frac + 1e-9 * torch.randn(x.frac.shape, dtype=torch.float64)))
    before, after = outputs(model, x), outputs(model, shaken)
    for name in ("energy", "node", "lattice"):
        torch.testing.assert_close(after[name], before[name], atol=1e-5, rtol=0)
    assert before["frac"].abs().max() < 1e-6  # no site here has a polar direction: nowhere to go


@pytest.mark.parametrize("crystal", [fcc, bcc, rock_salt, hexagonal, perovskite])
def test_collinear_triplets_have_finite_gradients(crystal) -> None:  # type: ignore[no-untyped-def]
    """Angles of 0 and 180 degrees, where the angle has no derivative, abound in cubic crystals."""
    model, x = build(torch.float32), crystal(torch.float32)
    out = outputs(model, x)
    sum(value.square().sum() for value in out.values()).backward()  # type: ignore[union-attr]
    assert all(value.isfinite().all() for value in out.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_harmonics_obey_the_addition_theorem() -> None:
    u, v = (torch.nn.functional.normalize(random_rotation(seed), dim=-1) for seed in (0, 1))
    c = (u * v).sum(-1)
    legendre = [torch.ones_like(c), c, 1.5 * c**2 - 0.5, 2.5 * c**3 - 1.5 * c]
    product = harmonics(u) * harmonics(v)
    for l, expected in enumerate(legendre):
        torch.testing.assert_close(product[:, l * l : (l + 1) ** 2].sum(-1), expected)


def test_field_is_the_gradient_of_lengths_and_angles() -> None:
    """U^T S U against a plain sum over triplets of w_m grad_g phi_m at g = 1, by autograd."""
    torch.manual_seed(0)
    head, k = ActionHead(8, 6, True).double(), 5
    torch.nn.init.normal_(head.right.weight)
    e, vectors = torch.randn(1, k, 6, dtype=torch.float64), 2 * torch.randn(k, 3, dtype=torch.float64)
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    shares, stretch = torch.rand(1, k, dtype=torch.float64), torch.randn(1, k, dtype=torch.float64)
    found = head.field(e, unit[None], shares, stretch)[0]

    left, right = head.left(e[0]).unflatten(-1, (3, -1)), head.right(e[0]).unflatten(-1, (3, -1))
    g = torch.eye(3, dtype=torch.float64, requires_grad=True)
    moved = vectors @ g.T
    total = (stretch[0] * moved.norm(dim=-1) / vectors.norm(dim=-1)).sum()
    for a in range(k):
        for b in range(k):
            if a != b:
                c = float(unit[a] @ unit[b])
                basis = torch.tensor([1.0, c, 1.5 * c**2 - 0.5], dtype=torch.float64)
                w = ((left[a] * right[b]).sum(-1) * basis).sum() * shares[0, a] * shares[0, b]
                cosine = (moved[a] @ moved[b]) / (moved[a].norm() * moved[b].norm())
                total = total + w.detach() * torch.acos(cosine)
    (expected,) = torch.autograd.grad(total, g)
    expected = 0.5 * (expected + expected.T)  # the turning part is none of a symmetric field's
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_an_untrained_network_answers_the_mean_volume_and_stays_put() -> None:
    torch.manual_seed(0)
    x = rand_crystals(4, 6)
    out = ModelConfig(CONFIG, centered=True).build().double().denoise(x, torch.full((6,), 50))
    assert out.frac is not None and out.lattice is not None and not out.frac.any()
    volume = torch.exp(3**0.5 * lie.coordinates(out.lattice)[:, 8])
    expected = (18.5 * x.num_atoms * x.volume).sqrt()  # half way from the cell at hand to the guess
    torch.testing.assert_close(volume, expected, rtol=1e-6, atol=0)


def test_edges_beyond_the_table_count_nothing() -> None:
    head = ActionHead(4, 4, False).double()
    torch.nn.init.normal_(head.along.weight)
    x = fcc()
    vector = torch.randn(1, 3, 3, dtype=torch.float64)
    edge = torch.randn(1, 3, 4, dtype=torch.float64)
    weight = torch.tensor([[0.7, 0.2, 0.0]], dtype=torch.float64)
    from crystalml.models.encoder import Features

    def run(count: int) -> Tensor:
        pairs = Pairs.of(torch.zeros(1, count, dtype=torch.long), vector[:, :count])
        features = EdgeFeatures(pairs, weight[:, :count], edge[:, :count])
        graph = torch.zeros(1, 4, dtype=torch.float64)
        frac = head(Features(graph, graph, edges=features), x).frac
        assert frac is not None
        return frac

    torch.testing.assert_close(run(3), run(2))
