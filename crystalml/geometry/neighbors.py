"""Periodic neighbours: vesin finds the pairs, torch recomputes their vectors so that gradients flow."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from crystalml.errors import CellError, NonFiniteError
from crystalml.geometry.images import MAX_CANDIDATES, candidates, image_pairs

if TYPE_CHECKING:
    from crystalml.crystal import CrystalBatch

MAX_PAIRS = 50_000_000  # of one crystal; more means a collapsed cell, and would exhaust the memory


class Topology(NamedTuple):
    """Which m directed pairs there are, sorted by i. i, j: (m,) atoms of the flat batch. shift: (m, 3)."""

    i: Tensor
    j: Tensor
    shift: Tensor


class Neighbors(NamedTuple):
    """The m directed pairs of a batch: vector = x_j + shift @ L - x_i, sorted by i.

    i, j: (m,) atoms of the flat batch. shift: (m, 3) integers. vector: (m, 3) and distance: (m,) in Angstrom.
    """

    i: Tensor
    j: Tensor
    shift: Tensor
    vector: Tensor
    distance: Tensor


def neighbor_list(batch: CrystalBatch, cutoff: float) -> Neighbors:
    """All pairs over all images with |x_j + k L - x_i| < cutoff, both directions, own images included.

    Exact for skewed and for small cells. The label "pbc" of the batch, (b, 3) bool, names the periodic
    directions (default: all); along the others atoms may lie anywhere and have no images.
    `vector` and `distance` are differentiable in frac and lattice; the choice of pairs is not, so weigh them
    with something that vanishes at the cutoff.
    Raises NonFiniteError, CellError (singular, or so small that the list would not fit).
    """
    i, j, shift = neighbor_topology(batch, cutoff)
    delta = batch.frac[j] - batch.frac[i] + shift.to(batch.dtype)
    vector = torch.einsum("mi,mij->mj", delta, batch.lattice[batch.index[i]])
    return Neighbors(i, j, shift, vector, torch.linalg.vector_norm(vector, dim=-1))


def neighbor_topology(batch: CrystalBatch, cutoff: float) -> Topology:
    """`neighbor_list` without the vectors."""
    _check(batch, cutoff)
    pbc, lattice = batch.pbc, batch.lattice.detach()
    cell = batch.frac.detach().floor() * pbc[batch.index]  # the search sees every atom inside the home cell
    home = batch.frac.detach() - cell
    if batch.device.type == "cuda":
        reach, counts = candidates(lattice, batch.num_atoms, pbc, cutoff)
        if int(counts.sum()) <= MAX_CANDIDATES:
            i, j, shift = image_pairs(home, lattice, batch.num_atoms, reach, cutoff)
        else:
            i, j, shift = _search(batch, home, cutoff)
    else:
        i, j, shift = _search(batch, home, cutoff)
    return Topology(i, j, shift + (cell[i] - cell[j]).long())


def select_topology(edges: Topology, batch: CrystalBatch, which: Tensor) -> Topology:
    """The pairs of batch[which], which (k,) numbers of crystals, out of those of the batch."""
    pairs = torch.bincount(batch.index[edges.i], minlength=len(batch))
    count, atoms = pairs[which], batch.num_atoms[which]
    first = (pairs.cumsum(0) - pairs)[which] - (count.cumsum(0) - count)
    chosen = first.repeat_interleave(count)
    chosen = chosen + torch.arange(len(chosen), device=chosen.device)
    moved = ((atoms.cumsum(0) - atoms) - batch.offsets[which]).repeat_interleave(count)
    return Topology(edges.i[chosen] + moved, edges.j[chosen] + moved, edges.shift[chosen])


def nearest_neighbors(batch: CrystalBatch, count: int) -> tuple[Neighbors, Tensor]:
    """The pairs of each atom with its `count` nearest, and (n,) the distance of the next, in Angstrom.

    An edge weighed by something that vanishes at that distance may swap places with the next one without a
    trace: ties, which perfect crystals are full of, do not matter. An atom that sees fewer within the sphere
    that holds 1.5 x count on average keeps those, and the sphere's radius takes the place of the distance.
    """
    spacing = (batch.volume / batch.num_atoms) ** (1 / 3)
    radius = (1.5 * count * 3 / (4 * torch.pi)) ** (1 / 3) * spacing
    scaled = batch.replace(lattice=batch.lattice / radius[:, None, None])
    found = neighbor_list(scaled, 1.0)
    atoms = len(batch.numbers)
    order = found.distance.detach().argsort()
    order = order[found.i[order].argsort(stable=True)]
    i, distance = found.i[order], found.distance[order] * radius[batch.index[found.i[order]]]
    amount = torch.bincount(i, minlength=atoms)
    rank = torch.arange(len(i), device=i.device) - (amount.cumsum(0) - amount)[i]
    near, next_one = rank < count, rank == count
    reach = radius[batch.index].index_copy(0, i[next_one], distance[next_one])
    kept = order[near]
    vector = found.vector[kept] * radius[batch.index[i[near]], None]
    return Neighbors(i[near], found.j[kept], found.shift[kept], vector, distance[near]), reach


def _search(batch: CrystalBatch, home: Tensor, cutoff: float) -> tuple[Tensor, Tensor, Tensor]:
    """(i, j, shift), crystal by crystal on the CPU; home: (n, 3) fractional coordinates in the home cell."""
    import vesin

    search = vesin.NeighborList(cutoff=cutoff, full_list=True, sorted=True, n_threads=1)
    lattice, pbc, counts = batch.lattice.detach().double().cpu(), batch.pbc.cpu(), batch.num_atoms.cpu()
    points = [x.numpy() for x in _positions(home.double().cpu(), lattice, counts)]
    found = [
        search.compute(points=x, box=box, periodic=periodic, quantities="PS")
        for x, box, periodic in zip(points, lattice.numpy(), pbc.numpy(), strict=True)
    ]
    pairs, shift = (np.concatenate(part).astype(np.int64) for part in zip(*found, strict=True))
    before = (counts.cumsum(0) - counts).repeat_interleave(torch.tensor([len(p) for p, _ in found]))
    i, j = (torch.from_numpy(pairs).T + before).to(batch.device)
    return i, j, torch.from_numpy(shift).to(batch.device)


def min_distances(batch: CrystalBatch) -> Tensor:
    """(b,) shortest interatomic distance of each crystal in Angstrom, over all images, own images included.

    No arrangement is sparser than close packing: d <= (sqrt(2) V / N)^(1/3), and an atom's own image is no
    farther than the shortest lattice vector, so a search within the smaller of the two always finds the pair.
    Below 0.01 Angstrom that bound itself is returned; NaN marks crystals with NaN or infinite entries.
    """
    import vesin

    lattice = batch.lattice.detach().double().cpu()
    counts = batch.num_atoms.cpu()
    frac = batch.frac.detach().double().cpu()
    owner = torch.arange(len(batch)).repeat_interleave(counts)
    bad = torch.zeros(len(batch)).index_add(0, owner, (~frac.isfinite()).any(-1).float()) > 0
    bad |= ~lattice.isfinite().flatten(1).all(-1)
    lattice = torch.where(bad[:, None, None], torch.eye(3, dtype=torch.float64), lattice)
    box = minkowski_reduce(lattice)
    packing = (2**0.5 * torch.linalg.det(box).abs() / counts) ** (1 / 3)
    bound = torch.minimum(packing, torch.linalg.vector_norm(box, dim=-1).amin(-1))
    bound[bad] = torch.nan
    out = bound.clone()
    for k, x in enumerate(_positions(frac - frac.floor(), lattice, counts)):
        if bound[k] > 0.01:  # False for NaN
            cutoff = float(bound[k]) * (1 + 1e-6)
            search = vesin.NeighborList(cutoff=cutoff, full_list=False, n_threads=1)
            (distance,) = search.compute(
                points=x.numpy(), box=box[k].numpy(), periodic=True, quantities="d", copy=False
            )
            out[k] = min(float(distance.min(initial=float(bound[k]))), float(bound[k]))
    return out.to(batch.device, batch.dtype)


def minkowski_reduce(lattice: Tensor) -> Tensor:
    """(b, 3, 3) -> the same lattices with the shortest possible vectors as rows, shortest first.

    Greedy reduction (Nguyen & Stehle, ACM Trans. Algorithms 5, 46 (2009)): each vector in turn loses the
    nearest lattice vector of the shorter ones. Not differentiable; the handedness may change.
    """
    near = torch.tensor(
        list(itertools.product((-1, 0, 1), repeat=2)), dtype=lattice.dtype, device=lattice.device
    )
    lattice = lattice.detach()
    for _ in range(200):  # converges like Euclid's algorithm: a handful of rounds
        before = torch.linalg.vector_norm(lattice, dim=-1)
        order = before.argsort(-1)[..., None].expand_as(lattice)
        a, b, c = lattice.gather(-2, order).unbind(-2)
        b = b - _ratio((a * b).sum(-1), (a * a).sum(-1)).round()[:, None] * a
        flat = torch.stack([a, b], -2)
        # the 2 x 2 normal equations of c = x a + y b, then the best of the nine neighbours
        gram, rhs = flat @ flat.mT, (flat @ c[..., None])[..., 0]
        det = gram[:, 0, 0] * gram[:, 1, 1] - gram[:, 0, 1] ** 2
        x = _ratio(gram[:, 1, 1] * rhs[:, 0] - gram[:, 0, 1] * rhs[:, 1], det)
        y = _ratio(gram[:, 0, 0] * rhs[:, 1] - gram[:, 0, 1] * rhs[:, 0], det)
        choices = c[:, None] - (torch.stack([x, y], -1).round()[:, None] + near) @ flat
        best = torch.linalg.vector_norm(choices, dim=-1).argmin(-1)
        c = choices[torch.arange(len(choices), device=lattice.device), best]
        lattice = torch.stack([a, b, c], -2)
        after = torch.linalg.vector_norm(lattice, dim=-1)
        if not (after.sum(-1) < before.sum(-1) * (1 - 1e-12)).any():
            break
    order = torch.linalg.vector_norm(lattice, dim=-1).argsort(-1)[..., None].expand_as(lattice)
    return lattice.gather(-2, order)


def _ratio(top: Tensor, bottom: Tensor) -> Tensor:
    """top / bottom, and 0 where a degenerate lattice makes the bottom vanish."""
    return torch.where(
        bottom > 0, top / bottom.clamp(min=torch.finfo(bottom.dtype).tiny), torch.zeros_like(top)
    )


def _positions(frac: Tensor, lattice: Tensor, counts: Tensor) -> list[Tensor]:
    """Cartesian positions, one (n_k, 3) tensor a crystal."""
    cart = (frac[:, None] @ lattice.repeat_interleave(counts, 0))[:, 0]
    return list(cart.split(counts.tolist()))


def _check(batch: CrystalBatch, cutoff: float) -> None:
    """vesin divides by the cell's volume and ends the process on NaN: refuse both here."""
    if not 0 < cutoff < float("inf"):
        raise ValueError(f"cutoff {cutoff} must be a positive length in Angstrom")
    if not (batch.frac.isfinite().all() and batch.lattice.isfinite().all()):
        raise NonFiniteError(
            "NaN or infinity in the coordinates or the cell: there are no neighbours to find"
        )
    volume = batch.volume.detach().double()
    pairs = batch.num_atoms**2 * (4.19 * cutoff**3) / volume.clamp(min=1e-300)
    worst = int(pairs.argmax())
    if pairs[worst] > MAX_PAIRS:
        raise CellError(
            f"crystal {worst} has {int(batch.num_atoms[worst])} atoms in {float(volume[worst]):.3g} cubic "
            f"Angstrom: about {float(pairs[worst]):.0e} neighbours within {cutoff} Angstrom. "
            "The cell has collapsed, or the cutoff is not in Angstrom"
        )
