"""Laws of FourierFrameNet: methods §3.1, pitfalls and Accept."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.geometry.neighbors import neighbor_list
from crystalml.geometry.torus import wrap
from crystalml.models.fourierframenet import FourierFrameNet, FourierFrameNetConfig
from crystalml.models.frames import orientation, periodic_frames
from crystalml.models.pairs import tabulate
from crystalml.testing import (
    REFERENCE_CRYSTALS,
    alpha_quartz,
    assert_batch_law,
    assert_gradient,
    assert_permutation_law,
    assert_rotation_law,
    assert_translation_law,
    fcc,
    rand_crystals,
    random_rotation,
    rock_salt,
)

CONFIG = FourierFrameNetConfig(24, 2, 1, 4, 8, 16, 12, 8, 4, 8, 5.0)
VARIANTS = {
    "default": CONFIG,
    "achiral": replace(CONFIG, chiral=False),
    "paper attention": replace(CONFIG, attention="paper"),
    "one cell blind": replace(CONFIG, inter=0, chiral=False),
    "log metric": replace(CONFIG, metric="log"),
}
KINDS = {"node": "node-invariant", "graph": "invariant", "vector": "vector"}


def build(config: FourierFrameNetConfig, dtype: torch.dtype = torch.float64) -> FourierFrameNet:
    torch.manual_seed(0)
    net = config.build().to(dtype).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return net


def outputs(net: FourierFrameNet, x: CrystalBatch) -> dict[str, Tensor]:
    found = net(x, x.num_atoms % 5)
    assert found.vector is not None
    return {"node": found.node, "graph": found.graph, "vector": found.vector.sum(-1)}


def graph(net: FourierFrameNet, x: CrystalBatch) -> Tensor:
    return outputs(net, x)["graph"].detach()


def mirrored(x: CrystalBatch) -> CrystalBatch:
    """The mirror image as the converter gives it: a right-handed cell again."""
    return x.replace(frac=wrap(-x.frac))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_symmetries(name: str, dtype: torch.dtype) -> None:
    net, x = build(VARIANTS[name], dtype), rand_crystals(1, 6, dtype=dtype)

    def fn(x: CrystalBatch) -> dict[str, Tensor]:
        return {key: value.detach() for key, value in outputs(net, x).items()}

    assert_rotation_law(fn, x, KINDS, reflect=not net.config.chiral)
    assert_permutation_law(fn, x, KINDS)
    assert_translation_law(fn, x, KINDS)
    assert_batch_law(fn, x, KINDS)


@pytest.mark.parametrize("name", ["default", "achiral"])
def test_gradients_are_exact(name: str) -> None:
    assert_gradient(lambda x: outputs(build(VARIANTS[name]), x), rand_crystals(2, 3, max_atoms=4))


def test_frames_of_one_cell_depend_on_the_origin() -> None:
    """Why the periodic frame is the default: an atom that leaves through a face changes the printed one."""
    net, x = build(replace(CONFIG, frame="paper")), rand_crystals(1, 6)
    assert_rotation_law(
        lambda x: {k: v.detach() for k, v in outputs(net, x).items()}, x, KINDS, reflect=False
    )
    with pytest.raises(AssertionError, match="translation law"):
        assert_translation_law(lambda x: {"graph": graph(net, x)}, x, {"graph": "invariant"})


@pytest.mark.parametrize("frame", ["periodic", "paper"])
@pytest.mark.parametrize("crystal", REFERENCE_CRYSTALS)
def test_symmetric_crystals_are_finite(frame: str, crystal: str) -> None:
    """Rock salt, bcc, one atom: frames that symmetry forbids, softmaxes over nothing."""
    net, x = build(replace(CONFIG, frame=frame)), REFERENCE_CRYSTALS[crystal]()  # type: ignore[arg-type]
    frac, lattice = x.frac.clone().requires_grad_(), x.lattice.clone().requires_grad_()
    found = outputs(net, x.replace(frac=frac, lattice=lattice))
    total = sum(value.square().sum() for value in found.values())
    assert isinstance(total, Tensor)
    slopes = torch.autograd.grad(total, (frac, lattice, *net.parameters()), allow_unused=True)
    assert total.isfinite() and all(g is None or g.isfinite().all() for g in slopes)


@pytest.mark.parametrize("crystal", ["rock salt", "fcc", "bcc"])
def test_frames_vanish_where_symmetry_leaves_no_direction(crystal: str) -> None:
    x = REFERENCE_CRYSTALS[crystal]()
    assert periodic_frames(tabulate(x, neighbor_list(x, 5.0), 10.0), 5.0).abs().max() < 1e-9


def test_frames_are_orthogonal_turn_with_the_crystal_and_see_handedness() -> None:
    x, q = rand_crystals(3, 4), random_rotation(0)

    def found(x: CrystalBatch) -> Tensor:
        return periodic_frames(tabulate(x, neighbor_list(x, 5.0), 10.0), 5.0)

    frames = found(x)
    product = frames @ frames.mT
    off = product - torch.diag_embed(product.diagonal(dim1=1, dim2=2))
    assert off.abs().max() < 1e-9
    assert product.diagonal(dim1=1, dim2=2).median() > 0.5  # most are nearly of unit length
    torch.testing.assert_close(found(x.replace(lattice=x.lattice @ q.T)), frames @ q.T)
    flipped = found(x.replace(lattice=-x.lattice))
    torch.testing.assert_close(flipped, frames * torch.tensor([-1.0, 1.0, -1.0])[:, None])


def test_orientations_are_relative_rotations() -> None:
    x = alpha_quartz()
    pairs = tabulate(x, neighbor_list(x, 3.0), 6.0)
    frames = periodic_frames(pairs, 3.0)
    expected = torch.einsum("nkcx,nax->nkca", frames[pairs.j], frames)
    torch.testing.assert_close(orientation(frames, pairs, True).unflatten(-1, (3, 3)), expected)


def test_a_chiral_network_tells_quartz_from_its_mirror_image_and_an_achiral_one_does_not() -> None:
    chiral, achiral = build(CONFIG), build(VARIANTS["achiral"])
    left, right = alpha_quartz(), alpha_quartz(mirror=True)
    assert (graph(chiral, left) - graph(chiral, right)).abs().max() > 1e-4
    torch.testing.assert_close(graph(chiral, rock_salt()), graph(chiral, mirrored(rock_salt())))
    torch.testing.assert_close(graph(achiral, left), graph(achiral, right), rtol=0, atol=1e-9)
    x = rand_crystals(4, 5)
    torch.testing.assert_close(graph(achiral, x), graph(achiral, mirrored(x)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_size_of_a_cell_with_one_atom_is_seen(name: str) -> None:
    """A softmax over equal neighbours is blind to their distance, Fourier features hold no lengths."""
    net, x = build(VARIANTS[name]), fcc()
    assert (graph(net, x) - graph(net, x.replace(lattice=2 * x.lattice))).abs().max() > 1e-4


def test_without_values_that_see_the_pair_nor_a_metric_it_is_not() -> None:
    """The printed network's metric blindness: kept to be shown, not used."""
    net, x = build(replace(CONFIG, attention="paper", metric=None)), fcc()
    torch.testing.assert_close(graph(net, x), graph(net, x.replace(lattice=1.05 * x.lattice)))


