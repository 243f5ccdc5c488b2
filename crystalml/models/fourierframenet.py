"""FourierFrameNet, the network of NeuralCrystal: local frames near by, Fourier features between cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from crystalml.crystal import CrystalBatch
from crystalml.geometry.fourier import fourier_angles
from crystalml.geometry.neighbors import Neighbors, Topology, neighbor_topology
from crystalml.models.encoder import METRIC_DIM, Features, Metric, NodeEmbedding, metric_features
from crystalml.models.frames import (
    FrameKind,
    cosine_cutoff,
    gaussians,
    local,
    orientation,
    paper_frames,
    periodic_frames,
)
from crystalml.models.layers import MLP, masked_softmax
from crystalml.models.pairs import Pairs, tabulate
from crystalml.models.periodic import bounded, unit_variance

_CAP = 6.0  # logits beyond are squashed, so that exp needs no maximum taken out


@dataclass(frozen=True)
class FourierFrameNetConfig:
    """depth layers over neighbours within `cutoff` Angstrom, then `inter` layers over all pairs of the cell.

    An atom carries dim scalars and `vectors` vectors; `message` scalars and all vectors travel. basis: S
    Gaussians of the distance; frequencies: F of the Fourier features. The paper gives S = 50 alone; the other
    defaults are ours.
    frame: "periodic", or "paper" (one cell, no images; not invariant to the origin). attention: "smooth", or
    "paper" (Eqs. 5-8 as printed). chiral: whether a crystal and its mirror image may differ, as printed;
    False makes all scalars O(3)-invariant. metric: lattice features beside the Fourier ones, None as printed.
    """

    dim: int = 128
    depth: int = 4
    inter: int = 2
    heads: int = 8
    vectors: int = 128
    message: int = 128
    edge_dim: int = 64
    basis: int = 50
    frequencies: int = 32
    time_dim: int = 64
    cutoff: float = 5.0
    metric: Metric | None = "gram"
    frame: FrameKind = "periodic"
    attention: Literal["smooth", "paper"] = "smooth"
    chiral: bool = True

    def __post_init__(self) -> None:
        if self.message % self.heads or self.vectors % self.heads:
            raise ValueError(
                f"heads {self.heads} must divide message {self.message} and vectors {self.vectors}"
            )

    def build(self) -> FourierFrameNet:
        return FourierFrameNet(self)


@dataclass(frozen=True)
class Table:
    """The pairs of a layer: partners, weight (n, 1, K), direction (n, 3, K), features (n, K, edge_dim).

    Partners come last where vectors of a few heads or directions would: long rows are what processors like.
    """

    pairs: Pairs
    weight: Tensor
    unit: Tensor
    features: Tensor


class PairFeatures(nn.Module):
    """u_ij = SiLU(W [orientation | RBF or Fourier] + a(Z_i) + b(Z_j)): first layer of FO and MLP_a, shared.

    `odd` inputs change sign in a mirror; without chirality the mean over both signs is taken.
    """

    def __init__(self, even: int, odd: int, dim: int, edge_dim: int) -> None:
        super().__init__()
        self.even = nn.Linear(even, edge_dim)
        self.odd = nn.Linear(odd, edge_dim, bias=False) if odd else None
        self.ends = nn.Linear(dim, 2 * edge_dim, bias=False)

    def forward(self, h: Tensor, pairs: Pairs, even: Tensor, odd: Tensor | None, chiral: bool) -> Tensor:
        own, other = self.ends(h).chunk(2, -1)
        u = self.even(even) + own[:, None] + pairs.gather(other)
        if self.odd is None or odd is None:
            return silu(u)
        w = self.odd(odd)
        return silu(u + w) if chiral else 0.5 * (silu(u + w) + silu(u - w))


class FourierFrameNet(nn.Module):
    """CrystalBatch, t -> Features with vectors (n, 3, c), which turn with the crystal.

    t: (b,) signed noise level, 0 = clean; see `crystalml.objectives.geossl`. The layers over neighbours see
    distances and frames only, whatever the cell; those over all pairs (Eq. 11) see fractional coordinates,
    so they know the cell: use Niggli-reduced primitive cells. With inter=0 no cell is special.
    """

    def __init__(self, config: FourierFrameNetConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.embed = NodeEmbedding(c.dim, c.time_dim)
        self.embed_own = nn.Embedding(self.embed.elements.shape[0], c.dim)
        self.near = PairFeatures(c.basis + 9, 0, c.dim, c.edge_dim)
        metric = METRIC_DIM[c.metric] if c.metric else 0
        self.metric_norm = nn.LayerNorm(metric) if metric else None
        self.all = PairFeatures(metric + 3 * c.frequencies + 9, 3 * c.frequencies, c.dim, c.edge_dim)
        self.blocks = nn.ModuleList(Block(c, counts=True) for _ in range(c.depth))
        self.inter = nn.ModuleList(Block(c, counts=False) for _ in range(c.inter))
        self.readout = nn.Linear(3 * c.vectors + c.vectors, c.dim)
        self.norm = nn.LayerNorm(c.dim)
        self.apply(unit_variance)
        nn.init.zeros_(self.embed_own.weight)  # what the table of properties cannot tell is learned
        if not c.inter:
            del self.all, self.metric_norm  # no weights that no gradient reaches

    @property
    def dim(self) -> int:
        return self.config.dim

    @property
    def vectors(self) -> int:
        return self.config.vectors

    @property
    def cutoff(self) -> float:
        return self.config.cutoff

    def forward(
        self, x: CrystalBatch, t: Tensor | None = None, edges: Neighbors | Topology | None = None
    ) -> Features:
        """edges: neighbours within the cutoff, found if not given."""
        c = self.config
        periodic = c.frame == "periodic"
        found = edges
        if found is None:
            free = torch.zeros_like(x.pbc)
            found = neighbor_topology(x if periodic else x.replace(labels={"pbc": free}), c.cutoff)
        near = tabulate(x, found, 2 * c.cutoff)
        frames = periodic_frames(near, c.cutoff) if periodic else paper_frames(x, near, c.cutoff)
        time = x.num_atoms.new_zeros(len(x)) if t is None else t
        h = self.embed(x, time) + self.embed_own(x.numbers)
        s, v = self.core(h, frames, near, *self._cell(x))
        total = s.new_zeros(len(x), s.shape[-1]).index_add(0, x.index, s)
        return Features(s, total / x.num_atoms[:, None], vector=v)

    def _cell(self, x: CrystalBatch) -> tuple[Pairs, Tensor, Tensor, Tensor] | tuple[()]:
        """All pairs of each cell, whether they exist, their Fourier angles and the lattice's features."""
        if not self.config.inter:
            return ()
        pairs, real, delta = cell_pairs(x)
        angle = fourier_angles(delta, self.config.frequencies)
        lattice = x.lattice.new_zeros(len(x), 0)
        if self.config.metric is not None and self.metric_norm is not None:
            lattice = self.metric_norm(metric_features(x.lattice, self.config.metric))
        return pairs, real, angle, lattice[x.index]

    def core(
        self,
        h: Tensor,
        frames: Tensor,
        near: Pairs,
        cell: Pairs | None = None,
        real: Tensor | None = None,
        angle: Tensor | None = None,
        lattice: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(n, dim) scalars and (n, 3, vectors) vectors: tensors in and out, so it compiles."""
        c = self.config
        s, v = h, h.new_zeros(h.shape[0], 3, c.vectors)
        weight = cosine_cutoff(near.distance, c.cutoff)
        radial = gaussians(near.distance, c.basis, c.cutoff) * weight[..., None]
        even = torch.cat([orientation(frames, near, c.chiral), radial], -1)
        unit = (near.vector / near.distance[..., None]).mT.contiguous()
        table = Table(near, weight[:, None], unit, self.near(h, near, even, None, c.chiral))
        for block in self.blocks:
            s, v = block(s, v, frames, table)
        if cell is not None and real is not None and angle is not None and lattice is not None:
            given = lattice[:, None].expand(-1, angle.shape[1], -1)
            even = torch.cat([orientation(frames, cell, c.chiral), given, angle.cos()], -1)
            unit = (cell.vector / (1 + cell.distance.square())[..., None].sqrt()).mT.contiguous()
            table = Table(cell, real[:, None], unit, self.all(h, cell, even, angle.sin(), c.chiral))
            for block in self.inter:
                s, v = block(s, v, frames, table)
        seen = torch.cat([local(bounded(v), frames, c.chiral), bounded(v).square().sum(1)], -1)
        return self.norm(s + self.readout(seen)), v


def cell_pairs(x: CrystalBatch) -> tuple[Pairs, Tensor, Tensor]:
    """Every ordered pair of a cell, itself included: Pairs, (n, N) 1 or 0 for real ones, (n, N, 3) F_j - F_i.

    As a direction between periodic sets of points serves sin(2 pi (F_j - F_i)) L / 2 pi: the displacement for
    near atoms, smooth and periodic for all.
    """
    index, width = x.index, torch.arange(int(x.num_atoms.max()), device=x.device)
    own = torch.arange(len(index), device=x.device)[:, None]
    real = width < x.num_atoms[index][:, None]
    j = torch.where(real, x.offsets[index][:, None] + width, own)
    delta = x.frac.index_select(0, j.flatten()).unflatten(0, j.shape) - x.frac[:, None]
    vector = torch.sin(2 * torch.pi * delta) / (2 * torch.pi) @ x.lattice.index_select(0, index)
    distance = (vector.square().sum(-1) + 1e-12).sqrt()
    return Pairs(j, vector, distance), real.to(x.dtype), delta


class Block(nn.Module):
    """Four-way attention between scalars and vectors, then feed-forward (NeuralCrystal, Eqs. 4-10, pre-norm).

    Logits l^ab_ij = FO + MLP_ab(distance or Fourier) + q^a_i . k^b_j / sqrt(d), a, b in {s, v}; q^v, k^v read
    proj_i(v) = SiLU(W E_i v_i). With A their weights,
      s_i += W [sum_j A^ss (f_ij W s_j), proj_i(sum_j A^sv v_j)],
      v_i += W sum_j A^vv v_j + W sum_j A^vs (f_ij W s_j) u_ij.
    Eq. 8 prints A^vs twice and A^sv never; read as query -> key each is used once. proj of the sum stands
    for the sum of proj: one product an atom instead of one a pair.
    "smooth": A = w e^l / (e^S' + sum w e^l) up to a factor, with w the cutoff function, so that no neighbour
    appears at the cutoff with a finite weight; a learned S goes from averages to sums, since a softmax cannot
    count neighbours; values see the pair through f_ij = W u_ij, for a softmax over equal neighbours is blind
    to their distance. "paper": softmax, f = 1, A^vs in both lines.
    """

    share: Tensor

    def __init__(self, config: FourierFrameNetConfig, counts: bool) -> None:
        super().__init__()
        d, m, c, self.heads = config.dim, config.message, config.vectors, config.heads
        self.paper, self.chiral = config.attention == "paper", config.chiral
        self.norm_1, self.norm_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.project = nn.Linear(3 * c, m)
        self.scalar, self.vector = nn.Linear(d, 3 * m), nn.Linear(m, 2 * m)
        self.bias = nn.Linear(config.edge_dim, 4 * self.heads)
        if not self.paper:
            self.filter, self.sign = nn.Linear(config.edge_dim, m), nn.Linear(config.edge_dim, 2 * self.heads)
        self.saturation = (
            nn.Parameter(torch.linspace(0.0, 4.0, self.heads)) if counts and not self.paper else None
        )
        share = torch.eye(self.heads).repeat_interleave(m // self.heads, 1)
        self.register_buffer("share", share, persistent=False)  # (heads, m): each head's channels
        self.out = nn.Linear(2 * m, d)
        self.pass_vector, self.turn = nn.Linear(c, c, bias=False), nn.Linear(m, c, bias=False)
        self.gate = nn.Linear(d, c)
        self.ffn = MLP(d + m + c, 2 * d, d)

    def forward(self, s: Tensor, v: Tensor, frames: Tensor, table: Table) -> tuple[Tensor, Tensor]:
        """s (n, d), v (n, 3, c), frames (n, 3, 3)."""
        h, sent = self.norm_1(s), bounded(v)
        scalar, carried, passed, pushed = self.receive(h, sent, frames, table)
        turned = self.proj(carried, frames)
        s = s + self.out(torch.cat([scalar, turned], -1))
        h = self.norm_2(s)
        v = (v + self.pass_vector(passed) + self.turn(pushed)) * torch.sigmoid(self.gate(h))[:, None]
        seen = bounded(v)
        return s + self.ffn(torch.cat([h, self.proj(seen, frames), seen.square().sum(1)], -1)), v

    def proj(self, v: Tensor, frames: Tensor) -> Tensor:
        """(n, m) what an atom sees of vectors in its own frame (Eq. 7)."""
        return silu(self.project(local(v, frames, self.chiral)))

    def receive(self, h: Tensor, v: Tensor, frames: Tensor, table: Table) -> tuple[Tensor, ...]:
        """sum A^ss f W s_j (n, m), sums of A^sv v_j and A^vv v_j (n, 3, c), A^vs f W s_j u_ij (n, 3, m)."""
        heads, c = self.heads, v.shape[-1]
        query_s, key_s, value = self.scalar(h).chunk(3, -1)
        query_v, key_v = self.vector(self.proj(v, frames)).chunk(2, -1)
        query = torch.stack([query_s, query_v], 1)
        of_s, of_v, sign = self.of_pairs(table.features)
        on_s, norm_s = self.weights(query, table.pairs.gather(key_s), of_s, table.weight)
        on_v, norm_v = self.weights(query, table.pairs.gather(key_v), of_v, table.weight)
        value, vector = table.pairs.gather(value), table.pairs.gather(v.mT.flatten(1))
        if sign is None:
            on_v, norm_v = torch.cat([on_s[:, heads:], on_v[:, heads:]], 1), norm_s
        else:
            value, on_v = self.filter(table.features) * value, on_v * sign
        aimed = (on_s[:, None, heads:] * table.unit.to(on_s.dtype)[:, :, None]).flatten(1, 2)
        norm = torch.cat([norm_s[:, :1], norm_s[:, 1:].expand(-1, 3, -1)], 1)
        moments = own_heads(torch.cat([on_s[:, :heads], aimed], 1), value, norm)
        vectors = own_heads(on_v, vector, norm_v).unflatten(-1, (c, 3))
        carried, passed = vectors.mT.unbind(1)
        return moments[:, 0], carried, passed, moments[:, 1:]

    def of_pairs(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What pairs add to the logits of [ss, vs] and [sv, vv], and signs of [sv, vv]: (n, 2 heads, K)."""
        both = (self.bias.weight, self.bias.bias)
        w, b = (x.unflatten(0, (2, 2, -1)).transpose(0, 1).flatten(0, 2) for x in both)
        if not self.paper:
            w, b = torch.cat([w / _CAP, self.sign.weight]), torch.cat([b / _CAP, self.sign.bias])
        found = torch.baddbmm(b[:, None], w.expand(len(features), -1, -1), features.mT)
        on_s, on_v, *sign = found.split(2 * self.heads, 1)
        return on_s, on_v, sign[0] if sign else None

    def weights(self, query: Tensor, key: Tensor, bias: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 2 heads, K) attention of query (n, 2, m) to key (n, K, m), and (n, 2, heads) its divisor."""
        m = query.shape[-1]
        scale = (m // self.heads) ** -0.5 / (1 if self.paper else _CAP)
        spread = (query[:, :, None] * (scale * self.share)).flatten(1, 2)  # each head asks its own channels
        logits = torch.baddbmm(bias, spread, key.mT)
        if self.paper:
            a = masked_softmax(logits, weight > 0).to(key.dtype)
            return a, a.new_ones(len(a), 2, self.heads)
        raw = weight * torch.exp(_CAP * torch.tanh(logits))
        total = raw.sum(-1).unflatten(1, (2, -1))
        if self.saturation is None:
            return raw, total.clamp(min=1e-9)
        return raw, 1 + torch.exp(-self.saturation) * total


def own_heads(weight: Tensor, value: Tensor, norm: Tensor) -> Tensor:
    """sum_j weight_jh value_j / norm_h, where each head keeps its own share of the channels.

    weight (n, r heads, K), value (n, K, c), norm (n, r, heads) -> (n, r, c). All heads times all channels in
    one product are cheaper than tensors of (n, K, r, c).
    """
    heads = norm.shape[-1]
    all_heads = (weight @ value).unflatten(1, (-1, heads)).unflatten(-1, (heads, -1))
    own = all_heads.diagonal(dim1=2, dim2=3).movedim(-1, -2)  # (n, r, heads, c / heads)
    return (own / norm[..., None]).flatten(-2)
