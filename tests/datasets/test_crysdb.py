"""Reading the corpus: what comes in is what comes out, upright and with nothing mixed up."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crystalml.datasets import crysdb as reader
from crystalml.datasets.arrays import Arrays, standard_orientation
from crystalml.errors import CellError, FileReadError, InputError, NonFiniteError

pa = pytest.importorskip("pyarrow", reason="reading parquet needs pyarrow")
parquet = pytest.importorskip("pyarrow.parquet", reason="reading parquet needs pyarrow")


def random_crystals(seed: int = 0, count: int = 40) -> tuple[list[np.ndarray], ...]:
    """Numbers, fractional coordinates and cells of either hand."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, count)
    numbers = [rng.integers(1, 95, n) for n in sizes]
    frac = [rng.random((n, 3)) for n in sizes]
    cells = [4 * np.eye(3) * rng.choice([-1, 1]) + rng.normal(size=(3, 3)) for _ in sizes]
    return numbers, frac, cells


def write(path: Path, columns: dict[str, list[Any]], rows: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Small row groups: columns arrive in several chunks, as they do from large files.
    parquet.write_table(pa.table(columns), path, row_group_size=max(1, rows // 3))
    return path


def geometry(
    numbers: list[np.ndarray], frac: list[np.ndarray], cells: list[np.ndarray]
) -> dict[str, list[Any]]:
    return {
        "numbers": [z.tolist() for z in numbers],
        "frac_coords": [f.ravel().tolist() for f in frac],
        "lattice": [c.ravel().tolist() for c in cells],
    }


def distances(frac: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Sorted lengths of all pair vectors over the 27 nearest images: a fingerprint blind to the frame."""
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), -1).reshape(-1, 3)
    delta = frac[:, None, None] - frac[None, :, None]
    delta = delta - np.round(delta) + shifts
    return np.sort(np.linalg.norm(delta @ cell, axis=-1).ravel())


def test_upright_cells_are_the_same_crystals() -> None:
    numbers, frac, cells = random_crystals()
    counts = np.array([len(z) for z in numbers])
    index = np.repeat(np.arange(len(counts)), counts)
    lattice, moved, rotation = standard_orientation(np.array(cells), np.concatenate(frac), index)
    assert (np.linalg.det(lattice) > 0).all()
    assert (lattice[:, 0, 1] == 0).all()
    assert (lattice[:, 2, :2] == 0).all()
    assert (lattice[:, 1, 1] > 0).all()
    assert (moved >= 0).all()
    assert (moved.astype(np.float32) < 1).all()
    # Proper rotations: a mirror image would be another crystal.
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), np.tile(np.eye(3), (40, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0, atol=1e-12)
    metric = [c @ c.T for c in cells]
    np.testing.assert_allclose(lattice @ lattice.swapaxes(1, 2), metric, atol=1e-10)
    for i, old in enumerate(frac):
        np.testing.assert_allclose(
            distances(moved[index == i], lattice[i]), distances(old, cells[i]), atol=1e-9, err_msg=str(i)
        )


def test_chirality_survives() -> None:
    """The signed volume spanned by three atoms of a left-handed cell keeps its sign."""
    cell = np.diag([-4.0, 5.0, 6.0])[None]
    frac = np.array([[0.0, 0, 0], [0.2, 0, 0], [0, 0.2, 0], [0, 0, 0.2]])
    lattice, moved, _ = standard_orientation(cell, frac, np.zeros(4, int))

    def hand(f: np.ndarray, c: np.ndarray) -> float:
        delta = f[1:] - f[0]
        return float(np.linalg.det((delta - np.round(delta)) @ c))

    assert hand(moved, lattice[0]) == pytest.approx(hand(frac, cell[0]))


def test_read_parquet_gives_back_every_column(tmp_path: Path) -> None:
    numbers, frac, cells = random_crystals()
    b = len(numbers)
    rng = np.random.default_rng(1)
    forces = [rng.normal(size=f.shape) for f in frac]
    stress = [s + s.T for s in rng.normal(size=(b, 3, 3))]
    columns = geometry(numbers, frac, cells) | {
        "material_id": [f"mp-{i}" for i in range(b)],
        "energy": [None if i % 3 == 0 else float(i) for i in range(b)],
        "benchmark": [reader.BENCHMARKS[i % 4] for i in range(b)],
        "kind": [f"k{i % 2}" for i in range(b)],
        "forces": [f.ravel().tolist() for f in forces],
        "stress_gpa": [s.ravel().tolist() for s in stress],
    }
    data = reader.read_parquet(write(tmp_path / "x.parquet", columns, b))
    assert len(data) == b
    assert data.ids[7] == "mp-7"
    assert data.strings["kind"][5] == "k1"
    assert data.num_atoms.tolist() == [len(z) for z in numbers]
    assert (data.numbers == np.concatenate(numbers)).all()
    assert np.isnan(data.labels["energy"][::3]).all()
    assert data.labels["energy"][1] == 1
    assert data.labels["benchmark"].tolist() == [i % 4 for i in range(b)]
    # f . (x_j - x_i) and sum_ij (L S L^T) do not know the frame, if forces, stress and cell turn together.
    index = data.index
    for i in range(b):
        mine = data.lattice[i] @ (data.labels["stress"][i] * reader.EV_PER_A3) @ data.lattice[i].T
        np.testing.assert_allclose(mine, cells[i] @ stress[i] @ cells[i].T, atol=2e-3)
        sign = np.sign(np.linalg.det(cells[i]))
        mine = data.atom_labels["forces"][index == i] @ data.lattice[i].T
        np.testing.assert_allclose(mine, sign * forces[i] @ cells[i].T, atol=1e-4)


def test_choosing_and_joining(tmp_path: Path) -> None:
    numbers, frac, cells = random_crystals()
    b = len(numbers)
    columns = geometry(numbers, frac, cells) | {"y": [float(i) for i in range(b)]}
    data = reader.read_parquet(write(tmp_path / "x.parquet", columns, b))
    some = data[[5, 2, 30]]
    assert some.labels["y"].tolist() == [5, 2, 30]
    assert some.ids == ["5", "2", "30"]
    np.testing.assert_array_equal(some.numbers, np.concatenate([numbers[i] for i in (5, 2, 30)]))
    small = data[data.num_atoms <= 4]
    assert small.num_atoms.max() <= 4
    bare = Arrays(some.numbers, some.frac, some.lattice, some.num_atoms, ids=some.ids)
    both = Arrays.cat([some, bare])
    assert len(both) == 6
    assert np.isnan(both.labels["y"][3:]).all()
    np.testing.assert_array_equal(both.frac[: len(some.frac)], some.frac)


def test_packed_crystals_are_the_read_ones(tmp_path: Path) -> None:
    numbers, frac, cells = random_crystals()
    columns = geometry(numbers, frac, cells) | {"y": [0.5] * len(numbers)}
    data = reader.read_parquet(write(tmp_path / "x.parquet", columns, len(numbers)))
    packed = reader.pack(data, labels=["y"])
    one = packed[[3]]
    assert one.numbers.tolist() == numbers[3].tolist()
    assert one.labels["y"].tolist() == [0.5]
    with pytest.raises(InputError, match="no label 'z'"):
        reader.pack(data, labels=["z"])


def test_least_squares_recovers_the_references() -> None:
    rng = np.random.default_rng(0)
    mu = rng.normal(size=119)
    x = np.zeros((200, 119))
    x[:, 1:20] = rng.dirichlet(np.ones(19), 200)
    found, error = reader.fit_references(x, x @ mu)
    np.testing.assert_allclose(found[1:20], mu[1:20], atol=1e-10)
    assert np.isnan(found[20:]).all()
    assert error < 1e-10


def corrupt(columns: dict[str, list[Any]], how: str) -> dict[str, list[Any]]:
    if how == "atoms without coordinates":
        columns["frac_coords"][0] = columns["frac_coords"][0][:-3]
    elif how == "no atoms":
        columns["numbers"][0], columns["frac_coords"][0] = [], []
    elif how == "unknown element":
        columns["numbers"][0][0] = 119
    elif how == "nan":
        columns["frac_coords"][0][0] = float("nan")
    elif how == "flat cell":
        columns["lattice"][0] = [1.0] * 9
    else:
        del columns["lattice"]
    return columns


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("atoms without coordinates", FileReadError),
        ("no atoms", FileReadError),
        ("unknown element", FileReadError),
        ("no lattice column", FileReadError),
        ("nan", NonFiniteError),
        ("flat cell", CellError),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, how: str, error: type[Exception]) -> None:
    columns = corrupt(geometry(*random_crystals()), how)
    with pytest.raises(error):
        reader.read_parquet(write(tmp_path / "x.parquet", columns, 40))


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("hello")
    with pytest.raises(FileReadError, match=r"x\.parquet"):
        reader.read_parquet(tmp_path / "x.parquet")
    with pytest.raises(FileReadError):
        reader.read_parquet(tmp_path / "absent.parquet")
    with pytest.raises(InputError, match="train, val"):
        reader.crysdb(tmp_path, "test")
    with pytest.raises(InputError, match="mpts_52"):
        reader.test_set(tmp_path, "perov_5")


def test_the_shared_corpus(shared_data: Path) -> None:
    """Counts of the data note; no validation crystal among the training ones; references fit."""
    val = reader.crysdb(shared_data, "val")
    train = reader.crysdb(shared_data, "train", sources=("mp",))
    assert len(val) + len(train) == 112_593
    assert set(val.ids).isdisjoint(train.ids)
    assert np.isfinite(np.r_[val.labels[reader.ENERGY], train.labels[reader.ENERGY]]).sum() == 35_391
    references, error = reader.element_references(shared_data)
    assert error < 0.025
    assert references[8] == pytest.approx(-4.9, abs=0.3)  # eV/atom of O2 in MP's corrected PBE
    assert reader.scheme_shift(shared_data)[1] < 0.012
    assert len(reader.test_set(shared_data, "mp_20")) == 9_046
