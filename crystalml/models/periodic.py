"""The periodic Crysformer: attention over neighbour images, an energy for every atom."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crystalml.crystal import CrystalBatch
from crystalml.elements import element_features
from crystalml.geometry.neighbors import Neighbors, neighbor_list
from crystalml.models.encoder import Features
from crystalml.models.layers import MLP
from crystalml.models.pairs import Pairs, bessel, envelope, soft_floor, tabulate
from crystalml.models.zbl import REACH, ShortRange

_CAP = 6.0  # logits beyond are squashed, so that exp needs no maximum taken out


@dataclass(frozen=True)
class PeriodicConfig:
    """depth blocks of `dim` scalars and `vectors` vectors an atom; cutoff in Angstrom.

    message: how many scalars travel between atoms; they and the vectors are shared out among the heads.
    blind: in sums of covalent radii, the distance below which a pair looks alike at any distance; the true
    one is read from 1.3 times that on.
    """

    dim: int = 128
    depth: int = 3
    heads: int = 8
    vectors: int = 32
    message: int = 64
    edge_dim: int = 64
    basis: int = 12
    cutoff: float = 5.0
    blind: float = 0.5

    def __post_init__(self) -> None:
        if self.message % self.heads or self.vectors % self.heads:
            raise ValueError(
                f"heads {self.heads} must divide message {self.message} and vectors {self.vectors}"
            )
        if self.cutoff < REACH * 5.2:  # twice francium's radius, the largest
            raise ValueError(f"cutoff {self.cutoff} is shorter than the reach of the repulsion, 4.2 Angstrom")

    def build(self) -> PeriodicCrysformer:
        return PeriodicCrysformer(self)


class PeriodicCrysformer(nn.Module):
    """CrystalBatch -> Features that depend on distances and angles only, never on the choice of cell.

    Atoms carry scalars s (n, d) and vectors v (n, 3, c). All of them read a pair's distance through
    `soft_floor`: below half the sum of covalent radii (`blind`) they do not see it, and the repulsion that
    the energy head adds (`ShortRange`) rules alone.
    """

    elements: Tensor

    def __init__(self, config: PeriodicConfig) -> None:
        super().__init__()
        self.config = config
        table = element_features()
        self.register_buffer("elements", table)
        self.embed = nn.Linear(table.shape[1], config.dim)
        self.embed_own = nn.Embedding(table.shape[0], config.dim)
        nn.init.zeros_(self.embed_own.weight)  # what the table of properties cannot tell is learned
        self.short_range = ShortRange()
        self.edge_radial = nn.Linear(config.basis, config.edge_dim)
        self.edge_ends = nn.Linear(config.dim, 2 * config.edge_dim, bias=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)
        self.apply(unit_variance)
        nn.init.normal_(self.embed.weight, std=1 / 3)  # nine of the features are one, the others zero
        for block in self.blocks:
            # a quarter: sums over some dozens of neighbours come out of order one
            nn.init.normal_(block.filter.weight, std=0.25 * config.edge_dim**-0.5)  # type: ignore[union-attr, arg-type]

    @property
    def dim(self) -> int:
        return self.config.dim

    def forward(self, x: CrystalBatch, t: Tensor | None = None, edges: Neighbors | None = None) -> Features:
        """t is not read: there is one energy, that of the crystal as it stands. edges: found if not given."""
        if edges is None:
            edges = neighbor_list(x, self.config.cutoff)
        pairs = tabulate(x, edges, 2 * self.config.cutoff)
        node = self.attend(x.numbers, pairs)
        total = node.new_zeros(len(x), node.shape[-1]).index_add(0, x.index, node)
        energy = self.short_range(x.numbers, pairs)
        return Features(node, total / x.num_atoms[:, None], energy)

    def attend(self, numbers: Tensor, pairs: Pairs) -> Tensor:
        """(n, d) features of the atoms from the table of their neighbours."""
        low = self.config.blind * self.short_range.sums(numbers, pairs)
        r = soft_floor(pairs.distance, low, 1.3 * low) / self.config.cutoff
        unit = pairs.vector / pairs.distance[..., None]
        s = self.embed(self.elements[numbers]) + self.embed_own(numbers)
        own, other = self.edge_ends(s).chunk(2, -1)
        e = self.edge_radial(bessel(r, self.config.basis)) + own[:, None] + pairs.gather(other)
        e, weight, harmonics = nn.functional.silu(e), envelope(r), moments(unit)
        v = s.new_zeros(s.shape[0], 3, self.config.vectors)
        for block in self.blocks:
            s, v = block(s, v, e, weight, harmonics, pairs)
        return self.norm(s)


def unit_variance(module: nn.Module) -> None:
    """Weights that keep the size of what passes: torch's own shrink it by sqrt(3) a layer, and squares of
    vectors, which start small, would take thousands of steps to be noticed."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def moments(unit: Tensor) -> Tensor:
    """[1 | sqrt(3) u | sqrt(27/2) (u u^T - I/3)]: (..., 3) -> (..., 13), of unit size over the sphere."""
    square = unit[..., :, None] * unit[..., None, :]
    square = square - torch.eye(3, dtype=unit.dtype, device=unit.device) / 3
    return torch.cat([torch.ones_like(unit[..., :1]), 3**0.5 * unit, 13.5**0.5 * square.flatten(-2)], -1)


def bounded(x: Tensor) -> Tensor:
    """x / sqrt(1 + |x|^2), with |x|^2 over axis 1 and its mean over channels: smooth, the identity near 0.

    Products of vectors would otherwise grow from block to block as towers of powers.
    """
    return x * (1 + x.square().sum(1, keepdim=True).mean(-1, keepdim=True)) ** -0.5


