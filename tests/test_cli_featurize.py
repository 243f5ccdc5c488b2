"""From files to features to pictures, on the command line."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from crystalml import cli_featurize
from crystalml.convert import to_structures
from crystalml.crystal import CrystalBatch
from crystalml.models.fourierframenet import FourierFrameNetConfig
from crystalml.models.model import ModelConfig
from crystalml.testing import alpha_quartz, bcc, fcc, hexagonal, perovskite, rock_salt
from crystalml.training.checkpoint import save_model


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = FourierFrameNetConfig(16, 1, 1, 2, 4, 8, 8, 8, 4, 8, 4.0, chiral=False)
    save_model(ModelConfig(config, noise=False).build(), tmp_path / "m.safetensors", {})
    return tmp_path / "m.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    crystals = [rock_salt(), bcc(), perovskite(), alpha_quartz(), fcc(), hexagonal()]
    (tmp_path / "in").mkdir()
    for k, structure in enumerate(to_structures(CrystalBatch.cat(crystals))):
        structure.to(str(tmp_path / "in" / f"{k}.cif"))
    return tmp_path / "in"


def test_files_become_features_and_a_map(run: Any, weights: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "bad.cif").write_text("nonsense")
    out = tmp_path / "f.parquet"
    result = run("featurize", folder, "-o", out, "--model", weights, "-q")
    assert result.exit_code == 1 and "bad.cif" in result.output  # told, and the others done
    table = pd.read_parquet(out)
    assert table["formula"].tolist() == ["NaCl", "W", "SrTiO3", "SiO2", "Cu", "Mg"]
    assert table.shape == (6, 18) and np.isfinite(table.iloc[:, 2:].to_numpy(float)).all()
    result = run("plot", "map", out, "-o", tmp_path / "map.png")
    assert result.exit_code == 0 and (tmp_path / "map.png").exists()
    result = run("plot", "map", out, "--color", "mood", "-o", tmp_path / "m.png")
    assert result.exit_code == 2 and "no column 'mood'" in result.output


def test_crystals_that_the_network_does_not_know_are_told_and_the_others_go_on(
    run: Any, folder: Path, tmp_path: Path
) -> None:
    config = FourierFrameNetConfig(16, 1, 1, 2, 4, 8, 8, 8, 4, 8, 4.0, chiral=False)
    weights = tmp_path / "few.safetensors"
    save_model(ModelConfig(config, noise=False).build(), weights, {"elements": ["Na", "Cl", "W"]})
    out = tmp_path / "f.csv"
    result = run("featurize", folder, "-o", out, "--model", weights, "-q")
    assert result.exit_code == 1 and "Cu (Z = 29) is not among the 3 elements" in result.output
    assert pd.read_csv(out)["formula"].tolist() == ["NaCl", "W"]


def test_sites_become_rows(run: Any, weights: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    result = run(
        "featurize", folder / "0.cif", folder / "2.cif", "--sites", "--model", weights, "-q", "-o", out
    )
    assert result.exit_code == 0
    table = pd.read_csv(out)
    assert sorted(table["element"][:2]) == ["Cl", "Na"] and len(table) == 7
    assert table["site"].tolist() == [0, 1, 0, 1, 2, 3, 4]


def test_tables_of_crysdb_are_read(run: Any, weights: Path, tmp_path: Path) -> None:
    x = perovskite()
    row = {
        "material_id": "mp-1",
        "numbers": x.numbers.tolist(),
        "frac_coords": x.frac.flatten().tolist(),
        "lattice": x.lattice.flatten().tolist(),
        "n_atoms": 5,
    }
    pd.DataFrame([{**row, "material_id": f"mp-{k}"} for k in range(9)]).to_parquet(tmp_path / "mp.parquet")
    result = run(
        "featurize", tmp_path / "mp.parquet", "-n", 4, "--model", weights, "-q", "-o", tmp_path / "f.csv"
    )
    assert result.exit_code == 0
    table = pd.read_csv(tmp_path / "f.csv")
    assert len(table) == 4 and set(table["file"]) <= {f"mp-{k}" for k in range(9)}


def test_parity_and_curves(run: Any, tmp_path: Path) -> None:
    pd.DataFrame({"y": [1.0, 2, 3], "p": [1.5, 2, 3]}).to_csv(tmp_path / "p.csv", index=False)
    result = run(
        "plot", "parity", tmp_path / "p.csv", "--truth", "y", "--value", "p", "-o", tmp_path / "p.png"
    )
    assert result.exit_code == 0 and "MAE 0.1667" in result.output
    result = run("plot", "curves", tmp_path / "none.json")
    assert result.exit_code == 2 and "no result" in result.output


def test_parquet_without_pyarrow_is_told_before_the_work(
    run: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_featurize, "find_spec", lambda name: None)
    result = run("featurize", folder, "-o", tmp_path / "f.parquet", "--model", "no-such-model")
    assert result.exit_code == 2 and "needs pyarrow" in result.output
    (tmp_path / "f.parquet").write_text("nonsense")
    result = run("plot", "map", tmp_path / "f.parquet", "-o", tmp_path / "m.png")
    assert result.exit_code == 2 and "needs pyarrow" in result.output
    monkeypatch.undo()
    for name in (tmp_path / "f.parquet", folder / "0.cif"):
        result = run("plot", "map", name, "-o", tmp_path / "m.png")
        assert result.exit_code == 2 and f"{name.name} is no table" in result.output.replace("\n", "")


def test_bad_requests_are_one_line(run: Any, folder: Path, tmp_path: Path) -> None:
    result = run("featurize", folder, "-o", tmp_path / "f.xlsx")
    assert result.exit_code == 2 and ".parquet or .csv" in result.output
    result = run("pack-csd", "-o", tmp_path / "csd.safetensors")
    assert result.exit_code == 2 and "CSD licence" in result.output
    result = run("benchmark", "matbench", tmp_path, "--encoder", "rr", "-o", tmp_path / "out")
    assert result.exit_code == 2 and "NAME=weights" in result.output
    assert not (tmp_path / "out").exists()
