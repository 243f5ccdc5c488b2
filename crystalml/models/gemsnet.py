"""GemsNet: message passing over triplets of atoms, the network of GemsDiff (a relative of GemNet-T)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from crystalml.crystal import CrystalBatch
from crystalml.elements import element_features
from crystalml.geometry.neighbors import nearest_neighbors
from crystalml.models.actions import ActionHead
from crystalml.models.encoder import EdgeFeatures, Features
from crystalml.models.layers import MLP, TimeEmbedding
from crystalml.models.pairs import Pairs, envelope, tabulate

_DEGREES = (slice(0, 1), slice(1, 4), slice(4, 9), slice(9, 16))  # of l = 0..3 in `harmonics`
_FAR = 1e4  # Angstrom: where the rows that fill the table of neighbours are put
_SHARE = 8  # channels in which atoms tell their neighbours of their surroundings


@dataclass(frozen=True)
class GemsNetConfig:
    """depth blocks; dim, edge_dim, triplet: widths of atoms, of edges and of what triplets exchange.

    neighbors: edges an atom. basis: Gaussians of the distance, spread over 0..cutoff Angstrom; farther
    neighbours are seen, but all alike. The defaults are those of the published code.
    """

    dim: int = 256
    edge_dim: int = 128
    triplet: int = 32
    depth: int = 3
    neighbors: int = 32
    basis: int = 128
    cutoff: float = 6.0

    def build(self) -> GemsNet:
        return GemsNet(self)

    def noise_head(self, centered: bool) -> ActionHead:
        return ActionHead(self.dim, self.edge_dim, centered)


class GemsNet(nn.Module):
    """CrystalBatch, t -> Features, those of the edges among them.

    All is built from distances and angles: invariant to rotations, reflections, the choice of the cell's
    vectors, the order of atoms and their images. Every edge carries a weight that falls to zero at the
    distance of the first neighbour left out.
    """

    elements: Tensor
    centers: Tensor

    def __init__(self, config: GemsNetConfig) -> None:
        super().__init__()
        self.config = config
        table = element_features()
        self.register_buffer("elements", table)
        self.register_buffer("centers", torch.linspace(0, config.cutoff, config.basis), persistent=False)
        self.embed = nn.Linear(table.shape[1], config.dim)
        self.embed_own = nn.Embedding(table.shape[0], config.dim)
        self.time = TimeEmbedding(config.dim, base=100.0)
        self.edge_radial = nn.Linear(config.basis, config.edge_dim)
        self.edge_ends = nn.Linear(config.dim, 2 * config.edge_dim, bias=False)
        self.blocks = nn.ModuleList(TripletBlock(config) for _ in range(config.depth))
        self.norm, self.norm_edge = nn.LayerNorm(config.dim), nn.LayerNorm(config.edge_dim)
        nn.init.normal_(self.embed.weight, std=1 / 3)  # nine of the features are one, the others zero
        nn.init.normal_(self.embed_own.weight, std=0.3)

    @property
    def dim(self) -> int:
        return self.config.dim

    def forward(self, x: CrystalBatch, t: Tensor) -> Features:
        with torch.autocast(x.device.type, enabled=False):  # positions to three digits would not do
            edges, reach = nearest_neighbors(x, self.config.neighbors)
            pairs = tabulate(x, edges, _FAR)
            weight = envelope(pairs.distance / reach[:, None])
        time = self.time(t)[x.index].to(x.dtype)
        node, edge = self.core(x.numbers, time, pairs, weight)
        total = node.new_zeros(len(x), node.shape[-1]).index_add(0, x.index, node)
        return Features(node, total / x.num_atoms[:, None], edges=EdgeFeatures(pairs, weight, edge))

    def deepened(self, depth: int) -> GemsNet:
        """`depth` blocks that say the same: those further start as copies of the last that add nothing."""
        deep = GemsNet(replace(self.config, depth=depth)).to(next(self.parameters()))
        state, last = self.state_dict(), f"blocks.{self.config.depth - 1}."
        for k in range(self.config.depth, depth):
            state |= {f"blocks.{k}.{n.removeprefix(last)}": v for n, v in state.items() if n.startswith(last)}
        deep.load_state_dict(state)
        for block in deep.blocks[self.config.depth :]:
            assert isinstance(block, TripletBlock)
            for layer in (block.edge_out, block.node[-1]):
                for parameter in layer.parameters():
                    nn.init.zeros_(parameter)
        return deep

    def core(self, numbers: Tensor, time: Tensor, pairs: Pairs, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(n, dim), (n, K, edge_dim) from the atoms' numbers and times (n, dim) and their edges."""
        h = self.embed(self.elements[numbers]) + self.embed_own(numbers) + time
        own, other = self.edge_ends(h).chunk(2, -1)
        e = self.edge_radial(self.gaussians(pairs.distance)) + own[:, None] + pairs.gather(other)
        e, shapes = silu(e), harmonics(pairs.vector / pairs.distance[..., None])
        for block in self.blocks:
            h, e = block(h, e, weight, shapes, pairs)
        return self.norm(h), self.norm_edge(e)

    def gaussians(self, r: Tensor) -> Tensor:
        """exp(-(r - c)^2 / 2 d^2) at centres c a distance d apart: (...,) -> (..., basis)."""
        width = self.config.cutoff / (self.config.basis - 1)
        return torch.exp(-0.5 * ((r[..., None] - self.centers) / width).square())


