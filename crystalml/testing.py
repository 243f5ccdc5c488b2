"""Tools for testing models and adapters: crystals, rotations, tolerances and the laws of symmetry.

Shipped with the package and independent of any test runner: a broken law raises AssertionError. The laws take
any `fn: CrystalBatch -> {name: Tensor}` and, for each name, the kind of quantity it is:

    fn = lambda x: {"energy": model.energy(x), "score": model.denoise(x, t).frac}
    assert_symmetric(fn, rand_crystals(0), {"energy": "invariant", "score": "frac"})

`check_calculator(factory)` examines any ASE calculator: see crystalml.conformance, which needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.elements import atomic_number
from crystalml.geometry.neighbors import minkowski_reduce, neighbor_list
from crystalml.geometry.torus import logmap, wrap

if TYPE_CHECKING:
    from crystalml.conformance import check_calculator as check_calculator

Kind = Literal["invariant", "node-invariant", "frac", "lattice", "vector", "tensor"]
"""How an output moves when the crystal is rotated by Q (X -> X Qᵀ, L -> L Qᵀ).

"invariant" (b, ...) and "node-invariant" (n, ...) stay; so does "frac" (n, 3), a vector in fractional
components; "lattice" (b, 3, 3) turns its rows, y -> y Qᵀ; so does "vector" (n, 3) in Cartesian components
(forces); "tensor" (b, 3, 3) turns both sides, y -> Q y Qᵀ (stress).
"""
PER_ATOM = ("node-invariant", "frac", "vector")

Fn = Callable[[CrystalBatch], Mapping[str, Tensor]]
Seed = int | torch.Generator
Rows = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Tolerances:
    """Largest error allowed by each law, relative to the output's largest entry where that exceeds 1."""

    rotation: float  # also reflections
    lattice: float  # rotation of "lattice", "vector" and "tensor" outputs, which grow with the cell
    permutation: float
    translation: float
    padding: float  # the company a crystal keeps in a batch
    gradient: float  # relative, against central differences


# float64: the acceptance lines of the methods notes. float32: 100 times looser, since with 127 Fourier
# frequencies the rounding of w(F + t) alone is a phase error of 5e-5.
TOLERANCES: Mapping[torch.dtype, Tolerances] = {
    torch.float64: Tolerances(1e-5, 1e-4, 1e-6, 1e-5, 1e-6, 1e-4),
    torch.float32: Tolerances(1e-3, 1e-2, 1e-4, 1e-3, 1e-4, 1e-2),
}


# --- crystals and rotations -----------------------------------------------------------------------------
def rand_crystals(
    seed: Seed = 0,
    count: int = 4,
    *,
    max_atoms: int = 8,
    species: Sequence[int] = (1, 8, 11, 14, 17, 22, 26, 55),
    min_distance: float = 1.2,
    dtype: torch.dtype = torch.float64,
) -> CrystalBatch:
    """Triclinic crystals without symmetry: 1 to max_atoms atoms of 12 to 30 cubic Angstrom, none too close.

    Right-handed cells of any orientation. With count > 1 the first has one atom and the second max_atoms.
    """
    g = _generator(seed)
    counts = torch.randint(1, max_atoms + 1, (count,), generator=g)
    if count > 1:
        counts[:2] = torch.tensor([1, max_atoms])
    lattice = _rand_lattices(g, counts, min_distance)
    n = int(counts.sum())
    numbers = torch.tensor(species)[torch.randint(len(species), (n,), generator=g)]
    batch = CrystalBatch(numbers, torch.rand(n, 3, generator=g, dtype=torch.float64), lattice, counts)
    for _ in range(1000):
        pairs = neighbor_list(batch, min_distance)
        crowded = pairs.i[pairs.i > pairs.j].unique()
        if not len(crowded):
            return batch.to(dtype=dtype).replace(frac=wrap(batch.frac.to(dtype)))
        fresh = torch.rand(len(crowded), 3, generator=g, dtype=torch.float64)
        batch = batch.replace(frac=batch.frac.index_copy(0, crowded, fresh))
    raise ValueError(f"min_distance {min_distance} Angstrom leaves no room for {max_atoms} atoms")


