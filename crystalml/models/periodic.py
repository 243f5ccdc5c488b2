"""The periodic Crysformer: attention over neighbour images, an energy for every atom."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from crystalml.crystal import CrystalBatch
from crystalml.elements import element_features
from crystalml.geometry.neighbors import Neighbors, Topology, neighbor_topology
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
    scale: size at which vectors and second moments saturate, see `bounded`. Those of real crystals are of
    order 10: with 1, they are all but directions, and energies bend sharply about symmetric sites.
    hidden: width of the feed-forward networks in `dim`. What they do is done once an atom, not once a pair:
    the cheapest place for weights.
    order: of the highest moments of an atom's surroundings, 2 or 3.
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
    scale: float = 1.0
    hidden: int = 2
    order: int = 2

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise ValueError(f"order {self.order}: moments are of order 2 or 3")
        if self.message % self.heads or self.vectors % self.heads:
            raise ValueError(
                f"heads {self.heads} must divide message {self.message} and vectors {self.vectors}"
            )
        if self.cutoff < REACH * 5.2:  # twice francium's radius, the largest
            raise ValueError(f"cutoff {self.cutoff} is shorter than the reach of the repulsion, 4.2 Angstrom")

    def build(self) -> PeriodicCrysformer:
        return PeriodicCrysformer(self)


@dataclass(frozen=True)
class Surroundings:
    """What all blocks read of the pairs: edge (n, K, edge_dim), weight (n, K, 1), harmonics
    (n, (order + 1)^2, K) and unit (n, K, 3), the vectors among these."""

    pairs: Pairs
    edge: Tensor
    weight: Tensor
    harmonics: Tensor
    unit: Tensor


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

    def grown(self, config: PeriodicConfig) -> PeriodicCrysformer:
        """A network at least as wide, deep and of at least the order, that says the same: what is new in it
        starts at random, unheard."""
        net = PeriodicCrysformer(config).to(next(self.parameters()))
        known = self.state_dict()
        for name, value in net.state_dict().items():
            old = known.get(name)
            if name.endswith("ffn.2.weight") or (
                old is None and name.endswith(("out.weight", "bend.weight"))
            ):
                value.zero_()
            if old is not None:
                if name.endswith("ffn.0.weight"):
                    value[: len(old)] = 0.0  # old units do not read what is new
                value[tuple(slice(n) for n in old.shape)] = old
        return net

    def forward(
        self, x: CrystalBatch, t: Tensor | None = None, edges: Neighbors | Topology | None = None
    ) -> Features:
        """t is not read: there is one energy, that of the crystal as it stands. edges: found if not given."""
        found = neighbor_topology(x, self.config.cutoff) if edges is None else edges
        pairs = tabulate(x, found, 2 * self.config.cutoff)
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
        e = self.edge_radial(bessel(r, self.config.basis)) + (own[:, None] + pairs.gather(other))
        harmonics = moments(unit, self.config.order)
        near = Surroundings(pairs, silu(e), envelope(r)[..., None], harmonics.mT, harmonics[..., 1:4])
        v = seen = None
        for block in self.blocks:
            s, v, seen = block(s, v, seen, near)
        return self.norm(s)


def unit_variance(module: nn.Module) -> None:
    """Weights that keep the size of what passes: torch's own shrink it by sqrt(3) a layer, and squares of
    vectors, which start small, would take thousands of steps to be noticed."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def moments(unit: Tensor, order: int = 2) -> Tensor:
    """(..., 3) -> (..., (order + 1)^2): 1, sqrt(3) u, and of sqrt(27/2) (u u^T - I/3) and, in order 3, of
    sqrt(135/2) (u u u - u's share of its traces) the entries that the others follow from (`whole_tensor`).

    Each whole tensor has entries of unit size over the sphere.
    """
    x, y, z = unit.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    parts = [torch.ones_like(x), *(3**0.5 * unit).unbind(-1)]
    parts += [13.5**0.5 * part for part in (x * y, y * z, z * x, xx - 1 / 3, yy - 1 / 3)]
    if order == 3:
        third = (x * y * z, x * (yy - 0.2), x * (zz - 0.2), y * (zz - 0.2), y * (xx - 0.2), z * (xx - 0.2),
                 z * (yy - 0.2))  # fmt: skip
        parts += [67.5**0.5 * part for part in third]
    return torch.stack(parts, -1)


