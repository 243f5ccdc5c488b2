"""Laws of every encoder with its heads: methods §4, Accept."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.geometry.torus import wrap
from crystalml.models.crysformer import Crysformer, CrysformerConfig
from crystalml.models.cspnet import CSPNetConfig
from crystalml.models.encoder import edge_inputs
from crystalml.models.heads import EnergyScale
from crystalml.models.model import CrystalModel, EncoderConfig, ModelConfig, averaged
from crystalml.testing import (
    assert_batch_law,
    assert_gradient,
    assert_permutation_law,
    assert_rotation_law,
    assert_symmetric,
    assert_translation_law,
    bcc,
    fcc,
    rand_crystals,
    rock_salt,
)

ENCODERS: dict[str, EncoderConfig] = {
    "crysformer-gram": CrysformerConfig(24, 2, 4, 12, 6, 16, "gram"),
    "crysformer-log": CrysformerConfig(24, 2, 4, 12, 6, 16, "log"),
    "crysformer-no-self": CrysformerConfig(24, 2, 4, 12, 6, 16, "log", exclude_self=True),
    "cspnet-gram": CSPNetConfig(24, 2, 6, 16, "gram"),
    "cspnet-log": CSPNetConfig(24, 2, 6, 16, "log"),
}
KINDS = {"energy": "invariant", "frac": "node-invariant", "lattice": "lattice"}


def build(encoder: EncoderConfig, centered: bool = False, dtype: torch.dtype = torch.float64) -> CrystalModel:
    torch.manual_seed(0)
    model = ModelConfig(encoder, centered=centered, energy=EnergyScale(-1.0, 2.0)).build().to(dtype).eval()
    with torch.no_grad():  # heads start at zero, where every law holds for free
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model


def outputs(model: CrystalModel, x: CrystalBatch) -> dict[str, Tensor]:
    t = 1 + x.num_atoms % 7  # a level that follows the crystal when the batch is split or shuffled
    out = model(x, t)
    assert out.noise is not None and out.noise.frac is not None and out.noise.lattice is not None
    return {"energy": out.energy, "frac": out.noise.frac, "lattice": out.noise.lattice}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("centered", [False, True])
def test_symmetries(name: str, dtype: torch.dtype, centered: bool) -> None:
    model = build(ENCODERS[name], centered, dtype)
    assert_symmetric(lambda x: outputs(model, x), rand_crystals(1, 6, dtype=dtype), KINDS)


@pytest.mark.parametrize("name", ENCODERS)
def test_gradients_are_exact(name: str) -> None:
    model = build(ENCODERS[name])
    assert_gradient(lambda x: {"f": model.free_energy(x, x.num_atoms % 5)}, rand_crystals(2, 3, max_atoms=4))


@pytest.mark.parametrize("name", ENCODERS)
def test_symmetric_and_one_atom_crystals_are_finite(name: str) -> None:
    model = build(ENCODERS[name])
    for x in (fcc(), bcc(), rock_salt()):
        frac, lattice = x.frac.clone().requires_grad_(), x.lattice.clone().requires_grad_()
        out = outputs(model, x.replace(frac=frac, lattice=lattice))
        total = sum(value.square().sum() for value in out.values())
        assert isinstance(total, Tensor) and total.isfinite()
        assert all(g.isfinite().all() for g in torch.autograd.grad(total, (frac, lattice)))


@pytest.mark.parametrize("name", ENCODERS)
def test_the_lattice_is_seen_even_with_one_atom(name: str) -> None:
    """Fourier features hold no lengths: only the metric tells two sizes of fcc Cu apart."""
    model, x = build(ENCODERS[name]), fcc()
    if name.endswith("no-self"):
        pytest.skip("without the self pair one atom has no edge to carry the metric")
    strained = x.replace(lattice=1.1 * x.lattice)
    assert (model.free_energy(x) - model.free_energy(strained)).abs() > 1e-4


@pytest.mark.parametrize(
    "encoder", [CrysformerConfig(24, 2, 4, 12, 6, 16, "raw"), CSPNetConfig(24, 2, 6, 16, "raw")]
)
def test_raw_numbers_are_no_invariants(encoder: EncoderConfig) -> None:
    """Order, company and images of atoms stay unseen; orientation and origin are seen."""
    model, x = build(encoder), rand_crystals(1, 6)

    def energy(x: CrystalBatch) -> dict[str, Tensor]:
        return {"energy": outputs(model, x)["energy"]}

    assert_permutation_law(energy, x, {"energy": "invariant"})
    assert_batch_law(energy, x, {"energy": "invariant"})
    images = torch.randint(-2, 3, x.frac.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(energy(x.replace(frac=x.frac + images)), energy(x))
    for law in (assert_rotation_law, assert_translation_law):
        with pytest.raises(AssertionError, match="law"):
            law(energy, x, {"energy": "invariant"})


def test_an_average_is_the_mean_of_its_members() -> None:
    parts = [build(ENCODERS["cspnet-log"]), build(ENCODERS["cspnet-log"])]
    with torch.no_grad():
        for weight in parts[1].parameters():
            weight *= 1.3
    model, x = averaged(parts), rand_crystals(1, 5)
    found, members = model(x).features, [part(x).features for part in parts]
    assert (members[0].graph - members[1].graph).abs().max() > 0.1
    for name in ("node", "graph"):
        mean = 0.5 * (getattr(members[0], name) + getattr(members[1], name))
        torch.testing.assert_close(getattr(found, name), mean)
    assert_symmetric(lambda x: {"h": model(x).features.graph}, x, {"h": "invariant"})
    with pytest.raises(ValueError, match="one architecture"):
        averaged([parts[0], build(ENCODERS["cspnet-gram"])])


def test_feed_forward_reads_the_attention_output() -> None:
    """Eq. 9 as printed feeds H instead of Z to the FFN and would not notice attention at all."""
    model = build(ENCODERS["crysformer-log"])
    assert isinstance(model.encoder, Crysformer)
    block, seen = model.encoder.blocks[0], []
    block.ffn.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))  # type: ignore[union-attr, operator]
    x = rand_crystals(3, 2)
    outputs(model, x)
    with torch.no_grad():
        block.attention.out.weight.mul_(2)  # type: ignore[union-attr, operator]
    outputs(model, x)
    assert (seen[0] - seen[1]).abs().max() > 1e-3


def test_edges_point_from_receiver_to_sender_and_ignore_the_image() -> None:
    x = rock_salt()
    inputs = edge_inputs(x, 3, "log")
    torch.testing.assert_close(edge_inputs(x.replace(frac=wrap(x.frac + 0.3)), 3, "log"), inputs)
    delta = x.frac[1] - x.frac[0]
    torch.testing.assert_close(inputs[0, 0, 1, 6], torch.sin(2 * torch.pi * delta[0]))


def test_centred_head_has_no_mean_and_nothing_to_say_about_one_atom() -> None:
    model = build(ENCODERS["cspnet-log"], centered=True)
    x = CrystalBatch.cat([fcc(), rock_salt()])
    frac = outputs(model, x)["frac"]
    assert (frac[0] == 0).all()
    torch.testing.assert_close(frac[1:].mean(0), torch.zeros(3, dtype=torch.float64))


def test_the_paper_sizes() -> None:
    config = CrysformerConfig()
    assert (config.depth, config.dim, config.heads, config.frequencies) == (12, 384, 8, 128)
    assert (CSPNetConfig().depth, CSPNetConfig().dim) == (6, 512)
    with pytest.raises(ValueError, match="multiple"):
        replace(config, heads=7, depth=1).build()
