"""Input: every crystal counts, from whatever it comes; what cannot be read is named and kept as a failure."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from pymatgen.core import Structure

from crystalml.datasets.arrays import Arrays
from crystalml.errors import FileReadError, InputError
from crystalml.evaluation.samples import digest, read_crystals, read_table
from crystalml.write import write_structures


def test_a_file_that_is_not_there_is_named(tmp_path) -> None:
    for name in ("none.jsonl", "none.cif"):
        with pytest.raises(FileReadError, match=f"{name}: no such file"):
            read_crystals(tmp_path / name)


def test_a_bad_frame_does_not_spoil_the_file(tmp_path, salts) -> None:
    good = salts[0].to_ase_atoms()
    nan = good.copy()
    nan.positions[0, 0] = np.nan
    flat = good.copy()
    flat.set_cell([[1, 0, 0], [2, 0, 0], [0, 0, 3]])
    free = Atoms("H2", [[0, 0, 0], [0, 0, 0.7]])
    write(tmp_path / "run.extxyz", [good, nan, flat, free, good], format="extxyz")
    found = read_crystals(tmp_path / "run.extxyz")
    assert found.readable == [0, 4] and len(found) == 5
    assert "nan" in found.reasons[1] and "cell" in found.reasons[2] and "pbc" in found.reasons[3]
    assert found.reasons[0] == "" and found.names[4].endswith("@4")


def test_a_bad_file_counts_as_one_bad_sample(tmp_path, salts) -> None:
    salts[0].to(str(tmp_path / "a.cif"))
    (tmp_path / "b.cif").write_text("no crystal")
    found = read_crystals(tmp_path)
    assert [s is None for s in found.structures] == [False, True] and "b.cif" in found.names[1]
    with pytest.raises(FileReadError, match="no such file"):
        read_crystals(tmp_path / "c.cif")


def test_the_journal_of_a_folder_counts_for_nothing(tmp_path, salts) -> None:
    salts[0].to(str(tmp_path / "a.cif"))
    (tmp_path / "settings.json").write_text('{"model": "tiny"}')
    (tmp_path / "results.jsonl").write_text('{"name": "in/a.cif", "structure": "a.cif"}\n')
    with pytest.warns(UserWarning, match="2 files of other kinds"):
        found = read_crystals(tmp_path)
    assert found.names == [str(tmp_path / "a.cif")] and found.readable == [0]


@pytest.mark.parametrize("name", ["many.extxyz", "many.jsonl", "many.cif.zip", "many.cif"])
def test_all_that_generate_writes(tmp_path, salts, name) -> None:
    write_structures(salts, tmp_path / name)
    found = read_crystals(tmp_path / name)
    assert sorted(s.reduced_formula for s in found.structures) == sorted(s.reduced_formula for s in salts)


def test_memory_and_missing_ones(salts) -> None:
    found = read_crystals([salts[0], None, salts[1].to_ase_atoms()])
    assert found.readable == [0, 2] and found.reasons[1] == "missing"
    assert read_crystals(salts[0]).readable == [0]
    with pytest.raises(InputError, match="empty"):
        read_crystals([])


def test_targets_travel_with_the_samples(tmp_path, salts) -> None:
    for k, salt in enumerate(salts):
        salt.properties["target"] = f"t{k}"
    try:
        write_structures(salts, tmp_path / "s.extxyz")
        assert read_crystals(tmp_path / "s.extxyz").targets == [f"t{k}" for k in range(5)]
        assert read_crystals(salts).targets == [f"t{k}" for k in range(5)]
    finally:
        for salt in salts:
            salt.properties.clear()


def test_samples_of_the_benchmark_take_their_elements_from_the_targets(tmp_path, salts) -> None:
    reference = read_crystals(salts)
    cell = salts[1].lattice.matrix.ravel().tolist()
    rows = [
        {"id": "sample 1", "shot": shot, "seconds": 1.0, "lattice": cell, "frac": [0, 0, 0, 0.5, 0.5, last]}
        for shot, last in ((1, float("nan")), (0, 0.5))
    ]
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "settings.json").write_text('{"seed": 0}')  # of the same folder
    assert read_crystals(tmp_path, reference).names == ["sample 1/0", "sample 1/1"]
    found = read_crystals(file, reference)
    assert found.names == ["sample 1/0", "sample 1/1"] and found.targets == ["sample 1"] * 2
    assert found.structures[0].reduced_formula == "KCl" and found.structures[1] is None
    with pytest.raises(InputError, match="reference"):
        read_crystals(file)
    with pytest.raises(InputError, match="no crystal 'sample 1'"):
        read_crystals(file, read_crystals(salts[:1]))


def test_parquet_and_its_splits(tmp_path, salts) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({
        "material_id": [f"m{k}" for k in range(5)],
        "numbers": [np.array(s.atomic_numbers) for s in salts],
        "frac_coords": [s.frac_coords.ravel() for s in salts],
        "lattice": [s.lattice.matrix.ravel() for s in salts],
        "split": ["train", "test", "train", "test", "train"],
    })  # fmt: skip
    path = tmp_path / "table.parquet"
    frame.to_parquet(path)
    assert read_crystals(path).names == ["m0", "m1", "m2", "m3", "m4"]
    assert read_crystals(f"{path}#test").names == ["m1", "m3"]
    assert isinstance(read_table(path), Arrays)
    with pytest.raises(InputError, match="'val'; it has test, train"):
        read_crystals(f"{path}#val")
    frame.drop(columns="split").to_parquet(path)
    with pytest.raises(InputError, match="no column `split`"):
        read_crystals(f"{path}#test")


def test_digests_tell_crystals_apart_and_nothing_else(salts) -> None:
    names = {digest(salt) for salt in salts}
    assert len(names) == 5
    copy = salts[0].copy()
    assert digest(copy) == digest(salts[0])
    copy.translate_sites([0], [0.001, 0, 0])
    assert digest(copy) != digest(salts[0])
    swapped = Structure(salts[0].lattice, salts[0].species[::-1], salts[0].frac_coords)
    assert digest(swapped) != digest(salts[0])