def whole_tensor(order: int) -> Tensor:
    """(3^order, 2 order + 1): all entries of a symmetric tensor without traces from those of `moments`.

    Of whole numbers, unlike what orthonormal harmonics would need, so exact in every precision.
    """
    names = (
        ("xy", "yz", "xz", "xx", "yy") if order == 2 else ("xyz", "xyy", "xzz", "yzz", "xxy", "xxz", "yyz")
    )
    table = torch.zeros(3**order, len(names))
    for row, axes in enumerate(itertools.product("xyz", repeat=order)):
        name = "".join(sorted(axes))
        if name in names:
            table[row, names.index(name)] = 1.0
            continue
        # zz, xxx, yyy, zzz: minus the two entries with another axis twice instead
        rest, axis = name[:-2], name[-1]
        for other in "xyz".replace(axis, ""):
            table[row, names.index("".join(sorted(rest + 2 * other)))] = -1.0
    return table


def bounded(x: Tensor, scale: float = 1.0) -> Tensor:
    """x / sqrt(scale^2 + |x|^2), with |x|^2 over axis 1 and its mean over channels: smooth, linear near 0.

    Products of vectors would otherwise grow from block to block as towers of powers.
    """
    return x * (scale**2 + (x * x).sum((1, 2), keepdim=True) / x.shape[2]).rsqrt()


