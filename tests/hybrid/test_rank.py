"""The ranker learns what decides, says probabilities, and refuses what it cannot read."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystalml.errors import FileReadError, InputError
from crystalml.hybrid.rank import AFTER, FEATURES, Ranker, features, features_after, fit_after, fit_ranker
from crystalml.hybrid.refine import Judged

NAMES = list(FEATURES)


def proposal(
    score: float, energy: float = float("nan"), force: float = 0.0, derived: str = "direct"
) -> Judged:
    salt = Structure(Lattice.cubic(4.0), ["Na"], [[0, 0, 0]])
    salt.properties = {"score": score, "derived": derived, "supercell": 1}
    return Judged(salt, energy, force)


def test_features_are_what_they_say() -> None:
    x = features([proposal(-1.0, -3.0, 0.5), proposal(-2.0, -2.9, 3.0, "split"), proposal(-3.0)])
    column = dict(zip(NAMES, x.T, strict=True))
    np.testing.assert_allclose(column["score"], [-1, -2, -3])
    np.testing.assert_allclose(column["share"], np.exp([-1, -2, -3]))
    np.testing.assert_allclose(column["gap"], [0, 0.1, 0], atol=1e-12)
    np.testing.assert_allclose(column["low"], [1, np.exp(-1.25), 0])
    np.testing.assert_allclose(column["force"], [0.5, 2, 0])
    np.testing.assert_allclose(column["lost"], [0, 0, 1])
    np.testing.assert_allclose(column["split"], [0, 1, 0])
    assert not features([proposal(-1.0)])[:, 2:].any()  # without a potential only chemistry speaks


def test_an_energy_zero_does_not_matter() -> None:
    ranker = Ranker(dict.fromkeys(NAMES, 1.0))
    low = ranker.log_probabilities([proposal(-1, -3.0), proposal(-2, -2.5)])
    high = ranker.log_probabilities([proposal(-1, 7.0), proposal(-2, 7.5)])
    np.testing.assert_allclose(low, high)
    assert np.exp(low).sum() == pytest.approx(1)


def choices(
    rng: np.random.Generator, weights: np.ndarray, targets: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Targets whose one match is drawn from the model itself."""
    out = []
    for _ in range(targets):
        x = rng.normal(size=(12, len(NAMES)))
        p = np.exp(x @ weights)
        y = np.zeros(12, bool)
        y[rng.choice(12, p=p / p.sum())] = True
        out.append((x, y))
    return out


def test_the_fit_recovers_the_weights_of_its_own_model() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([1.0, 0.5, -2.0, 0.5, 0.0, 0.0, -1.0, -0.5, 0.0])
    found = fit_ranker(choices(rng, truth, 1500), ridge=1e-6)
    np.testing.assert_allclose([found.weights[name] for name in NAMES], truth, atol=0.2)


def test_fitted_probabilities_are_calibrated() -> None:
    rng = np.random.default_rng(1)
    truth = np.array([1.0, 0.5, -2.0, 0.5, 0.3, 0.0, -1.0, -0.5, 0.0])
    ranker = fit_ranker(choices(rng, truth, 1000), ridge=1e-6)
    said, right = [], []
    for x, y in choices(rng, truth, 2000):
        p = np.exp(ranker.log_shares(x))
        said.append(p.max())
        right.append(y[p.argmax()])
    for low, high in ((0.2, 0.5), (0.5, 0.8), (0.8, 1.0)):
        some = [k for k, p in enumerate(said) if low <= p < high]
        assert np.mean([right[k] for k in some]) == pytest.approx(np.mean([said[k] for k in some]), abs=0.06)


def test_what_does_not_vary_gets_no_weight() -> None:
    rng = np.random.default_rng(2)
    table = choices(rng, np.ones(len(NAMES)), 200)
    for x, _ in table:
        x[:, NAMES.index("force")] = 0.7
    assert fit_ranker(table).weights["force"] == 0.0
    assert fit_ranker(table, fixed=["gap"]).weights["gap"] == 0.0
    with pytest.raises(InputError, match="nothing to fit"):
        fit_ranker([(np.zeros((3, len(NAMES))), np.zeros(3, bool))])


