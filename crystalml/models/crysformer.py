"""Crysformer: the O(3)- and periodic-translation-invariant graph Transformer of DAO (§4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crystalml.models.encoder import DenseEncoder, Metric, edge_dim
from crystalml.models.heads import NoiseHead
from crystalml.models.layers import EdgeAttention, GatedResidual, feed_forward


@dataclass(frozen=True)
class CrysformerConfig:
    """depth blocks of width dim. The defaults are the paper's: 12 x 384, 8 heads (DAO, Appendix 3.1)."""

    dim: int = 384
    depth: int = 12
    heads: int = 8
    edge_dim: int = 384
    frequencies: int = 128
    time_dim: int = 256
    metric: Metric = "gram"
    exclude_self: bool = False

    def build(self) -> Crysformer:
        return Crysformer(self)

    def noise_head(self, centered: bool) -> NoiseHead:
        return NoiseHead(self.dim, centered)


class Block(nn.Module):
    """Z = GR(H, ATT(LN H, E)); H' = GR(Z, FFN(LN Z)).

    Eq. 9 of the paper prints GR(Z^{s-1}, ...), which would cut attention off the FFN branch.
    """

    def __init__(self, dim: int, heads: int, edge_dim: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = EdgeAttention(dim, heads, edge_dim)
        self.gate_1, self.gate_2 = GatedResidual(dim), GatedResidual(dim)
        self.ffn = feed_forward(dim)

    def forward(self, h: Tensor, edges: Tensor, mask: Tensor) -> Tensor:
        z = self.gate_1(h, self.attention(self.norm_1(h), edges, mask))
        return self.gate_2(z, self.ffn(self.norm_2(z)))


class Crysformer(DenseEncoder):
    """CrystalBatch, t -> Features.

    e_ij = LayerNorm[metric | psi(F_j - F_i)]; the first layer of the edge network phi_e,
    u_ij = SiLU(W e_ij), is shared by all blocks, its second, linear layer is each block's own:
    (N, N, dim) activations of every block would otherwise dominate time and memory.
    """

    def __init__(self, config: CrysformerConfig) -> None:
        super().__init__(config.dim, config.time_dim, config.frequencies, config.metric)
        self.config = config
        width = edge_dim(config.metric, config.frequencies)
        self.edge_norm = nn.LayerNorm(width)
        self.edge_in = nn.Linear(width, config.edge_dim)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, config.edge_dim) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim)

    def core(self, h: Tensor, inputs: Tensor, mask: Tensor) -> Tensor:
        edges = nn.functional.silu(self.edge_in(self.edge_norm(inputs)))
        pairs = mask[:, None, :].expand(-1, mask.shape[1], -1)
        if self.config.exclude_self:
            pairs = pairs & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        for block in self.blocks:
            h = block(h, edges, pairs)
        return self.norm(h)
