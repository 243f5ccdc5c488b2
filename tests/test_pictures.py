"""Pictures: what they show is what they were given, and bad requests leave no file."""

from pathlib import Path

import numpy as np
import pytest

from crystalml.errors import InputError, UnsupportedError
from crystalml.pictures import COLORS, chemistry, crystal_map, learning_curves, parity, plane

G = np.random.default_rng(0)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_parity_gives_the_error_and_a_picture(suffix: str, tmp_path: Path) -> None:
    truth = np.array([1.0, 2.0, np.nan, 4.0])
    path = tmp_path / f"p.{suffix}"
    assert parity(path, truth, np.array([1.5, 2.0, 3.0, 3.0]), np.full(4, 0.2), "gap", "eV") == 0.5
    assert path.stat().st_size > 1000 and list(tmp_path.iterdir()) == [path]


def test_parity_refuses_what_it_cannot_draw(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row"):
        parity(tmp_path / "p.png", np.array([np.nan]), np.array([1.0]))
    with pytest.raises(InputError, match=r"\.gif"):
        parity(tmp_path / "p.gif", np.ones(3), np.ones(3))
    assert list(tmp_path.iterdir()) == []


def _cell(train: int, mae: float) -> dict[str, object]:
    return {"train": train, "mae": mae, "interval": [0.9 * mae, 1.1 * mae]}


def test_learning_curves_need_several_shares(tmp_path: Path) -> None:
    rows = {
        f"{row}@{share}": _cell(10 * share, 1 / share) for row in ("random", "pfm") for share in (10, 100)
    }
    result = {"tasks": {"phonons": {"unit": "1/cm", "rows": rows}, "gap": {"unit": "eV", "rows": rows}}}
    learning_curves(tmp_path / "c.svg", result)
    text = (tmp_path / "c.svg").read_text()
    assert text.count("<svg") == 1 and len(text) > 5000
    records = [
        {
            "property": "gap",
            "row": "frozen",
            "unit": "eV",
            "train": n,
            "mae": {"mean": 1 / n, "interval": [0.5 / n, 2 / n]},
        }
        for n in (10, 100)
    ]
    learning_curves(tmp_path / "e.svg", {"records": records})
    assert (tmp_path / "e.svg").stat().st_size > 5000
    with pytest.raises(InputError, match="--fractions"):
        learning_curves(tmp_path / "d.svg", {"records": records[:1]})
    flat = {"tasks": {"phonons": {"unit": "", "rows": {"pfm@100": _cell(5, 1.0)}}}}
    with pytest.raises(InputError, match="--shares"):
        learning_curves(tmp_path / "d.svg", flat)


@pytest.mark.parametrize(
    ("formula", "kind"),
    [("MgO", "oxide"), ("NaCl", "halide"), ("ZnS", "chalcogenide"), ("GaN", "pnictide"),
     ("Ni3Al", "metals only"),
     ("SiC", "other"), ("Na2SO4", "oxide")],
)  # fmt: skip
def test_chemistry(formula: str, kind: str) -> None:
    assert chemistry(formula) == kind and kind in COLORS


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_plane_keeps_two_heaps_apart(method: str) -> None:
    heaps = np.repeat([0, 1], 30)
    points = plane(G.normal(size=(60, 10)) + 8 * heaps[:, None], method)
    middle = [points[heaps == k].mean(0) for k in (0, 1)]
    spread = max(points[heaps == k].std() for k in (0, 1))
    assert np.linalg.norm(middle[0] - middle[1]) > 2 * spread


def test_maps_are_drawn_by_chemistry_class_or_number(tmp_path: Path) -> None:
    features, formulas = G.normal(size=(20, 4)), ["MgO", "NaCl"] * 10
    assert crystal_map(tmp_path / "a.png", features, formulas).shape == (20, 2)
    crystal_map(tmp_path / "b.png", features, formulas, np.array(["x", "y"] * 10))
    crystal_map(tmp_path / "c.png", features, formulas, np.linspace(0, 1, 20))
    crystal_map(tmp_path / "d.html", features, formulas)
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("a.png", "b.png", "c.png", "d.html"))
    assert "MgO" in (tmp_path / "d.html").read_text()


def test_maps_refuse_what_they_cannot_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = G.normal(size=(20, 4))
    with pytest.raises(InputError, match="'som'"):
        plane(features, "som")
    with pytest.raises(InputError, match="at least 5"):
        plane(features[:3])
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(UnsupportedError, match="umap-learn"):
        crystal_map(tmp_path / "m.png", features, ["MgO"] * 20, method="umap")
    assert list(tmp_path.iterdir()) == []