def ended(energy: float | None, believed: bool = True) -> Structure:
    salt = Structure(Lattice.cubic(4.0), ["Na"], [[0, 0, 0]])
    salt.properties = {"relaxed": believed} | ({} if energy is None else {"minimum_energy": energy})
    return salt


def test_what_relaxation_tells() -> None:
    answers = [ended(-3.0), ended(-3.05), ended(-2.0, False), ended(None, False), ended(float("nan"))]
    before = np.log([0.4, 0.1, 0.1, 0.1, 0.05])
    x = features_after(answers, before)
    np.testing.assert_allclose(x[:, 0], before)
    np.testing.assert_allclose(x[:, 1], [0.05, 0, 0.1, 0.1, 0.1])
    np.testing.assert_allclose(x[:, 2], [1, 1, 0, 0, 1])
    plain = Ranker(dict.fromkeys(NAMES, 0.0))
    np.testing.assert_allclose(plain.log_shares_after(x), before)  # nothing learned, nothing changed
    keen = replace(plain, after={"log_share": 0.8, "depth": -30.0, "believed": 1.0})
    after = keen.log_shares_after(x)
    assert after.argmax() == 1 and np.exp(after).sum() == pytest.approx(0.75)  # what they had together stays


def test_the_second_fit_recovers_the_weights_of_its_own_model() -> None:
    rng = np.random.default_rng(3)
    truth, tables = np.array([0.8, -20.0, 0.7]), []
    for _ in range(1500):
        share = np.log(rng.dirichlet(np.ones(10)))
        x = np.column_stack([share, rng.uniform(0, 0.1, 10), rng.random(10) < 0.8])
        p = np.exp(x @ truth)
        y = np.zeros(10, bool)
        y[rng.choice(10, p=p / p.sum())] = True
        tables.append((x, y))
    ranker = Ranker(dict.fromkeys(NAMES, 0.5))
    found = fit_after(ranker, tables, ridge=1e-6)
    np.testing.assert_allclose([found.after[name] for name in AFTER], truth, rtol=0.15)
    assert found.weights == ranker.weights


def test_files(tmp_path: Path) -> None:
    after = {"log_share": 0.8, "depth": -18.0, "believed": 0.7}
    ranker = Ranker({name: float(k) for k, name in enumerate(NAMES)}, {"made": "here"}, after)
    ranker.save(tmp_path / "r.json")
    back = Ranker.load(tmp_path / "r.json")
    assert back.weights == ranker.weights and back.after == after and back.card["made"] == "here"
    assert back.name == ranker.name != replace(ranker, after={**after, "depth": 0.0}).name
    content = json.loads((tmp_path / "r.json").read_text())
    del content["after"]  # as rankers were written before there was any
    (tmp_path / "r.json").write_text(json.dumps(content))
    assert Ranker.load(tmp_path / "r.json").after == {"log_share": 1.0, "depth": 0.0, "believed": 0.0}
    (tmp_path / "bad.json").write_text('{"weights": {"score": 1}}')
    with pytest.raises(FileReadError, match="fit-ranker"):
        Ranker.load(tmp_path / "bad.json")
    with pytest.raises(InputError, match="score"):
        Ranker({"beauty": 1.0})
    with pytest.raises(InputError, match="depth"):
        replace(ranker, after={"beauty": 1.0})


def test_the_shipped_ranker_trusts_chemistry_and_low_energies() -> None:
    weights = Ranker.default().weights
    assert weights["score"] > 0 and weights["gap"] <= 0 and weights["low"] >= 0
    after = Ranker.default().after
    assert after["log_share"] > 0 and after["depth"] <= 0 and after["believed"] >= 0
    assert Ranker.default().card["made"]
