"""PropertyPredictor: it learns, it knows how well, it keeps, and it refuses what it cannot use."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.model_selection import GridSearchCV, cross_val_score

from crystalml.convert import to_structures
from crystalml.crystal import CrystalBatch
from crystalml.errors import InputError, UnsupportedError
from crystalml.models.crysformer import CrysformerConfig
from crystalml.models.fourierframenet import FourierFrameNetConfig
from crystalml.property import PropertyPredictor
from crystalml.testing import perovskite, rand_crystals
from crystalml.weights.registry import load_model

ENCODER = FourierFrameNetConfig(16, 1, 1, 2, 4, 8, 8, 8, 4, 8, 4.0, chiral=False)


def stretched(count: int, seed: int = 0) -> tuple[CrystalBatch, np.ndarray]:
    """Perovskites of many sizes; the property is their lattice constant."""
    g = torch.Generator().manual_seed(seed)
    scale = 0.9 + 0.2 * torch.rand(count, generator=g, dtype=torch.float64)
    x = perovskite()
    batch = CrystalBatch.cat([x.replace(lattice=x.lattice * s) for s in scale])
    return batch, (3.905 * scale).numpy()


@pytest.fixture(scope="module")
def learned() -> PropertyPredictor:
    x, y = stretched(80)
    return PropertyPredictor(ENCODER, name="a", unit="Angstrom", epochs=15).fit(x, y)


def test_fine_tuning_learns_and_knows_how_well(learned: PropertyPredictor) -> None:
    x, y = stretched(60, seed=1)
    value, std = learned.predict(x, return_std=True)
    error = np.abs(value - y)
    assert error.mean() < 0.4 * np.abs(y - y.mean()).mean()
    assert (error < 4 * std).mean() > 0.9 and std.max() < y.std()
    assert learned.history_[-1].best < learned.history_[0].validation
    assert learned.score(x, y) > 0.8


def test_a_file_keeps_everything(learned: PropertyPredictor, tmp_path: Path) -> None:
    x, _ = stretched(5, seed=2)
    path = tmp_path / "a.safetensors"
    learned.save(path, {"licence": "MIT"})
    again = PropertyPredictor.load(path)
    for kept, before in zip(again.predict(x, True), learned.predict(x, True), strict=True):
        np.testing.assert_allclose(kept, before, rtol=1e-6)
    assert (again.name, again.unit, again.method) == ("a", "Angstrom", "regression")
    card = load_model(path).card
    assert card["licence"] == "MIT" and card["elements"] == ["O", "Ti", "Sr"]
    assert card["training"]["crystals"] == 72 and card["training"]["validation"] == 8


def test_a_file_remembers_whether_cells_are_taken_as_they_are(tmp_path: Path) -> None:
    x, y = stretched(12)
    long = [structure * (2, 1, 1) for structure in to_structures(x)]
    model = PropertyPredictor(ENCODER, "ridge", primitive=False).fit(x, y)
    model.save(tmp_path / "a.safetensors")
    again = PropertyPredictor.load(tmp_path / "a.safetensors")
    assert again.primitive is False
    np.testing.assert_allclose(again.predict(long), model.predict(long), rtol=1e-6)
    assert np.abs(model.predict(long) - model.predict(x)).max() > 1e-3  # it would have mattered


def test_cell_and_hands_do_not_matter(learned: PropertyPredictor) -> None:
    structure = to_structures(stretched(1, seed=3)[0])[0]
    value = learned.predict(structure)
    np.testing.assert_allclose(learned.predict(structure * (2, 1, 1)), value, rtol=1e-5)
    np.testing.assert_allclose(learned.predict(structure.to_ase_atoms()), value, rtol=1e-5)


def test_encoders_that_tell_hands_are_asked_for_both() -> None:
    x, y = rand_crystals(0, 12), np.arange(12.0)
    one = PropertyPredictor(CrysformerConfig(16, 1, 2, 16, 4, 8), epochs=2).fit(x, y)
    mirrored = x.replace(frac=1 - x.frac)
    np.testing.assert_allclose(one.predict(x), one.predict(mirrored), rtol=1e-4, atol=1e-5)
    assert np.ptp(one.predict(x)) > 0


@pytest.mark.parametrize("method", ["ridge", "gp"])
def test_a_handful_of_labels(method: str, tmp_path: Path) -> None:
    x, y = stretched(25)
    few = PropertyPredictor(ENCODER, method).fit(x, y)  # type: ignore[arg-type]
    others, truth = stretched(20, seed=1)
    value, std = few.predict(others, return_std=True)
    assert np.abs(value - truth).mean() < 0.1 * np.abs(truth - truth.mean()).mean()
    assert (np.abs(value - truth) < 3 * std).mean() > 0.8
    few.save(tmp_path / "few.safetensors")
    np.testing.assert_allclose(
        PropertyPredictor.load(tmp_path / "few.safetensors").predict(others), value, rtol=1e-6
    )


@pytest.mark.parametrize("method", ["regression", "diffusion"])
@pytest.mark.parametrize(("count", "watched"), [(4, 0), (12, 1), (24, 2)])
def test_few_labels_leave_doubt(method: str, count: int, watched: int) -> None:
    """One validation crystal, on which training stops where it fits, would tell of no error at all."""
    x, y = stretched(count)
    with pytest.warns(UserWarning, match=f'error bars of {watched} validation crystals.*method="ridge"'):
        model = PropertyPredictor(ENCODER, method, epochs=3, freeze=True).fit(x, y)  # type: ignore[arg-type]
    value, std, q = model.predict(stretched(9, seed=1)[0], True, (0.05, 0.5, 0.95))
    assert (std > 0.5 * y.std()).all() and (np.diff(q) > 0.5 * y.std()).all()
    np.testing.assert_allclose(q[:, 1], value, atol=0.05 * y.std())


def test_a_posterior_is_not_judged_on_a_handful() -> None:
    x, y = stretched(20)
    alone = PropertyPredictor(ENCODER, "ridge").fit(x, y)
    judged = PropertyPredictor(ENCODER, "ridge").fit(x, y, validation=stretched(2, seed=1))
    for first, second in zip(alone.predict(x, True), judged.predict(x, True), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("method", ["regression", "diffusion", "ridge"])
def test_values_end_where_many_crystals_do(method: str, tmp_path: Path) -> None:
    """Gaps of metals are 0: nothing that is answered lies below, and intervals hold the crystals there."""
    (x, y), (known, theirs), (others, truth) = (stretched(60, seed=k) for k in (0, 1, 2))
    y, theirs, truth = (np.maximum(values - 3.9, 0) for values in (y, theirs, truth))
    path = tmp_path / "cut.safetensors"
    PropertyPredictor(ENCODER, method, epochs=4).fit(x, y, (known, theirs)).save(path)  # type: ignore[arg-type]
    value, q = PropertyPredictor.load(path).predict(others, quantiles=(0.05, 0.5, 0.95))
    assert value.min() >= 0 and q.min() == 0
    held = (q[:, 0] <= truth) & (truth <= q[:, 2])
    assert held[truth == 0].mean() > 0.9 and held.mean() > 0.8
    target = load_model(path).config.target
    assert target is not None and (target.low, target.high) == (0, None)


def test_values_go_on_where_few_crystals_end() -> None:
    x, y = stretched(80)
    few = np.maximum(y, np.sort(y)[8])  # nine of eighty
    target = PropertyPredictor(ENCODER, "ridge").fit(x, few).model_.config.target
    assert target is not None and (target.low, target.high) == (None, None)


@pytest.mark.parametrize("method", ["regression", "ridge"])
def test_classes(method: str) -> None:
    x, y = stretched(40)
    names = np.where(y > 3.9, "wide", "narrow")
    model = PropertyPredictor(ENCODER, method, epochs=30).fit(x, names)  # type: ignore[arg-type]
    assert model.classes_.tolist() == ["narrow", "wide"]
    assert model.score(x, names) > 0.9
    chance = model.predict_proba(x)
    np.testing.assert_allclose(chance.sum(1), 1, rtol=1e-6)
    assert (model.classes_[chance.argmax(1)] == model.predict(x)).all()
    with pytest.raises(UnsupportedError, match="predict_proba"):
        model.predict(x, return_std=True)


def test_numbers_in_a_column_of_objects_are_no_classes() -> None:
    x, y = stretched(12)
    plain = PropertyPredictor(ENCODER, "ridge").fit(x, y).predict(x)
    for given in (y.astype(object), [str(value) for value in y]):
        np.testing.assert_array_equal(PropertyPredictor(ENCODER, "ridge").fit(x, given).predict(x), plain)
    assert PropertyPredictor(ENCODER, "ridge", classification=True).fit(x, y > 3.9).classes_.size == 2


def test_a_frozen_encoder_stays_as_it_was_and_a_free_one_does_not() -> None:
    x, y = stretched(30)
    start = PropertyPredictor(ENCODER)._start().encoder.state_dict()
    for freeze in (True, False):
        model = PropertyPredictor(ENCODER, epochs=2, freeze=freeze).fit(x, y).model_
        same = all(torch.equal(v, start[k]) for k, v in model.encoder.state_dict().items())
        assert same == freeze
        assert all(p.requires_grad for p in model.parameters())


def test_compiling_changes_the_speed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compiled(core, dynamic):  # type: ignore[no-untyped-def]
        def counted(*args):  # type: ignore[no-untyped-def]
            calls.append(dynamic)
            return core(*args)

        return counted

    monkeypatch.setattr(torch, "compile", compiled)
    x, y = stretched(24)
    plain, fast = (PropertyPredictor(ENCODER, epochs=2, compile=c).fit(x, y) for c in (False, True))
    np.testing.assert_array_equal(plain.predict(x), fast.predict(x))
    seen = len(calls)
    assert seen > 0 and all(calls), "used in training, for batches of any size"
    fast.predict(x)
    assert len(calls) == seen, "afterwards the method is back"


def test_a_pretrained_encoder_is_the_start_and_is_not_changed(learned: PropertyPredictor) -> None:
    before = {k: v.clone() for k, v in learned.model_.state_dict().items()}
    x, y = stretched(20)
    PropertyPredictor(learned.model_, epochs=1).fit(x, -y)
    assert all(torch.equal(v, before[k]) for k, v in learned.model_.state_dict().items())
    start = PropertyPredictor(learned.model_)._start()
    assert all(torch.equal(v, before[f"encoder.{k}"]) for k, v in start.encoder.state_dict().items())


def test_the_same_seed_gives_the_same_model() -> None:
    x, y = stretched(30)
    first, second = (PropertyPredictor(ENCODER, epochs=2, seed=3).fit(x, y).predict(x) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_scikit_learn_takes_it_for_one_of_its_own() -> None:
    x, y = stretched(24)
    structures = to_structures(x)
    search = GridSearchCV(PropertyPredictor(ENCODER, "ridge"), {"method": ["ridge", "gp"]}, cv=3)
    search.fit(structures, y)
    assert search.best_score_ > 0.9
    assert clone(search.best_estimator_).get_params()["method"] in ("ridge", "gp")
    fresh = PropertyPredictor(ENCODER, "ridge")
    assert is_regressor(search.best_estimator_) and is_regressor(fresh)
    assert not hasattr(fresh, "classes_")
    wide = np.where(y > np.median(y), "wide", "narrow")
    model = PropertyPredictor(ENCODER, "ridge", classification=True)
    assert is_classifier(model) and is_classifier(fresh.fit(structures, wide))
    assert cross_val_score(model, structures, wide, scoring="roc_auc", cv=3).min() > 0.9


def test_what_cannot_be_learned_is_refused() -> None:
    x, y = stretched(12)
    model = PropertyPredictor(ENCODER, "ridge")
    with pytest.raises(InputError, match="12 structures need 12 values"):
        model.fit(x, y[:5])
    with pytest.raises(InputError, match="not finite at 1 places, first at 3"):
        model.fit(x, np.where(np.arange(12) == 3, np.nan, y))
    with pytest.raises(InputError, match="not finite at 1 places, first at 0"):
        model.fit(x, [None, *y[1:]])
    with pytest.raises(InputError, match="11 numbers and text: 'unknown' in row 11"):
        model.fit(x, [*y[1:], "unknown"])
    with pytest.raises(InputError, match="y of validation is not finite"):
        model.fit(x, y, validation=(x[:2], [None, 1.0]))
    with pytest.raises(InputError, match="nothing to learn"):
        model.fit(x, np.ones(12))
    with pytest.raises(InputError, match="nothing to learn"):
        model.fit(x, ["same"] * 12)
    with pytest.raises(InputError, match="'magic'"):
        PropertyPredictor(ENCODER, "magic").fit(x, y)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="classes"):
        PropertyPredictor(ENCODER, "gp").fit(x, ["a", "b"] * 6)
    with pytest.raises(InputError, match="call fit"):
        model.predict(x)
    with pytest.raises(InputError, match="classes that training lacks: c"):
        PropertyPredictor(ENCODER, epochs=1).fit(x, ["a", "b"] * 6, validation=(x[:2], ["a", "c"]))


def test_what_it_never_saw_is_told(learned: PropertyPredictor, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="never seen in training: Na"):
        learned.predict(rand_crystals(0, 1, species=[11]))
    with pytest.raises(InputError, match=r"\.safetensors"):
        learned.save(tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_property_says_so(tmp_path: Path, tiny_model) -> None:
    from crystalml.training.checkpoint import save_model

    save_model(tiny_model(), tmp_path / "m.safetensors", {})
    with pytest.raises(UnsupportedError, match="predicts no property"):
        PropertyPredictor.load(tmp_path / "m.safetensors")
