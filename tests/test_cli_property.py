"""crystalml finetune and predict: from a table to a model, to a table and a picture."""

import inspect
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from crystalml import cli
from crystalml.cli_property import predict
from crystalml.convert import to_structures
from crystalml.errors import InputError
from crystalml.learners import N_SAMPLES
from crystalml.models.fourierframenet import FourierFrameNetConfig
from crystalml.models.model import ModelConfig
from crystalml.property_picture import LEVELS, draw
from crystalml.testing import perovskite
from crystalml.training.checkpoint import save_model


def invoke(*args: object) -> str:
    result = CliRunner().invoke(cli.app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return f"{result.exit_code}\n{result.output}"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Perovskites of 24 sizes with their lattice constants, and an untrained encoder."""
    folder = tmp_path_factory.mktemp("table")
    x, rows = perovskite(), []
    for k, scale in enumerate(np.linspace(0.9, 1.1, 24)):
        to_structures(x.replace(lattice=x.lattice * scale))[0].to(str(folder / f"{k}.cif"))
        rows.append({"file": f"{k}.cif", "a": 3.905 * scale})
    pd.DataFrame(rows).to_csv(folder / "data.csv", index=False)
    encoder = FourierFrameNetConfig(16, 1, 1, 2, 4, 8, 8, 8, 4, 8, 4.0, chiral=False)
    save_model(ModelConfig(encoder, noise=False).build(), folder / "start.safetensors", {"name": "start"})
    return folder


@pytest.mark.parametrize("method", ["diffusion", "ridge"])
def test_from_a_table_to_a_table(table: Path, method: str, tmp_path: Path) -> None:
    model, out, picture = tmp_path / "a.safetensors", tmp_path / "a.csv", tmp_path / "a.svg"
    said = invoke(
        "finetune", table / "data.csv", "--target", "a", "--method", method, "--encoder",
        table / "start.safetensors", "--epochs", 2, "--unit", "Angstrom", "-o", model, "-q",
    )  # fmt: skip
    assert (
        said.startswith("0\n")
        and f"a learned from {24 if method == 'ridge' else 22} crystals as a number" in said
    )
    said = invoke(
        "predict", model, table / "3.cif", table / "20.cif", "--quantiles", "0.05,0.95", "-o", out,
        "--plot", picture, "-q",
    )  # fmt: skip
    assert said.startswith("0\n")
    found = pd.read_csv(out)
    assert found.columns.tolist() == ["file", "a", "std", "q0.05", "q0.95"] and len(found) == 2
    assert (found["q0.05"] < found["q0.95"]).all() and (found["std"] > 0).all()
    if method == "ridge":
        assert found["a"].tolist() == pytest.approx([3.905 * 0.926, 3.905 * 1.074], abs=0.05)
    assert "Angstrom" in picture.read_text() or picture.stat().st_size > 1000


def test_names_are_learned_as_classes_and_numbers_with_a_stray_are_not(table: Path, tmp_path: Path) -> None:
    rows, ends = pd.read_csv(table / "data.csv"), ("--method", "ridge", "--from", table / "start.safetensors")
    rows["size"] = np.where(rows["a"] > 3.9, "wide", "narrow")
    rows["marked"] = rows["a"].astype(str).where(rows.index != 3, "unknown")
    rows.to_csv(table / "names.csv", index=False)
    out = tmp_path / "m.safetensors"
    said = invoke("finetune", table / "names.csv", "--target", "marked", "-o", out, "-q", *ends)
    assert said.startswith("2\n") and "'marked' holds 23 numbers and text: 'unknown' in row 5;" in said
    assert not out.exists()
    said = invoke("finetune", table / "names.csv", "--target", "size", "-o", out, "-q", *ends)
    assert said.startswith("0\n") and "as one of 2 classes (narrow, wide), 0 watched" in said
    said = invoke("predict", out, table / "3.cif", "--quantiles", "0.5")
    assert said.startswith("2\n") and "size is a class: leave out --quantiles" in said


def test_what_a_table_lacks_is_named(table: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "m.safetensors")
    assert "no column 'gap'; it has file, a" in invoke(
        "finetune", table / "data.csv", "--target", "gap", *out
    )
    rows = pd.read_csv(table / "data.csv")
    rows.loc[4, "a"] = np.nan
    rows.to_csv(table / "holes.csv", index=False)
    assert "empty in row 6" in invoke("finetune", table / "holes.csv", "--target", "a", *out)
    assert "no table" in invoke("finetune", table / "none.csv", "--target", "a", *out)
    assert "--quantiles 'x'" in invoke("predict", table / "start.safetensors", "a.cif", "--quantiles", "x")
    assert not list(tmp_path.iterdir())


def test_bad_files_are_told_and_the_others_go_on(table: Path, tmp_path: Path) -> None:
    model, bad = tmp_path / "a.safetensors", tmp_path / "bad.cif"
    bad.write_text("no crystal")
    invoke("finetune", table / "data.csv", "--target", "a", "--method", "ridge", "--from",
           table / "start.safetensors", "-o", model, "-q")  # fmt: skip
    mixed = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    mixed.to(str(tmp_path / "mixed.cif"))
    said = invoke(
        "predict", model, bad, tmp_path / "mixed.cif", table / "3.cif", "-q", "-o", tmp_path / "a.csv"
    )
    assert said.startswith("1\n") and "bad.cif: " in said
    assert "mixed.cif: site 0 holds" in said and "1 predictions written" in said
    assert pd.read_csv(tmp_path / "a.csv")["file"].tolist() == [str(table / "3.cif")]


def test_what_cannot_be_drawn_is_told_before_the_work_and_folders_are_made(
    table: Path, tmp_path: Path
) -> None:
    model, out = tmp_path / "a.safetensors", tmp_path / "new" / "a.csv"
    invoke("finetune", table / "data.csv", "--target", "a", "--method", "ridge", "--from",
           table / "start.safetensors", "-o", model, "-q")  # fmt: skip
    said = invoke("predict", model, *[table / "3.cif"] * 61, "-q", "-o", out, "--plot", tmp_path / "p.png")
    assert said.startswith("2\n") and "61 crystals do not fit" in said
    said = invoke("predict", model, table / "3.cif", "-q", "-o", out, "--plot", tmp_path / "p.doc")
    assert said.startswith("2\n") and "a picture is one of .png" in said
    assert not out.parent.exists()
    said = invoke("predict", model, table / "3.cif", "-q", "-o", out, "--plot", tmp_path / "b" / "p.png")
    assert said.startswith("0\n") and out.exists() and (tmp_path / "b" / "p.png").exists()


def test_chains_are_as_many_as_intervals_were_calibrated_with() -> None:
    assert inspect.signature(predict).parameters["samples"].default == N_SAMPLES


def test_a_picture_has_a_row_for_every_crystal(tmp_path: Path) -> None:
    q = np.sort(np.random.default_rng(0).normal(size=(4, len(LEVELS))), axis=1)
    draw(tmp_path / "p.svg", ["NaCl", "KCl", "LiF", "MgO"], q, "band gap (eV)", truth=q[:, 5])
    assert (tmp_path / "p.svg").stat().st_size > 5000
    with pytest.raises(InputError, match="quantiles"):
        draw(tmp_path / "q.svg", ["NaCl"], q)
    with pytest.raises(InputError, match="61 crystals"):
        draw(tmp_path / "q.svg", ["x"] * 61, np.tile(q[:1], (61, 1)))
    assert not (tmp_path / "q.svg").exists()
