"""CSPNet: the message-passing network of DiffCSP (Jiao et al. 2023, §4.2), evaluated densely."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from crystalml.models.encoder import DenseEncoder, Metric, edge_dim
from crystalml.models.heads import NoiseHead


@dataclass(frozen=True)
class CSPNetConfig:
    """The defaults are DiffCSP's: 6 layers x 512, 128 frequencies, time embedding 256."""

    dim: int = 512
    depth: int = 6
    frequencies: int = 128
    time_dim: int = 256
    metric: Metric = "gram"

    def build(self) -> CSPNet:
        return CSPNet(self)

    def noise_head(self, centered: bool) -> NoiseHead:
        return NoiseHead(self.dim, centered)


class Message(nn.Module):
    """h_i += MLP[h_i | mean_j m_ij], m_ij = MLP[h_i | h_j | G | psi(F_j - F_i)], on LayerNorm-ed h.

    The first edge layer is split by its inputs: h_i and h_j are projected once a node, the lattice once a
    crystal, and only psi once a pair. Same function, 2 dim / (2 dim + 6 K + 9) of the products saved.
    """

    def __init__(self, dim: int, edge_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.receiver = nn.Linear(dim, dim)
        self.sender = nn.Linear(dim, dim, bias=False)
        self.pair = nn.Linear(edge_dim, dim, bias=False)
        self.edge_out = nn.Linear(dim, dim)
        self.node_in = nn.Linear(2 * dim, dim)
        self.node_out = nn.Linear(dim, dim)

    def forward(self, h: Tensor, inputs: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(h)
        m = silu(self.receiver(x)[:, :, None] + self.sender(x)[:, None] + self.pair(inputs))
        m = silu(self.edge_out(m))
        weight = mask.to(m.dtype) / mask.sum(1, keepdim=True).to(m.dtype)
        mean = (weight[:, None, None] @ m).squeeze(2)
        return h + silu(self.node_out(silu(self.node_in(torch.cat([x, mean], -1)))))


class CSPNet(DenseEncoder):
    """CrystalBatch, t -> Features."""

    def __init__(self, config: CSPNetConfig) -> None:
        super().__init__(config.dim, config.time_dim, config.frequencies, config.metric)
        self.config = config
        self.layers = nn.ModuleList(
            Message(config.dim, edge_dim(config.metric, config.frequencies)) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim)

    def core(self, h: Tensor, inputs: Tensor, mask: Tensor) -> Tensor:
        inputs = inputs.to(h.dtype)  # bfloat16 under autocast: once, not in every layer
        for layer in self.layers:
            h = layer(h, inputs, mask)
        return self.norm(h)