class TripletBlock(nn.Module):
    """Edges learn from the edges at both their ends by the angles between them, then atoms from edges.

    t_ij^l = sum_k w_ik P_l(cos theta_jik) V e_ik, and likewise at the far end; e_ij += MLP[e_ij | t_ij |
    h_i | h_j], h_i += MLP[h_i | sum_j w_ij e_ij | ...]. P_l(cos theta_jik) = sum_m Y_lm(u_ij) Y_lm(u_ik), so
    the sum over k is taken once an atom: exact, and no tensor over triplets is ever made.
    """

    def __init__(self, config: GemsNetConfig) -> None:
        super().__init__()
        d, e, c = config.dim, config.edge_dim, config.triplet
        self.norm_node, self.norm_edge = nn.LayerNorm(d), nn.LayerNorm(e)
        self.down, self.share = nn.Linear(e, c), nn.Linear(c, _SHARE, bias=False)
        self.ends = nn.Linear(d, 2 * e, bias=False)
        self.edge_in = nn.Linear(e, e)
        self.triplet_in = nn.Linear(4 * c + 3 * _SHARE, e, bias=False)
        self.edge_out = nn.Linear(e, e)
        self.node = MLP(d + e + 4 * c, 2 * d, d)
        self.scale = 4.0 / config.neighbors  # the weights of an atom's edges sum up to about a quarter of it

    def forward(
        self, h: Tensor, e: Tensor, weight: Tensor, shapes: Tensor, pairs: Pairs
    ) -> tuple[Tensor, Tensor]:
        """h (n, dim), e (n, K, edge_dim), weight (n, K), shapes (n, K, 16)."""
        g, x = self.norm_node(h), self.norm_edge(e)
        w = self.scale * weight[..., None]
        moments = shapes.mT @ (w * self.down(x))  # (n, 16, c)
        seen = [shapes[..., l] @ moments[:, l] for l in _DEGREES]
        own, other = self.ends(g).chunk(2, -1)
        m = self.edge_in(x) + own[:, None] + pairs.gather(other)
        m = silu(m + self.triplet_in(torch.cat([*seen, *self.beyond(moments, shapes, pairs)], -1)))
        squares = [moments[:, :1].sum(1)] + [moments[:, l].square().sum(1) for l in _DEGREES[1:]]
        h = h + self.node(torch.cat([g, (w * m).sum(1), *squares], -1))
        return h, e + self.edge_out(m)

    def beyond(self, moments: Tensor, shapes: Tensor, pairs: Pairs) -> list[Tensor]:
        """What atom j has around it as seen along the edge from i: three (n, K, 8), l = 0, 1, 2."""
        told = pairs.gather(self.share(moments[:, :9]).flatten(1)).unflatten(-1, (9, _SHARE))
        # seen from j the edge points the other way, which changes the sign of odd l: left to the weights
        return [(shapes[..., l, None] * told[..., l, :]).sum(-2) for l in _DEGREES[:3]]


def harmonics(u: Tensor) -> Tensor:
    """(..., 3) unit vectors -> (..., 16) real harmonics, l = 0..3, with sum_m Y_lm(u) Y_lm(v) = P_l(u.v)."""
    x, y, z = u.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    parts = [torch.ones_like(x), x, y, z]
    parts += [3**0.5 * x * y, 3**0.5 * y * z, 3**0.5 * x * z, 0.75**0.5 * (xx - yy), 1.5 * zz - 0.5]
    parts += [0.625**0.5 * y * (3 * xx - yy), 15**0.5 * x * y * z, 0.375**0.5 * y * (5 * zz - 1)]
    parts += [0.5 * z * (5 * zz - 3), 0.375**0.5 * x * (5 * zz - 1), 3.75**0.5 * z * (xx - yy)]
    parts += [0.625**0.5 * x * (xx - 3 * yy)]
    return torch.stack(parts, -1)
