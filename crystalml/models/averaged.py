"""Several networks of one architecture as one encoder: their features are averaged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crystalml.crystal import CrystalBatch
from crystalml.models.crysformer import CrysformerConfig
from crystalml.models.cspnet import CSPNetConfig
from crystalml.models.encoder import Features


@dataclass(frozen=True)
class AveragedConfig:
    """count networks. Two are CrysDiff's separate denoisers, of lattices and of coordinates (Figure 5)."""

    member: CSPNetConfig | CrysformerConfig
    count: int = 2

    def build(self) -> Averaged:
        return Averaged(self)


class Averaged(nn.Module):
    """CrystalBatch, t -> Features, the mean of what the members say."""

    def __init__(self, config: AveragedConfig) -> None:
        super().__init__()
        self.config, self.dim = config, config.member.dim
        self.members = nn.ModuleList(config.member.build() for _ in range(config.count))

    def forward(self, x: CrystalBatch, t: Tensor) -> Features:
        found: list[Features] = [member(x, t) for member in self.members]
        node, graph = ([getattr(one, name) for one in found] for name in ("node", "graph"))
        return Features(torch.stack(node).mean(0), torch.stack(graph).mean(0))
