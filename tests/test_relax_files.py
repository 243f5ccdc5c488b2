"""Folders: every result on disk as soon as it is there, nothing twice, nothing half."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.io import read, write
from pymatgen.core import Lattice, Structure

from crystalml.errors import InputError
from crystalml.relax_files import relax_files, relax_folder
from crystalml.relaxation.settings import RelaxSettings

TWO = RelaxSettings(max_steps=2)


def salt(a: float) -> Structure:
    return Structure(
        Lattice.from_parameters(a, a, a, 60, 60, 60), ["Na", "Cl"], [[0, 0, 0], [0.48, 0.5, 0.5]]
    )


@pytest.fixture
def inputs(tmp_path):
    """Two good crystals, a bad file, two atoms on top of each other, two frames in one file."""
    folder = tmp_path / "in"
    folder.mkdir()
    salt(4.0).to(str(folder / "a.cif"))
    salt(4.1).to(str(folder / "z.cif"))
    (folder / "b.cif").write_text("no crystal")
    frames = [Atoms("Cu", cell=[2.6, 2.6, 2.6], pbc=True), Atoms("Al", cell=[2.9, 2.9, 2.9], pbc=True)]
    write(folder / "m.extxyz", frames)
    return folder


@pytest.fixture(scope="module")
def model(tiny_potential):
    return tiny_potential()


class Stop(Exception):
    pass


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def lines(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_files_in_memory_keep_their_order_and_report_the_bad(inputs, model):
    heard = []
    report = relax_files(
        [inputs, inputs / "none.cif"], model, TWO, on_done=lambda *a: heard.append(a[0]), progress=False
    )
    assert [name.rsplit("/")[-1] for name, _ in report.results] == [
        "a.cif",
        "m.extxyz@0",
        "m.extxyz@1",
        "z.cif",
    ]
    assert [name.rsplit("/")[-1] for name, _ in report.failures] == ["b.cif", "none.cif"]
    assert sorted(heard) == sorted(name for name, _ in [*report.results, *report.failures])


def test_a_folder_holds_crystals_rows_and_a_table(inputs, model, tmp_path):
    out = tmp_path / "out"
    report = relax_folder(inputs, out, model, TWO, progress=False)
    crystals = ["a.cif", "m@0.cif", "m@1.cif", "z.cif"]
    assert names(out) == sorted([*crystals, "results.csv", "results.jsonl", "settings.json"])
    assert [row.get("structure") for row in report.rows] == ["a.cif", None, "m@0.cif", "m@1.cif", "z.cif"]
    assert report.skipped == 0 and [name for name, _ in report.failures] == [str(inputs / "b.cif")]
    row = report.rows[0]
    final = Structure.from_file(out / "a.cif")
    assert row["n_atoms"] == len(final) == 2 and row["formula"] == "Na1Cl1" and row["n_steps"] == 2
    assert row["energy_per_atom"] == row["energy"] / 2 and "P1" in (out / "a.cif").read_text()
    with (out / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 5 and {r["name"] for r in table} == {r["name"] for r in report.rows}
    assert sorted(lines(out), key=lambda r: r["name"]) == sorted(report.rows, key=lambda r: r["name"])


@pytest.mark.parametrize("engine", ["batch", "one by one"])
def test_a_stopped_run_goes_on(inputs, model, tmp_path, engine):
    chosen = model if engine == "batch" else EMT()
    if engine == "one by one":
        for path in inputs.glob("*.cif"):
            path.unlink()
        for a in (3.5, 3.7):
            write(inputs / f"cu{a}.cif", Atoms("Cu", cell=[a / 2**0.5] * 3, pbc=True))
    whole, out = tmp_path / "whole", tmp_path / "out"
    relax_folder(inputs, whole, chosen, TWO, progress=False)
    seen = []

    def stop(name, result):
        seen.append(name)
        if len(seen) == 2:
            raise Stop

    with pytest.raises(Stop):
        relax_folder(inputs, out, chosen, TWO, on_done=stop, progress=False)
    assert len(lines(out)) == 2 and (out / "results.csv").exists()
    again = []
    report = relax_folder(
        inputs, out, chosen, TWO, on_done=lambda name, _: again.append(name), progress=False
    )
    good = {row["name"] for row in lines(out)[:2] if not row["error"]}
    assert report.skipped == len(good) and not good & set(again)
    for name in names(whole):
        if name.endswith(".cif"):
            one, other = (Structure.from_file(folder / name) for folder in (whole, out))
            np.testing.assert_allclose(one.lattice.matrix, other.lattice.matrix, atol=1e-5)


def test_what_changed_or_failed_is_done_again_under_its_name(inputs, model, tmp_path):
    out = tmp_path / "out"
    relax_folder(inputs, out, model, RelaxSettings(max_steps=0), progress=False)
    salt(4.4).to(str(inputs / "a.cif"))
    salt(4.2).to(str(inputs / "b.cif"))
    salt(4.3).to(str(inputs / "new.cif"))
    again = []
    report = relax_folder(
        inputs,
        out,
        model,
        RelaxSettings(max_steps=0),
        on_done=lambda name, _: again.append(name),
        progress=False,
    )
    assert sorted(name.rsplit("/")[-1] for name in again) == ["a.cif", "b.cif", "new.cif"]
    assert not report.failures and report.skipped == 3 and len(report.rows) == 6
    assert Structure.from_file(out / "a.cif").volume > 1.1 * Structure.from_file(out / "z.cif").volume
    idle = relax_folder(inputs, out, model, RelaxSettings(max_steps=0), progress=False)
    assert idle.skipped == 6 and idle.rows == report.rows


def test_a_file_that_is_done_is_not_even_parsed(inputs, model, tmp_path, monkeypatch):
    from crystalml import relax_files as module

    relax_folder(inputs, tmp_path / "out", model, TWO, progress=False)
    parsed = []
    parse = module.parse
    monkeypatch.setattr(module, "parse", lambda file: parsed.append(file.name) or parse(file))
    relax_folder(inputs, tmp_path / "out", model, TWO, progress=False)
    assert parsed == ["b.cif"]


def test_equal_names_do_not_overwrite_each_other(model, tmp_path):
    for k, a in enumerate((4.0, 4.2)):
        (tmp_path / f"run{k}").mkdir()
        salt(a).to(str(tmp_path / f"run{k}" / "POSCAR"), fmt="poscar")
    out = tmp_path / "out"
    paths = [tmp_path / "run0", tmp_path / "run1"]
    report = relax_folder(paths, out, model, RelaxSettings(max_steps=0), progress=False)
    assert [row["structure"] for row in report.rows] == ["POSCAR.cif", "POSCAR_2.cif"]
    volumes = [Structure.from_file(out / row["structure"]).volume for row in report.rows]
    np.testing.assert_allclose(volumes, [salt(a).volume for a in (4.0, 4.2)], rtol=1e-4)


def test_results_never_replace_inputs(inputs, model, tmp_path):
    before = {path: path.read_bytes() for path in inputs.iterdir()}
    (tmp_path / "link").symlink_to(inputs)
    for source in (inputs, inputs / "a.cif", str(inputs / "*.cif")):
        for out in (inputs, tmp_path / "link", inputs / ".." / "in"):
            with pytest.raises(InputError, match=r"where the input .*in/a.cif is"):
                relax_folder(source, out, model, TWO, progress=False)
    for out in (inputs / "a.cif", tmp_path / "link" / "a.cif"):
        with pytest.raises(InputError, match="where the input"):
            relax_files(inputs, model, TWO, out=out, progress=False)
    assert {path: path.read_bytes() for path in inputs.iterdir()} == before


def test_files_of_others_in_the_folder_are_kept(inputs, model, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a.cif", "a_2.cif", "b.cif"):
        (out / name).write_text("mine")
    report = relax_folder(inputs, out, model, TWO, progress=False)
    assert [row.get("structure") for row in report.rows] == ["a_3.cif", None, "m@0.cif", "m@1.cif", "z.cif"]
    salt(4.4).to(str(inputs / "a.cif"))
    salt(4.2).to(str(inputs / "b.cif"))
    again = relax_folder(inputs, out, model, TWO, progress=False)
    assert [row["structure"] for row in again.rows[:2]] == ["a_3.cif", "b_2.cif"]  # own ones are replaced
    assert {(out / name).read_text() for name in ("a.cif", "a_2.cif", "b.cif")} == {"mine"}


@pytest.mark.parametrize("name", ["results.csv", "results.jsonl"])
def test_tables_of_others_are_kept(inputs, model, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine\n")
    with pytest.raises(InputError, match=f"{name} is not of a relaxation"):
        relax_folder(inputs, out, model, TWO, progress=False)
    assert names(out) == [name] and (out / name).read_text() == "mine\n"


def test_a_crystal_that_fails_for_a_while_keeps_its_file(inputs, model, tmp_path):
    out, good = tmp_path / "out", (inputs / "a.cif").read_text()
    for text in (good, "no crystal", good.replace("4.0", "4.1")):
        (inputs / "a.cif").write_text(text)
        report = relax_folder(inputs / "a.cif", out, model, TWO, progress=False)
    assert report.rows[0]["structure"] == "a.cif" and names(out)[0] == "a.cif" and len(names(out)) == 4


def test_the_folder_itself_is_read_as_its_crystals(inputs, model, tmp_path):
    relax_folder(inputs, tmp_path / "out", model, TWO, progress=False)
    with pytest.warns(
        UserWarning, match="3 files of other kinds ignored: results.csv, results.jsonl, settings"
    ):
        report = relax_folder(tmp_path / "out", tmp_path / "more", model, TWO, progress=False)
    assert not report.failures and len(report.rows) == 4


def test_what_the_file_cannot_hold_is_reported_before_it_is_relaxed(inputs, model, tmp_path):
    write(inputs / "slab.extxyz", fcc111("Al", (1, 1, 3), vacuum=6.0))
    heard = {}
    report = relax_files(
        inputs, model, TWO, out=tmp_path / "all.cif", on_done=lambda *a: heard.update([a]), progress=False
    )
    reasons = {name.rsplit("/")[-1]: reason for name, reason in report.failures}
    assert len(report.results) == 4 and set(reasons) == {"b.cif", "slab.extxyz"}
    assert "only .extxyz can hold" in reasons["slab.extxyz"]
    assert heard[str(inputs / "slab.extxyz")]["n_steps"] == 0
    whole = relax_files(inputs, model, TWO, out=tmp_path / "all.extxyz", progress=False)
    assert len(whole.results) == 5


def test_other_settings_or_weights_need_another_folder(inputs, model, tmp_path):
    out = tmp_path / "out"
    relax_folder(inputs, out, model, TWO, progress=False)
    with pytest.raises(InputError, match="max_steps = 2, not 3"):
        relax_folder(inputs, out, model, RelaxSettings(max_steps=3), progress=False)
    with pytest.raises(InputError, match="model = "):
        relax_folder(inputs, out, EMT(), TWO, progress=False)
    with pytest.raises(InputError, match="cif, extxyz"):
        relax_folder(inputs, out, model, TWO, format="vasp", progress=False)


def test_slabs_stay_slabs_and_are_written_as_such(model, tmp_path):
    slab = fcc111("Al", (1, 1, 3), vacuum=6.0)
    write(tmp_path / "slab.extxyz", slab)
    report = relax_folder(tmp_path / "slab.extxyz", tmp_path / "out", model, TWO, progress=False)
    assert report.rows[0]["structure"] == "slab.extxyz" and report.rows[0]["spacegroup_after"] == ""
    back = read(tmp_path / "out" / "slab.extxyz")
    assert back.pbc.tolist() == [True, True, False] and back.info["file"].endswith("slab.extxyz")
    np.testing.assert_allclose(back.cell[:], slab.cell[:], atol=1e-6)


def test_extxyz_and_symmetrised_cifs(inputs, model, tmp_path):
    relax_folder(inputs / "a.cif", tmp_path / "x", model, TWO, format="extxyz", progress=False)
    atoms = read(tmp_path / "x" / "a.extxyz")
    assert len(atoms) == 2 and atoms.info["file"].endswith("a.cif") and atoms.info["model"]
    keep = RelaxSettings(max_steps=2, fix_symmetry=True, symprec=0.3)
    relax_folder(inputs / "a.cif", tmp_path / "s", model, keep, symmetrize=True, progress=False)
    assert "Fm-3m" in (tmp_path / "s" / "a.cif").read_text()
