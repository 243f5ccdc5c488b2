"""Laws of the potential: what no choice of cell, size or neighbour list may change, and how pairs repel."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.elements import atomic_number, covalent_radii
from crystalml.geometry.neighbors import neighbor_list
from crystalml.models.heads import EnergyScale
from crystalml.models.model import CrystalModel, ModelConfig
from crystalml.models.pairs import bessel, envelope, soft_floor
from crystalml.models.periodic import PeriodicConfig, PeriodicCrysformer, bounded, moments, whole_tensor
from crystalml.predict import Predictor
from crystalml.testing import (
    alpha_quartz,
    assert_gradient,
    assert_symmetric,
    bcc,
    fcc,
    perovskite,
    rand_crystals,
    rock_salt,
)

CONFIG = PeriodicConfig(24, 2, 4, 8, 16, 16, 6, 5.0, order=3)
SECOND = replace(CONFIG, order=2)


def build(
    noise: float = 0.1, dtype: torch.dtype = torch.float64, config: PeriodicConfig = CONFIG
) -> CrystalModel:
    """An untrained potential whose energy varies with everything it may vary with."""
    torch.manual_seed(0)
    model = ModelConfig(config, noise=False, energy=EnergyScale(-1.0, 2.0)).build().to(dtype).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * torch.randn_like(weight)
    return model


def supercell(x: CrystalBatch, times: tuple[int, int, int]) -> CrystalBatch:
    steps = torch.tensor(list(itertools.product(*map(range, times))), dtype=x.dtype)
    size = torch.tensor(times, dtype=x.dtype)
    frac = ((x.frac[None] + steps[:, None]) / size).flatten(0, 1)
    lattice = x.lattice * size[:, None]
    return CrystalBatch(x.numbers.repeat(len(steps)), frac, lattice, x.num_atoms * len(steps))


def dimer(a: int, b: int, distances: Tensor, box: float = 30.0) -> CrystalBatch:
    """One pair of atoms for each distance, far from its images, along a general direction."""
    direction = torch.tensor([0.6, 0.48, 0.64], dtype=distances.dtype)
    frac = torch.zeros(len(distances), 2, 3, dtype=distances.dtype)
    frac[:, 1] = distances[:, None] * direction / box
    lattice = box * torch.eye(3, dtype=distances.dtype).repeat(len(distances), 1, 1)
    counts = torch.full((len(distances),), 2)
    return CrystalBatch(torch.tensor([a, b]).repeat(len(distances)), frac.flatten(0, 1), lattice, counts)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("config", [CONFIG, SECOND])
def test_symmetries(config: PeriodicConfig, dtype: torch.dtype) -> None:
    predict = Predictor(build(dtype=dtype, config=config))
    kinds = {
        "energy_per_atom": "invariant",
        "energies": "node-invariant",
        "forces": "vector",
        "stress": "tensor",
    }
    x = rand_crystals(1, 5, min_distance=1.8, species=(1, 8, 14, 22, 55), dtype=dtype)
    assert_symmetric(predict, x, kinds)  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [CONFIG, SECOND])
def test_forces_and_stresses_are_derivatives(config: PeriodicConfig) -> None:
    model = build(config=config)
    assert_gradient(lambda x: {"e": model.energy(x)}, rand_crystals(2, 3, max_atoms=4))


@pytest.mark.parametrize("crystal", [rock_salt, fcc, bcc, alpha_quartz, lambda: rand_crystals(5, 1)])
def test_supercells_have_the_energy_of_their_parts(crystal) -> None:  # type: ignore[no-untyped-def]
    predict, x = Predictor(build()), crystal()
    small, big = predict(x), predict(supercell(x, (2, 1, 3)))
    torch.testing.assert_close(big["energy"], 6 * small["energy"], rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(big["forces"], small["forces"].repeat(6, 1), rtol=0, atol=1e-9)
    torch.testing.assert_close(big["stress"], small["stress"], rtol=0, atol=1e-10)
    torch.testing.assert_close(big["energies"].sum(), big["energy"][0])


def test_the_choice_of_cell_is_free() -> None:
    """L -> U L, F -> F U^-1 with integer U, det U = 1; and atoms moved by whole lattice vectors."""
    predict, x = Predictor(build()), perovskite()
    x = x.replace(
        frac=x.frac + 0.02 * torch.randn(5, 3, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    )
    u = torch.tensor([[1.0, 2, 0], [0, 1, 0], [1, 0, 1]], dtype=x.dtype)
    skewed = x.replace(lattice=u @ x.lattice, frac=x.frac @ torch.linalg.inv(u))
    unwrapped = x.replace(
        frac=x.frac + torch.tensor([[0, 0, 0], [1, -2, 0], [0, 0, 3], [0, 1, 0], [-1, 0, 0]])
    )
    expected = predict(x)
    for other in (skewed, unwrapped):
        out = predict(other)
        for name, value in expected.items():
            torch.testing.assert_close(out[name], value, rtol=1e-10, atol=1e-9)


def test_neighbours_can_be_found_once_and_reused() -> None:
    model, x = build(), rand_crystals(3, 3)
    edges = neighbor_list(x, 5.5)  # a wider list finds the same energy
    moved = x.replace(frac=x.frac + 0.01)
    torch.testing.assert_close(model.energy(moved, edges=edges), model.energy(moved), rtol=0, atol=1e-12)


def test_energy_and_force_are_smooth_where_an_atom_meets_the_cutoff() -> None:
    """The envelope falls as (r_c - r)^3: E, F and dF/dr are continuous, their jumps vanish with the step."""
    model = build()

    def curve(r: Tensor) -> list[Tensor]:
        r = r.clone().requires_grad_()
        x = dimer(26, 8, r.detach())
        direction = torch.tensor([0.6, 0.48, 0.64], dtype=r.dtype)
        frac = torch.stack([torch.zeros(len(r), 3), r[:, None] * direction / 30.0], 1).flatten(0, 1)
        out = [2 * model.energy(x.replace(frac=frac))]
        for _ in range(2):
            out.append(torch.autograd.grad(out[-1].sum(), r, create_graph=True)[0])
        return [value.detach() for value in out]

    far = [value[0] for value in curve(torch.tensor([7.0], dtype=torch.float64))]
    assert far[1] == far[2] == 0
    for order, limit in enumerate((1e-9, 1e-6, 1e-3)):
        step = 10.0**-4
        values = curve(torch.tensor([5.0 - step, 5.0 + step], dtype=torch.float64))[order]
        assert (values - far[order]).abs().max() < limit
    near = curve(torch.tensor([4.0], dtype=torch.float64))
    assert (near[0] - far[0]).abs() > 1e-4  # the network does see a neighbour at 4 Angstrom


def test_an_isolated_atom_is_finite_and_the_limit_of_a_crystal_pulled_apart() -> None:
    model = build()
    x = fcc()
    alone = x.replace(lattice=40 * torch.eye(3, dtype=x.dtype)[None])
    apart = x.replace(lattice=x.lattice * 2.2)
    energy = model.energy(alone)
    assert energy.isfinite().all()
    torch.testing.assert_close(model.energy(apart), energy, rtol=0, atol=1e-12)
    predicted = Predictor(model)(alone)
    assert (predicted["forces"] == 0).all() and (predicted["stress"] == 0).all()


PAIRS = [("H", "H"), ("H", "O"), ("C", "C"), ("O", "O"), ("Si", "O"), ("Fe", "O"), ("Na", "Cl"), ("Cu", "Cu"),
         ("Au", "Au"), ("U", "O"), ("H", "Cs"), ("Cs", "Cs"), ("Ba", "Rb")]  # fmt: skip


def _scan(model: CrystalModel, a: str, b: str, upto: float) -> tuple[Tensor, Tensor]:
    za, zb = atomic_number(a), atomic_number(b)
    reach = float(covalent_radii()[za] + covalent_radii()[zb]) * upto
    r = torch.linspace(0.3, max(reach, 0.31), 60, dtype=torch.float64)
    with torch.no_grad():
        return r, 2 * model.energy(dimer(za, zb, r))


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_close_pairs_repel_whatever_the_weights(a: str, b: str) -> None:
    """Below half the sum of radii the network is blind to the distance, and ZBL falls strictly with it."""
    _, energy = _scan(build(noise=1.0), a, b, 0.5)
    assert (energy.diff() < 0).all()
    assert (a, b) == ("H", "H") or energy[0] - energy[-1] > 5  # theirs is a scan of 0.01 A


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_pairs_repel_below_seven_tenths_of_the_radii(a: str, b: str) -> None:
    """Between 0.5 and 0.7 the network sees the pair, but fresh weights are weaker than the repulsion."""
    model = build(noise=0.0)
    torch.manual_seed(1)
    assert model.energy_head is not None
    torch.nn.init.normal_(model.energy_head.net[-1].weight, std=24**-0.5)
    _, energy = _scan(model, a, b, 0.7)
    assert (energy.diff() < 0).all()


def test_coinciding_atoms_are_finite() -> None:
    model = build()
    x = dimer(14, 14, torch.zeros(1, dtype=torch.float64))
    frac = x.frac.requires_grad_()
    energy = model.energy(x.replace(frac=frac)).sum()
    assert energy.isfinite() and energy > 1e4
    assert torch.autograd.grad(energy, frac)[0].isfinite().all()


@pytest.mark.parametrize("crystal", [fcc, bcc, rock_salt, alpha_quartz])
def test_second_derivatives_exist(crystal) -> None:  # type: ignore[no-untyped-def]
    """Vectors vanish on symmetric sites, where a bare norm would have no slope; Hessian = its transpose."""
    model, x = build(), crystal()

    def energy(move: Tensor) -> Tensor:
        return model.energy(x.replace(frac=x.frac + move)).sum() * len(x.numbers)

    hessian = torch.autograd.functional.hessian(energy, torch.zeros_like(x.frac)).flatten(2).flatten(0, 1)  # type: ignore[no-untyped-call]
    assert hessian.isfinite().all()
    torch.testing.assert_close(hessian, hessian.T, rtol=0, atol=1e-8)
    shifted = hessian.view(len(x.numbers), 3, -1).sum(0)  # all atoms together: nothing changes
    assert shifted.abs().max() < 1e-9 * hessian.abs().max().clamp(min=1)


def test_slabs_feel_no_image_along_the_free_axis() -> None:
    model, x = build(), fcc()
    x = supercell(x.replace(lattice=torch.diag(torch.tensor([2.6, 2.6, 3.0])).double()[None]), (1, 1, 2))
    free = x.replace(labels={"pbc": torch.tensor([[True, True, False]])})
    tall = x.replace(
        lattice=x.lattice * torch.tensor([1.0, 1.0, 10.0])[:, None].double(),
        frac=x.frac / torch.tensor([1, 1, 10.0]),
    )
    torch.testing.assert_close(model.energy(free), model.energy(tall), rtol=0, atol=1e-12)
    assert (model.energy(free) - model.energy(x)).abs() > 1e-3
    both = CrystalBatch.cat([free, x])  # a batch may hold slabs and crystals
    torch.testing.assert_close(model.energy(both), torch.cat([model.energy(free), model.energy(x)]))
    assert_gradient(lambda y: {"e": model.energy(y)}, free)


def test_small_functions() -> None:
    x = torch.linspace(0.0, 1.2, 1201, dtype=torch.float64)
    e = envelope(x)
    assert e[0] == 1 and (e[x >= 1] == 0).all() and (e.diff() <= 1e-15).all()
    y = x.clamp(max=1.0)
    torch.testing.assert_close(e, 1 - 28 * y**6 + 48 * y**7 - 21 * y**8)
    single = envelope(x[900:1001].float())
    torch.testing.assert_close(single.double(), e[900:1001], rtol=1e-4, atol=0)
    r = torch.linspace(0.1, 3.0, 2901, dtype=torch.float64)
    y = soft_floor(r, torch.tensor(1.0).double(), torch.tensor(1.5).double())
    assert (y[r <= 1] == 1).all() and torch.equal(y[r > 1.5], r[r > 1.5]) and (y.diff() >= 0).all()
    assert y.diff().diff().abs().max() < 2e-5  # no kink
    assert bessel(x[1:], 4).shape == (1200, 4)


def test_moments_are_symmetric_without_traces_and_of_unit_size() -> None:
    u = torch.nn.functional.normalize(torch.randn(20_000, 3, dtype=torch.float64), dim=-1)
    eye = torch.eye(3, dtype=torch.float64)
    y = moments(u, 3)
    assert torch.equal(y[:, :9], moments(u, 2)) and (y[:, 0] == 1).all()
    torch.testing.assert_close(y[:, 1:4], 3**0.5 * u)
    second = (y[:, 4:9] @ whole_tensor(2).double().T).unflatten(1, (3, 3))
    torch.testing.assert_close(second, 13.5**0.5 * (u[:, :, None] * u[:, None] - eye / 3))
    third = (y[:, 9:] @ whole_tensor(3).double().T).unflatten(1, (3, 3, 3))
    cube = torch.einsum("ni,nj,nk->nijk", u, u, u)
    for axes in ("ij,nk->nijk", "ik,nj->nijk", "jk,ni->nijk"):
        cube = cube - torch.einsum(axes, eye, u) / 5
    torch.testing.assert_close(third, 67.5**0.5 * cube)
    for tensor in (second, third):
        torch.testing.assert_close(
            tensor.square().mean(), torch.ones((), dtype=torch.float64), rtol=1e-3, atol=0
        )


def test_third_moments_tell_surroundings_apart_that_second_ones_do_not() -> None:
    """A tetrahedron and a cube have the same moments up to the second, and not the same third."""
    tetrahedron = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).double() / 3**0.5
    cube = torch.cat([tetrahedron, -tetrahedron])
    a, b = (moments(u, 3).mean(0) for u in (tetrahedron, cube))
    torch.testing.assert_close(a[:9], b[:9])
    assert (a[9:] - b[9:]).abs().max() > 0.5


@pytest.mark.parametrize(
    "wanted", [replace(SECOND, order=3), replace(SECOND, depth=3), replace(SECOND, hidden=5)]
)
def test_a_grown_network_says_the_same_and_can_learn_what_is_new(wanted: PeriodicConfig) -> None:
    model, x = build(config=SECOND), rand_crystals(5, 3, min_distance=1.8)
    expected = Predictor(model)(x)
    net = model.encoder
    assert isinstance(net, PeriodicCrysformer)
    old = {name: value.shape for name, value in net.named_parameters()}
    model.encoder = net.grown(wanted)
    for name, value in Predictor(model)(x).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10)
    new = [p for name, p in model.encoder.named_parameters() if old.get(name) != p.shape]
    slopes = torch.autograd.grad(model.energy(x).sum(), new, allow_unused=True)
    assert any(s is not None and s.abs().max() > 0 for s in slopes)


@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_vectors_are_bounded_beyond_their_scale_and_linear_within(scale: float) -> None:
    x = torch.randn(5, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(bounded(1e-4 * x, scale) / 1e-4, x / scale, rtol=1e-6, atol=0)
    torch.testing.assert_close(bounded(1e6 * x, scale).square().sum(1).mean(-1), torch.ones(5).double())
    half = scale * x / x.square().sum(1, keepdim=True).mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(bounded(half, scale), half / scale / 2**0.5)


def test_potentials_take_no_noise_heads_and_check_their_sizes() -> None:
    with pytest.raises(ValueError, match="noise=False"):
        ModelConfig(CONFIG)
    with pytest.raises(ValueError, match="divide"):
        PeriodicConfig(heads=7)
    with pytest.raises(ValueError, match="cutoff"):
        PeriodicConfig(cutoff=3.0)
    with pytest.raises(ValueError, match="order 4"):
        PeriodicConfig(order=4)
    config = ModelConfig(CONFIG, noise=False, energy=EnergyScale())
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert config.build().is_potential


def test_an_untrained_potential_says_zero_where_nothing_is_close() -> None:
    model = ModelConfig(CONFIG, noise=False, energy=EnergyScale(-4.5, 2.0)).build().double()
    torch.testing.assert_close(model.energy(fcc()), torch.zeros(1, dtype=torch.float64), atol=1e-5, rtol=0)