class Block(nn.Module):
    """s, v <- s, v + attention over neighbours; s <- s + FFN(s, invariants of v and of second moments).

    a_ij = w_ij e^{l_ij} / (1 + e^{-S} sum_k w_ik e^{l_ik}), l_ij = q_i.k_j + q_i.W e_ij + p_i.u_ij with p_i a
    vector of atom i and w the envelope: at the cutoff an edge has weight, slope and curvature zero, and an
    atom without neighbours receives nothing. The learned S of each head goes from averages (S = 0) to sums
    (S large) over the neighbours: a softmax alone could not count them.
    Scalars travel as sum_j a_ij Y(u_ij) (W e_ij) m_j with Y = 1, u, u u^T - I/3, vectors as
    sum_j b_ij v_j and sum_j b'_ij u_ij.v_j with one b = a (W e) a head.
    """

    share: Tensor

    def __init__(self, config: PeriodicConfig) -> None:
        super().__init__()
        d, c, m, self.heads = config.dim, config.vectors, config.message, config.heads
        self.norm_1, self.norm_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.query, self.send = nn.Linear(d, m), nn.Linear(d, 2 * m)
        self.key_edge = nn.Parameter(torch.randn(self.heads, m // self.heads, config.edge_dim) / 8)
        self.aim = nn.Linear(c, self.heads, bias=False)
        self.saturation = nn.Parameter(torch.linspace(0.0, 4.0, self.heads))
        self.filter = nn.Linear(config.edge_dim, m + 2 * self.heads)
        share = torch.eye(self.heads).repeat_interleave(m // self.heads, 1)
        self.register_buffer("share", share, persistent=False)  # (heads, m): each head's channels
        self.out = nn.Linear(m + c, d)
        self.out_vector, self.out_tensor = nn.Linear(m, c, bias=False), nn.Linear(m, c, bias=False)
        self.pass_vector, self.turn = nn.Linear(c, c, bias=False), nn.Linear(c, c, bias=False)
        self.left, self.right = nn.Linear(c, c, bias=False), nn.Linear(c, c, bias=False)
        self.gate = nn.Linear(d, c)
        self.ffn = MLP(d + 3 * c, 2 * d, d)

    def forward(
        self, s: Tensor, v: Tensor, e: Tensor, weight: Tensor, harmonics: Tensor, pairs: Pairs
    ) -> tuple[Tensor, Tensor]:
        """s (n, d), v (n, 3, c), e (n, K, edge_dim), weight (n, K), harmonics (n, K, 13)."""
        moment, passed, along = self.receive(s, v, e, weight, harmonics, pairs)
        s = s + self.out(torch.cat([moment[:, 0], along], -1))
        h = self.norm_2(s)
        v = v + self.out_vector(moment[:, 1:4]) + self.pass_vector(passed)
        tensor = bounded(self.out_tensor(moment[:, 4:])).unflatten(1, (3, 3))
        turned = (tensor * self.turn(bounded(v))[:, None]).sum(2)
        v = (v + turned) * torch.sigmoid(self.gate(h))[:, None]
        left, right = self.left(bounded(v)), self.right(bounded(v))
        bent = (tensor * right[:, None]).sum(2)
        invariants = [(left * right).sum(1), tensor.square().sum((1, 2)), (left * bent).sum(1)]
        return s + self.ffn(torch.cat([h, *invariants], -1)), v

    def receive(
        self, s: Tensor, v: Tensor, e: Tensor, weight: Tensor, harmonics: Tensor, pairs: Pairs
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Moments (n, 13, m) of the scalars sent, sums (n, 3, c) and projections (n, c) of the vectors."""
        h = self.norm_1(s)
        v = bounded(v)
        m, c = self.share.shape[1], v.shape[-1]
        sent = pairs.gather(torch.cat([self.send(h), v.flatten(1)], -1))
        key, value, vector = sent.split((m, m, 3 * c), -1)
        a = self.attention(h, v, key, e, weight, harmonics[..., 1:4])
        radial, plain, dotted = self.filter(e).split((m, self.heads, self.heads), -1)
        moment = harmonics.mT @ (radial * value * (a @ self.share))
        b = torch.cat([a * plain, ((a * dotted)[..., None, :] * harmonics[..., 1:4, None]).flatten(-2)], -1)
        # All heads times all channels, of which each head keeps its own: cheaper than (n, K, 3, c) products.
        sums = (b.mT @ vector).unflatten(-1, (3, self.heads, -1)).unflatten(1, (4, self.heads))
        sums = sums.diagonal(dim1=2, dim2=4).movedim(-1, -2).flatten(-2)  # (n, 4, 3, c)
        return moment, sums[:, 0], sums[:, 1:].diagonal(dim1=1, dim2=2).sum(-1)

    def attention(self, h: Tensor, v: Tensor, key: Tensor, e: Tensor, weight: Tensor, unit: Tensor) -> Tensor:
        """(n, K, heads) weights a_ij."""
        q = self.query(h) * (self.query.out_features // self.heads) ** -0.5
        folded = torch.einsum("nhd,hde->neh", q.unflatten(-1, (self.heads, -1)), self.key_edge)
        spread = q[..., None] * self.share.mT
        logits = key @ spread + e @ folded + unit @ self.aim(v)
        raw = weight[..., None] * torch.exp(_CAP * torch.tanh(logits / _CAP))
        return raw / (1 + torch.exp(-self.saturation) * raw.sum(1, keepdim=True))
