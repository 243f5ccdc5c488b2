"""The dense CSPNet and the edge-by-edge reference are one function."""

import pytest
import torch

from crystalml.benchmarks.reference_cspnet import from_dense, fully_connected
from crystalml.crystal import CrystalBatch
from crystalml.errors import ArchitectureError
from crystalml.models.cspnet import CSPNetConfig
from crystalml.models.heads import EnergyScale
from crystalml.models.model import CrystalModel, ModelConfig


def crystals(dtype: torch.dtype, seed: int = 0) -> CrystalBatch:
    g = torch.Generator().manual_seed(seed)
    counts = torch.tensor([1, 5, 3, 8])
    n = int(counts.sum())
    lattice = 4 * torch.eye(3, dtype=dtype) + 0.5 * torch.randn(4, 3, 3, generator=g, dtype=dtype)
    frac = torch.rand(n, 3, generator=g, dtype=dtype)
    return CrystalBatch(torch.randint(1, 90, (n,), generator=g), frac, lattice, counts)


def dense(metric: str, centered: bool, dtype: torch.dtype) -> CrystalModel:
    torch.manual_seed(0)
    encoder = CSPNetConfig(dim=24, depth=3, frequencies=6, time_dim=16, metric=metric)  # type: ignore[arg-type]
    config = ModelConfig(encoder, centered=centered, energy=EnergyScale(-1.0, 2.0))
    model = config.build().to(dtype).eval()
    with torch.no_grad():  # heads start at zero: any two would agree
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return model


@pytest.mark.parametrize("metric", ["gram", "log"])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_same_as_dense(metric: str, centered: bool, dtype: torch.dtype, tolerance: float) -> None:
    model = dense(metric, centered, dtype)
    reference = from_dense(model)
    x, t = crystals(dtype), torch.tensor([1, 10, 500, 1000])
    with torch.no_grad():
        ours, theirs = model.denoise(x, t), reference.denoise(x, t)
        energies = model.energy(x), reference.energy(x)
    for a, b in [(ours.lattice, theirs.lattice), (ours.frac, theirs.frac), energies]:
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def test_edges_are_all_ordered_pairs() -> None:
    edges = fully_connected(torch.tensor([1, 3]))
    expected = {(0, 0)} | {(j, i) for j in (1, 2, 3) for i in (1, 2, 3)}
    assert {tuple(e) for e in edges.T.tolist()} == expected
    assert edges.shape == (2, 10)


def test_other_networks_are_refused(tiny_model) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ArchitectureError, match="Crysformer"):
        from_dense(tiny_model())
