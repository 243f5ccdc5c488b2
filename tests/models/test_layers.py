import torch

from crystalml.models.layers import EdgeAttention, GatedResidual, TimeEmbedding, masked_softmax


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_empty_softmax_row_is_zero_with_finite_gradients() -> None:
    logits = _normal(3, 4).requires_grad_()
    mask = torch.tensor([[True] * 4, [False] * 4, [True, False, True, False]])
    weight = masked_softmax(logits, mask)
    assert (weight[1] == 0).all() and (weight[2, 1::2] == 0).all()
    torch.testing.assert_close(weight.sum(-1), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(weight.square().sum(), logits)
    assert gradient.isfinite().all() and (gradient[1] == 0).all()


def test_softmax_survives_huge_logits() -> None:
    weight = masked_softmax(torch.tensor([[1e4, -1e4]]), torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(weight, torch.tensor([[1.0, 0.0]]))


def test_gate_is_the_printed_concatenation() -> None:
    gate, x, y = GatedResidual(5).double(), _normal(7, 5), _normal(7, 5, seed=1)
    alpha = torch.sigmoid(gate.gate(torch.cat([x, y, x - y], -1)))
    torch.testing.assert_close(gate(x, y), alpha * x + (1 - alpha) * y)


def test_edge_attention_equals_its_written_out_form() -> None:
    """Keys and values with phi_e(u_ij) added pair by pair, softmax head by head (DAO, Eqs. 6-7)."""
    torch.manual_seed(0)
    dim, heads, edge_dim, n = 12, 3, 5, 4
    layer = EdgeAttention(dim, heads, edge_dim).double()
    h, edges = _normal(1, n, dim), _normal(1, n, n, edge_dim, seed=1)
    mask = torch.rand(1, n, n, generator=torch.Generator().manual_seed(2)) < 0.7
    q, k, v = (part.unflatten(-1, (heads, -1))[0] for part in layer.qkv(h).chunk(3, -1))
    out = torch.zeros(n, heads, dim // heads, dtype=torch.float64)
    for i in range(n):
        for a in range(heads):
            phi = edges[0, i] @ layer.edge[a].T
            logits = (k[:, a] + phi) @ q[i, a] / (dim // heads) ** 0.5
            weight = torch.softmax(logits.masked_fill(~mask[0, i], -torch.inf), 0).nan_to_num()
            out[i, a] = weight @ (v[:, a] + phi)
    torch.testing.assert_close(layer(h, edges, mask)[0], layer.out(out.flatten(-2)))


def test_time_embedding_tells_all_levels_apart() -> None:
    embedded = TimeEmbedding(64).double()(torch.arange(1001))
    distance = torch.cdist(embedded, embedded) + 10 * torch.eye(1001)
    assert distance.min() > 1e-2