def supercell(x: CrystalBatch, times: tuple[int, int, int]) -> CrystalBatch:
    steps = torch.tensor(list(itertools.product(*map(range, times))), dtype=x.dtype)
    size = torch.tensor(times, dtype=x.dtype)
    frac = ((x.frac[None] + steps[:, None]) / size).flatten(0, 1)
    return CrystalBatch(
        x.numbers.repeat(len(steps)), frac, x.lattice * size[:, None], x.num_atoms * len(steps)
    )


def test_neighbour_layers_do_not_know_the_cell_and_fourier_layers_do() -> None:
    x, double = alpha_quartz(), supercell(alpha_quartz(), (2, 1, 1))
    near, both = build(VARIANTS["one cell blind"]), build(CONFIG)
    still = torch.zeros(1)
    torch.testing.assert_close(near(x, still).graph, near(double, still).graph, rtol=0, atol=1e-9)
    assert (both(x, still).graph - both(double, still).graph).abs().max() > 1e-6


def test_no_neighbour_enters_with_a_jump() -> None:
    """Across the cutoff the features change as the square of the step, not at once."""
    net = build(VARIANTS["one cell blind"])
    x = fcc()
    first = torch.linalg.vector_norm(neighbor_list(x, 5.3).vector, dim=-1)
    shell = float(first[first > 5.0].min())  # the fourth shell, at a sqrt(2) = 5.11 A
    scale = 5.0 / shell

    def at(strain: float) -> Tensor:
        return graph(net, x.replace(lattice=x.lattice * scale * (1 + strain)))

    inside, outside = at(-1e-4), at(1e-4)
    far = at(-1e-2)
    assert (inside - outside).abs().max() < 0.05 * (far - outside).abs().max()


def test_bad_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="heads 3"):
        FourierFrameNetConfig(heads=3)