def _rand_lattices(g: torch.Generator, counts: Tensor, min_distance: float) -> Tensor:
    """(b, 3, 3) cells whose shortest lattice vector exceeds min_distance."""
    rows = []
    for n in counts.tolist():
        shortest = 0.0
        box = torch.eye(3, dtype=torch.float64)
        while shortest <= min_distance:
            box = torch.eye(3, dtype=torch.float64)
            box = box + 0.35 * (2 * torch.rand(3, 3, generator=g, dtype=torch.float64) - 1)
            volume = n * (12 + 18 * float(torch.rand((), generator=g)))
            box = box * (volume / torch.linalg.det(box).abs()) ** (1 / 3)
            shortest = float(minkowski_reduce(box[None])[0, 0].norm())
        rows.append(box @ random_rotation(g).T)
    lattice = torch.stack(rows)
    return lattice * torch.linalg.det(lattice).sign()[:, None, None]


def random_rotation(seed: Seed = 0, reflect: bool = False, dtype: torch.dtype = torch.float64) -> Tensor:
    """(3, 3) orthogonal matrix, uniform over rotations (det 1) or over reflections (det -1)."""
    normal = torch.randn(3, 3, generator=_generator(seed), dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    q = q * r.diagonal().sign()  # makes QR unique, hence q uniform (Mezzadri, Notices AMS 54, 592 (2007))
    return (q * torch.linalg.det(q).sign() * (-1 if reflect else 1)).to(dtype)


def rock_salt(dtype: torch.dtype = torch.float64) -> CrystalBatch:
    """NaCl, a = 5.640 A: centrosymmetric, every site cubic."""
    a = 2.820
    return _crystal(["Na", "Cl"], [[0, a, a], [a, 0, a], [a, a, 0]], [[0, 0, 0], [0.5, 0.5, 0.5]], dtype)


def fcc(dtype: torch.dtype = torch.float64) -> CrystalBatch:
    """Cu, a = 3.615 A: one atom in the cell."""
    a = 3.615 / 2
    return _crystal(["Cu"], [[0, a, a], [a, 0, a], [a, a, 0]], [[0, 0, 0]], dtype)


def bcc(dtype: torch.dtype = torch.float64) -> CrystalBatch:
    """W, a = 3.165 A, in its cubic cell: two atoms that only a translation tells apart."""
    return _crystal(["W", "W"], _cubic_cell(3.165), [[0, 0, 0], [0.5, 0.5, 0.5]], dtype)


def hexagonal(dtype: torch.dtype = torch.float64) -> CrystalBatch:
    """Mg, hcp, a = 3.209 A, c = 5.211 A."""
    third = 1 / 3
    frac = [[third, 2 * third, 0.25], [2 * third, third, 0.75]]
    return _crystal(["Mg", "Mg"], _hexagonal_cell(3.209, 5.211), frac, dtype)


def perovskite(dtype: torch.dtype = torch.float64) -> CrystalBatch:
    """SrTiO3, a = 3.905 A."""
    frac: Rows = [[0, 0, 0], [0.5, 0.5, 0.5], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    return _crystal(["Sr", "Ti", "O", "O", "O"], _cubic_cell(3.905), frac, dtype)


def alpha_quartz(mirror: bool = False, dtype: torch.dtype = torch.float64) -> CrystalBatch:
    """SiO2, P3_221, chiral (Levien, Prewitt & Weidner, Am. Mineral. 65, 920 (1980)); mirror: P3_121."""
    u, (x, y, z) = 0.4697, (0.4135, 0.2669, 0.1191 + 2 / 3)
    third = 1 / 3
    silicon = [[u, 0, 2 * third], [0, u, third], [-u, -u, 0]]
    oxygen = [[x, y, z], [-y, x - y, z + 2 * third], [y - x, -x, z + third]]
    oxygen += [[y, x, -z], [x - y, -y, third - z], [-x, y - x, 2 * third - z]]
    crystal = _crystal(["Si"] * 3 + ["O"] * 6, _hexagonal_cell(4.9134, 5.4052), silicon + oxygen, dtype)
    return crystal.replace(frac=wrap(-crystal.frac)) if mirror else crystal


REFERENCE_CRYSTALS: Mapping[str, Callable[[], CrystalBatch]] = {
    "rock salt": rock_salt,
    "fcc": fcc,
    "bcc": bcc,
    "hexagonal": hexagonal,
    "perovskite": perovskite,
    "alpha quartz": alpha_quartz,
}


def _cubic_cell(a: float) -> Rows:
    return [[a, 0, 0], [0, a, 0], [0, 0, a]]


def _hexagonal_cell(a: float, c: float) -> Rows:
    return [[a, 0, 0], [-a / 2, a * 3**0.5 / 2, 0], [0, 0, c]]


def _crystal(
    symbols: Sequence[str],
    lattice: Rows,
    frac: Rows,
    dtype: torch.dtype,
) -> CrystalBatch:
    return CrystalBatch(
        torch.tensor([atomic_number(name) for name in symbols]),
        wrap(torch.tensor(frac, dtype=dtype)),
        torch.tensor([lattice], dtype=dtype),
        torch.tensor([len(symbols)]),
    )


# --- laws -----------------------------------------------------------------------------------------------
def assert_symmetric(fn: Fn, batch: CrystalBatch, kinds: Mapping[str, Kind], seed: Seed = 0) -> None:
    """All the laws that need no gradient: rotation, reflection, permutation, translation, batch."""
    assert_rotation_law(fn, batch, kinds, seed)
    assert_permutation_law(fn, batch, kinds, seed)
    assert_translation_law(fn, batch, kinds, seed)
    assert_batch_law(fn, batch, kinds)


def assert_rotation_law(
    fn: Fn, batch: CrystalBatch, kinds: Mapping[str, Kind], seed: Seed = 0, *, reflect: bool = True
) -> None:
    """fn(F, L Qᵀ) is fn(F, L) moved by Q, for a rotation and (unless reflect=False) a reflection."""
    g, before = _generator(seed), fn(batch)
    limits = TOLERANCES[batch.dtype]
    for improper in (False, True)[: 1 + reflect]:
        q = random_rotation(g, improper, batch.dtype).to(batch.device)
        after = fn(batch.replace(lattice=batch.lattice @ q.T))
        for name, kind in kinds.items():
            expected = before[name]
            if kind in ("lattice", "vector"):
                expected = expected @ q.T
            elif kind == "tensor":
                expected = q @ expected @ q.T
            tolerance = limits.lattice if kind in ("lattice", "vector", "tensor") else limits.rotation
            _compare(
                f"{'reflection' if improper else 'rotation'} law", name, after[name], expected, tolerance
            )


def assert_permutation_law(fn: Fn, batch: CrystalBatch, kinds: Mapping[str, Kind], seed: Seed = 0) -> None:
    """Listing the atoms of each crystal in another order reorders the outputs per atom and nothing else."""
    keys = torch.rand(len(batch.numbers), generator=_generator(seed), dtype=torch.float64).to(batch.device)
    order = (batch.index + keys).argsort()  # shuffles within each crystal
    before, after = fn(batch), fn(batch.replace(numbers=batch.numbers[order], frac=batch.frac[order]))
    for name, kind in kinds.items():
        expected = before[name][order] if kind in PER_ATOM else before[name]
        _compare("permutation law", name, after[name], expected, TOLERANCES[batch.dtype].permutation)


def assert_translation_law(fn: Fn, batch: CrystalBatch, kinds: Mapping[str, Kind], seed: Seed = 0) -> None:
    """Moving a crystal as a whole, atoms wrapping through the cell's faces, changes nothing."""
    shift = torch.rand(len(batch), 3, generator=_generator(seed), dtype=torch.float64)
    moved = wrap(batch.frac + shift.to(batch.frac)[batch.index])
    before, after = fn(batch), fn(batch.replace(frac=moved))
    for name in kinds:
        _compare("translation law", name, after[name], before[name], TOLERANCES[batch.dtype].translation)


def assert_batch_law(fn: Fn, batch: CrystalBatch, kinds: Mapping[str, Kind]) -> None:
    """A crystal's outputs do not depend on its company: not on the others, their order, or the padding."""
    limits, before = TOLERANCES[batch.dtype], fn(batch)
    alone = [fn(one) for one in batch.split()]
    backwards = list(range(len(batch)))[::-1]
    turned = fn(batch[backwards])
    places = torch.arange(len(batch.numbers), device=batch.device)
    order = batch.replace(numbers=places)[backwards].numbers
    for name, kind in kinds.items():
        expected = torch.cat([one[name] for one in alone])
        _compare("batch law (batch against singles)", name, before[name], expected, limits.padding)
        expected = before[name][order] if kind in PER_ATOM else before[name][backwards]
        _compare("batch law (order of the crystals)", name, turned[name], expected, limits.padding)


def assert_gradient(
    fn: Fn, batch: CrystalBatch, seed: Seed = 0, *, directions: int = 3, step: float = 1e-6
) -> None:
    """Autograd's derivatives in frac and in lattice equal central differences, in float64.

    Tried along random directions v for a random projection u of every output:
    u.J v = u.(f(x + h v) - f(x - h v)) / 2h.
    """
    g, x = _generator(seed), batch.to(dtype=torch.float64)
    tolerance = TOLERANCES[torch.float64].gradient
    for field in ("frac", "lattice"):
        leaf = getattr(x, field).detach().clone().requires_grad_()
        for name, output in fn(x.replace(**{field: leaf})).items():
            u = _normal(g, output)
            total = (u * output).sum()
            slope = torch.zeros_like(leaf)
            if output.requires_grad:
                found = torch.autograd.grad(total, leaf, retain_graph=True, allow_unused=True)[0]
                slope = slope if found is None else found
            # below this the differences hold only rounding errors
            scale = max(float(slope.norm()), 1e-4 * float((u * output).detach().abs().sum().clamp(min=1)))
            for _ in range(directions):
                v = _normal(g, leaf)
                high, low = (fn(x.replace(**{field: leaf.detach() + h * v}))[name] for h in (step, -step))
                expected = float((u * (high - low)).sum()) / (2 * step)
                error = abs(float((slope * v).sum()) - expected) / scale
                if not error <= tolerance:
                    raise AssertionError(f"d {name} / d {field} is off by {error:.2e} (> {tolerance:.0e})")


def assert_close_crystals(actual: CrystalBatch, expected: CrystalBatch, atol: float = 1e-6) -> None:
    """The same atoms in the same order and cells; coordinates are compared on the torus, in Angstrom."""
    assert torch.equal(actual.num_atoms, expected.num_atoms), "numbers of atoms differ"
    assert torch.equal(actual.numbers, expected.numbers), "elements differ"
    _compare("equal crystals", "lattice", actual.lattice, expected.lattice, atol)
    delta = torch.einsum("ni,nij->nj", logmap(actual.frac - expected.frac), expected.lattice[expected.index])
    _compare("equal crystals", "positions", delta, torch.zeros_like(delta), atol)


def _compare(law: str, name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """max |actual - expected| / max(1, max |expected|) <= tolerance; NaN never passes."""
    if actual.shape != expected.shape:
        raise AssertionError(f"{law}: {name!r} has shape {tuple(actual.shape)}, not {tuple(expected.shape)}")
    if not expected.numel():
        return
    error = float((actual - expected).abs().max() / expected.abs().max().clamp(min=1))
    if not error <= tolerance:
        raise AssertionError(f"{law}: {name!r} is off by {error:.2e} (> {tolerance:.0e})")


def _normal(g: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=g, dtype=torch.float64).to(like.device)


def _generator(seed: Seed) -> torch.Generator:
    return seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)


def __getattr__(name: str) -> object:
    if name != "check_calculator":  # loaded on first use: it needs ASE, the rest of this module does not
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from crystalml.conformance import check_calculator

    return check_calculator
