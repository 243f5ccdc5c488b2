"""Products in bfloat16: the same numbers to two digits, in training only where it was asked for."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import cosine_similarity

from crystalml.models.derivatives import CompiledPotential, derivatives
from crystalml.models.half import in_bfloat16
from crystalml.models.heads import EnergyScale
from crystalml.models.model import ModelConfig
from crystalml.models.periodic import PeriodicConfig
from crystalml.testing import rand_crystals


def products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    stacked = torch.baddbmm(a[None], a[None], b[None])
    return torch.addmm(a, a @ b, b) + torch.bmm(stacked, b[None])[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_product_is_rounded_and_nothing_else(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(6, 6, dtype=dtype), torch.randn(6, 6, dtype=dtype)
    graph = in_bfloat16(make_fx(products, tracing_mode="symbolic")(a, b))
    inputs = [x.requires_grad_() for x in (a, b)]
    found, expected = graph(*inputs), products(*inputs)
    assert found.dtype == dtype
    scale = float(expected.detach().abs().max())
    assert 0 < float((found - expected).detach().abs().max()) < 0.03 * scale
    slopes = [torch.autograd.grad(y.square().sum(), inputs) for y in (found, expected)]
    for x, y in zip(*slopes, strict=True):
        assert float(cosine_similarity(x.flatten(), y.flatten(), 0)) > 0.999
    kinds = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert sum("mm" in kind for kind in kinds) == 4
    assert not any("addmm" in kind for kind in kinds)


def test_a_potential_learns_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda graph, dynamic: graph)  # traced and rounded is enough
    torch.manual_seed(0)
    config = PeriodicConfig(8, 1, 2, 4, 4, 4, 4, 5.0, scale=6.0)
    model = ModelConfig(config, noise=False, energy=EnergyScale(-1.0, 2.0)).build()
    x = rand_crystals(3, 3, min_distance=1.5, dtype=torch.float32)
    grads = []
    for half in (False, True):
        out = derivatives(model, x, create_graph=True, compiled=CompiledPotential(model, half))
        loss = out.per_atom.square().sum() + out.forces.square().sum()
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        grads.append(torch.cat([g.flatten() for g in found if g is not None]))
    assert not torch.equal(*grads)
    assert float(cosine_similarity(*grads, 0)) > 0.99