class Block(nn.Module):
    """s, v <- s, v + attention over neighbours; s <- s + FFN(s, invariants of v and of the moments).

    a_ij = w_ij e^{l_ij} / (1 + e^{-S} sum_k w_ik e^{l_ik}), l_ij = q_i.k_j + q_i.W e_ij + p_i.u_ij with p_i a
    vector of atom i and w the envelope: at the cutoff an edge has weight, slope and curvature zero, and an
    atom without neighbours receives nothing. The learned S of each head goes from averages (S = 0) to sums
    (S large) over the neighbours: a softmax alone could not count them.
    Scalars travel as sum_j a_ij Y(u_ij) (W e_ij) m_j with Y = 1, u, u u^T - I/3 and, in order 3, u u u
    without its traces; vectors as sum_j b_ij v_j and sum_j b'_ij u_ij.v_j with one b = a (W e) a head.
    """

    share: Tensor
    whole_2: Tensor
    whole_3: Tensor

    def __init__(self, config: PeriodicConfig) -> None:
        super().__init__()
        d, c, m = config.dim, config.vectors, config.message
        self.heads, self.scale = config.heads, config.scale
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
        self.register_buffer("whole_2", whole_tensor(2), persistent=False)
        self.order = config.order
        if config.order == 3:
            self.register_buffer("whole_3", whole_tensor(3), persistent=False)
            self.out_third, self.bend = nn.Linear(m, c, bias=False), nn.Linear(c, c, bias=False)
        self.ffn = MLP(d + (3 if config.order == 2 else 7) * c, config.hidden * d, d)

    def forward(
        self, s: Tensor, v: Tensor | None, seen: Tensor | None, near: Surroundings
    ) -> tuple[Tensor, Tensor, Tensor]:
        """s (n, d), v (n, 3, c) and seen = bounded(v), None before the first block: no vectors yet."""
        moments, passed, along = self.receive(s, seen, near)
        scalar, vector, *higher = moments.split([2 * order + 1 for order in range(self.order + 1)], 1)
        s = s + self.out(torch.cat([scalar.squeeze(1), along], -1))
        h = self.norm_2(s)
        start = self.out_vector(vector)
        v = start if v is None or passed is None else v + start + self.pass_vector(passed)
        second = bounded(self.whole_2 @ self.out_tensor(higher[0]), self.scale)
        matrix = second.unflatten(1, (3, 3))
        turned = (matrix * self.turn(bounded(v, self.scale))[:, None]).sum(2)
        third = None
        if self.order == 3:
            third = bounded(self.whole_3 @ self.out_third(higher[1]), self.scale)
            turned = turned + self.bend((third.unflatten(1, (3, 9)) * second[:, None]).sum(2))
        v = (v + turned) * torch.sigmoid(self.gate(h))[:, None]
        seen = bounded(v, self.scale)
        left, right = linear(seen, torch.cat([self.left.weight, self.right.weight])).chunk(2, -1)
        bent = (matrix * right[:, None]).sum(2)
        invariants = [(left * right).sum(1), (second * second).sum(1), (left * bent).sum(1)]
        if third is not None:
            folded = (third.unflatten(1, (9, 3)) * right[:, None]).sum(2)  # (n, 9, c)
            square = (matrix[:, :, :, None] * matrix[:, None]).sum(2).flatten(1, 2)
            invariants += [(third * third).sum(1), (folded * second).sum(1), (square * second).sum(1)]
            invariants += [(folded.unflatten(1, (3, 3)) * left[:, None]).sum(2).mul(left).sum(1)]
        return s + self.ffn(torch.cat([h, *invariants], -1)), v, seen

    def receive(
        self, s: Tensor, seen: Tensor | None, near: Surroundings
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Moments (n, (order + 1)^2, m) of the scalars sent; sums (n, 3, c) and projections (n, c) of the
        vectors."""
        h, m, c = self.norm_1(s), self.share.shape[1], self.gate.out_features
        sent = self.send(h) if seen is None else torch.cat([self.send(h), seen.flatten(1)], -1)
        key, value, vector = near.pairs.gather(sent).split((m, m, sent.shape[1] - 2 * m), -1)
        a = self.attention(h, seen, key, near)
        radial, plain, dotted = self.filter(near.edge).split((m, self.heads, self.heads), -1)
        moment = torch.bmm(near.harmonics, radial * value * (a @ self.share))
        if seen is None:
            return moment, None, moment.new_zeros(moment.shape[0], c)
        b = torch.cat([a * plain, ((a * dotted)[..., None, :] * near.unit[..., None]).flatten(-2)], -1)
        # All heads times all channels, of which each head keeps its own: cheaper than (n, K, 3, c) products.
        sums = torch.bmm(b.mT, vector).unflatten(-1, (3, self.heads, -1)).unflatten(1, (4, self.heads))
        sums = sums.diagonal(dim1=2, dim2=4).movedim(-1, -2).flatten(-2)  # (n, 4, 3, c)
        passed, along = sums.split((1, 3), 1)
        return moment, passed.squeeze(1), along.diagonal(dim1=1, dim2=2).sum(-1)

    def attention(self, h: Tensor, seen: Tensor | None, key: Tensor, near: Surroundings) -> Tensor:
        """(n, K, heads) weights a_ij. Logits are divided by their cap as they are made."""
        q = self.query(h) * ((key.shape[-1] // self.heads) ** -0.5 / _CAP)
        asked = q[:, None] * self.share  # (n, heads, m): each head asks its own channels
        folded = asked @ self.key_edge.flatten(0, 1)
        logits = torch.baddbmm(torch.bmm(near.edge, folded.mT), key, asked.mT)
        if seen is not None:
            logits = torch.baddbmm(logits, near.unit, linear(seen, self.aim.weight / _CAP))
        raw = near.weight * torch.exp(_CAP * torch.tanh(logits))
        return raw / (1 + torch.exp(-self.saturation) * raw.sum(1, keepdim=True))
