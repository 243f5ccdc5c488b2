"""Featurizers keep matminer's contract and scikit-learn's, and see crystals, not cells."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ase import Atoms
from pymatgen.core import Structure
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from crystalml.convert import to_structures
from crystalml.crystal import CrystalBatch
from crystalml.errors import FileReadError, InputError, UnknownElementError
from crystalml.featurizers import DaoFeaturizer, FourierFrameNetFeaturizer, learned
from crystalml.models.fourierframenet import FourierFrameNetConfig
from crystalml.models.model import CrystalModel, ModelConfig
from crystalml.testing import alpha_quartz, bcc, perovskite, rand_crystals, rock_salt
from crystalml.training.checkpoint import save_model

ENCODER = FourierFrameNetConfig(16, 1, 1, 2, 4, 8, 8, 8, 4, 8, 4.0, chiral=False)
CRYSTALS = to_structures(CrystalBatch.cat([rock_salt(), bcc(), perovskite(), alpha_quartz()]))


@pytest.fixture(scope="module")
def model() -> CrystalModel:
    torch.manual_seed(0)
    return ModelConfig(ENCODER, noise=False).build().eval()


@pytest.fixture
def featurizer(model: CrystalModel) -> FourierFrameNetFeaturizer:
    return FourierFrameNetFeaturizer(model)


def test_matminer_contract(featurizer: FourierFrameNetFeaturizer) -> None:
    labels = featurizer.feature_labels()
    assert len(labels) == 16 and len(set(labels)) == 16
    row = featurizer.featurize(CRYSTALS[0])
    assert isinstance(row, list) and len(row) == 16
    many = featurizer.featurize_many(CRYSTALS, pbar=False)
    np.testing.assert_allclose(many[0], row, atol=1e-6)
    rows = featurizer.featurize_many([(crystal,) for crystal in CRYSTALS], pbar=False)
    np.testing.assert_allclose(rows, many, atol=1e-6)
    assert featurizer.implementors() and "@article" in featurizer.citations()[0]
    featurizer.set_n_jobs(8)
    featurizer.set_chunksize(3)
    assert featurizer.n_jobs == 1
    assert featurizer.fit(CRYSTALS) is featurizer
    assert featurizer.precheck(CRYSTALS[0])


def test_tables_gain_columns_and_keep_their_index(featurizer: FourierFrameNetFeaturizer) -> None:
    df = pd.DataFrame({"structure": CRYSTALS, "y": range(4)}, index=list("abcd"))
    out = featurizer.featurize_dataframe(df, "structure", pbar=False)
    assert list(out.columns) == ["structure", "y", *featurizer.feature_labels()]
    assert list(out.index) == list("abcd") and list(df.columns) == ["structure", "y"]
    np.testing.assert_allclose(
        out.loc["c"].iloc[2:].astype(float), featurizer.featurize(CRYSTALS[2]), atol=1e-6
    )
    assert featurizer.fit_featurize_dataframe(df, "structure", pbar=False).equals(out)
    with pytest.raises(InputError, match="multiindex"):
        featurizer.featurize_dataframe(df, "structure", multiindex=True)
    assert featurizer.featurize_dataframe(df, "structure", inplace=True, pbar=False) is df
    assert "ffn_0" in df.columns
    with pytest.raises(InputError, match="has the column 'ffn_0' already"):
        featurizer.featurize_dataframe(df, "structure")
    with pytest.raises(InputError, match="no column 'crystal'"):
        featurizer.featurize_dataframe(df, "crystal")


def test_bad_entries_stop_the_work_or_leave_a_gap(featurizer: FourierFrameNetFeaturizer) -> None:
    disordered = Structure(np.eye(3) * 4, [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]])
    entries = [CRYSTALS[0], disordered, Atoms("H2O"), CRYSTALS[1]]
    with pytest.raises(InputError, match="entry 1"):
        featurizer.featurize_many(entries)
    rows = featurizer.featurize_many(entries, ignore_errors=True)
    assert np.isnan(rows).all(1).tolist() == [False, True, True, False]
    listed = featurizer.featurize_many(entries, ignore_errors=True, return_errors=True)
    assert "one whole atom" in listed[1][-1] and np.isnan(listed[0][-1])
    df = pd.DataFrame({"s": entries})
    out = featurizer.featurize_dataframe(df, "s", ignore_errors=True, return_errors=True)
    assert "FourierFrameNetFeaturizer Exceptions" in out.columns
    assert not featurizer.precheck(disordered)
    with pytest.raises(InputError, match="ignore_errors"):
        featurizer.featurize_many(entries, return_errors=True)


def test_supercells_settings_and_mirror_images_are_one_crystal(
    featurizer: FourierFrameNetFeaturizer,
) -> None:
    quartz = CRYSTALS[3]
    mirrored = to_structures(alpha_quartz(mirror=True))[0]
    same = [quartz, quartz * (2, 1, 1), mirrored, quartz.to_ase_atoms()]
    rows = featurizer.featurize_many(same)
    np.testing.assert_allclose(rows, rows[:1].repeat(4, 0), atol=1e-5)
    other = featurizer.featurize_many([CRYSTALS[2]])
    assert np.abs(other - rows[:1]).max() > 1e-3


def test_sites(model: CrystalModel) -> None:
    sites = FourierFrameNetFeaturizer(model, per="site")
    salt = CRYSTALS[0] * (2, 1, 1)
    rows = sites.featurize_many([(salt, 0), (salt, 1), (CRYSTALS[2], 4), (salt, 3)])
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)  # both Na
    assert np.abs(rows[0] - rows[3]).max() > 1e-3  # Cl
    table = sites.featurize_sites(CRYSTALS[2])
    assert table.shape == (5, 16)
    np.testing.assert_allclose(rows[2], table[4], atol=1e-6)
    whole = FourierFrameNetFeaturizer(model).featurize(CRYSTALS[2])
    np.testing.assert_allclose(table.mean(0), whole, atol=1e-6)
    np.testing.assert_allclose(sites.featurize(CRYSTALS[2], 4), table[4], atol=1e-6)
    df = pd.DataFrame({"structure": [salt], "site": [0]})
    assert sites.featurize_dataframe(df, ["structure", "site"]).shape == (1, 18)
    for bad in ((salt, 4), (salt, "x"), salt):
        with pytest.raises(InputError, match="site"):
            sites.featurize_many([bad])
    with pytest.raises(InputError, match="per="):
        FourierFrameNetFeaturizer(model, per="bond").featurize(salt)  # type: ignore[arg-type]


def test_scikit_learn_contract(model: CrystalModel, tmp_path: Path) -> None:
    save_model(model, tmp_path / "m.safetensors", {})
    path = str(tmp_path / "m.safetensors")
    featurizer = FourierFrameNetFeaturizer(path)
    assert clone(featurizer).get_params() == featurizer.get_params()
    x = to_structures(rand_crystals(0, 12, max_atoms=3))
    y = np.arange(12.0)
    search = GridSearchCV(
        make_pipeline(featurizer, Ridge()),
        {"ridge__alpha": [0.1, 10.0]},
        cv=2,
        scoring="neg_mean_absolute_error",
    ).fit(x, y)
    assert np.isfinite(search.best_score_) and search.predict(x).shape == (12,)
    table = featurizer.set_output(transform="pandas").transform(x)
    assert isinstance(table, pd.DataFrame) and list(table.columns) == featurizer.feature_labels()
    again = pickle.loads(pickle.dumps(featurizer))
    np.testing.assert_array_equal(again.transform(x), table)


def test_company_does_not_matter(featurizer: FourierFrameNetFeaturizer) -> None:
    together = featurizer.featurize_many(CRYSTALS)
    alone = np.stack([featurizer.featurize(s) for s in CRYSTALS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_cache_saves_the_work_and_knows_the_weights(
    model: CrystalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked = tmp_path / "deep" / "f.parquet", []
    original = learned.embed
    monkeypatch.setattr(learned, "embed", lambda m, x, **k: (asked.append(len(x)), original(m, x, **k))[1])
    first = FourierFrameNetFeaturizer(model, cache=path).featurize_many([*CRYSTALS[:3], CRYSTALS[0]])
    second = FourierFrameNetFeaturizer(model, cache=path).featurize_many(CRYSTALS)
    assert asked == [3, 1]
    np.testing.assert_array_equal(second[:3], first[:3])
    np.testing.assert_array_equal(first[3], first[0])
    torch.manual_seed(1)
    other = ModelConfig(ENCODER, noise=False).build()
    FourierFrameNetFeaturizer(other, cache=path).featurize_many(CRYSTALS[:1])
    assert asked == [3, 1, 1]  # other weights, other rows
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_is_no_cache_is_left_alone(model: CrystalModel, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(path)
    before = path.read_bytes()
    with pytest.raises(FileReadError, match="no cache"):
        FourierFrameNetFeaturizer(model, cache=path).featurize(CRYSTALS[0])
    assert path.read_bytes() == before
    with pytest.raises(InputError, match=r"\*.parquet"):
        FourierFrameNetFeaturizer(model, cache=tmp_path / "f.csv").featurize(CRYSTALS[0])


def test_elements_of_the_card_are_the_limit(model: CrystalModel) -> None:
    model.card = {"elements": ["Na", "Cl"]}
    try:
        FourierFrameNetFeaturizer(model).featurize(CRYSTALS[0])
        with pytest.raises(UnknownElementError, match="W"):
            FourierFrameNetFeaturizer(model).featurize(CRYSTALS[1])
        with pytest.raises(UnknownElementError, match="W"):
            FourierFrameNetFeaturizer(model).featurize_sites(CRYSTALS[1])
    finally:
        model.card = {}


def test_crysformers_are_asked_for_both_hands(tiny_model) -> None:
    quartz = to_structures(CrystalBatch.cat([alpha_quartz(), alpha_quartz(mirror=True)]))
    rows = DaoFeaturizer(tiny_model()).featurize_many(quartz)
    assert rows.shape == (2, 16)
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-4)
