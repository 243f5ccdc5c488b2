"""Embedders: what they may not see (cell, origin, orientation, company) and what they must."""

import json

import numpy as np
import pytest
import torch
from pymatgen.core import Composition, Lattice, Structure

from crystalml.embedders import ALIGNNEmbedder, MEGNetEmbedder, ModelEmbedder, load_embedder
from crystalml.errors import CrystalMLError, InputError, UnsupportedError, WeightsError
from crystalml.metrics.distribution import frechet


@pytest.fixture(scope="module")
def salts() -> list[Structure]:
    lengths = {"NaCl": 5.64, "KCl": 6.29, "MgO": 4.21, "CaO": 4.81, "LiF": 4.03}
    return [
        Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), list(Composition(name)), [[0] * 3, [0.5] * 3])
        .get_primitive_structure()
        for name, a in lengths.items()
    ]  # fmt: skip


def perovskite() -> Structure:
    places = [[0] * 3, [0.5] * 3, [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return Structure(Lattice.cubic(3.9), ["Sr", "Ti", "O", "O", "O"], places)


def test_a_potential_sees_the_crystal_not_the_cell(tiny_potential, salts) -> None:
    embedder = ModelEmbedder(tiny_potential(), "cpu")
    crystal = perovskite()
    moved = crystal.copy()
    moved.translate_sites(range(5), [0.2, 0.3, 0.4])
    rows = embedder([crystal, crystal * (2, 1, 1), moved, *salts])
    assert rows.shape == (8, 16) and rows.dtype == np.float64
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-5)
    np.testing.assert_allclose(rows[2], rows[0], atol=1e-5)
    assert np.abs(rows[3] - rows[0]).max() > 1e-2


def test_a_row_does_not_depend_on_the_company(tiny_model, tiny_potential, salts) -> None:
    for model in (tiny_model(), tiny_potential()):
        embedder = ModelEmbedder(model, "cpu")
        together = embedder([perovskite(), *salts])
        alone = np.concatenate([embedder([s]) for s in (perovskite(), *salts)])
        np.testing.assert_allclose(together, alone, atol=1e-5)


def test_diffusion_models_get_the_primitive_cell(tiny_model) -> None:
    embedder = ModelEmbedder(tiny_model(), "cpu")
    crystal = perovskite()
    np.testing.assert_allclose(embedder([crystal * (1, 2, 1)]), embedder([crystal]), atol=1e-4)


def test_frechet_distance_of_crystals_rises_with_noise(tiny_potential, salts) -> None:
    """0 for the same crystals, then up with every level of displacement."""
    embedder = ModelEmbedder(tiny_potential(), "cpu")
    crystals = [*salts, perovskite()] * 3
    clean = embedder(crystals)
    distances = [frechet(clean, clean)]
    rng = np.random.default_rng(0)
    directions = [rng.normal(size=(len(s), 3)) for s in crystals]
    for size in (0.05, 0.2, 0.5):
        shaken = []
        for crystal, direction in zip(crystals, directions, strict=True):
            moved = crystal.cart_coords + size * direction
            shaken.append(Structure(crystal.lattice, crystal.species, moved, coords_are_cartesian=True))
        distances.append(frechet(embedder(shaken), clean))
    assert distances[0] < 1e-6
    assert distances == sorted(distances) and distances[1] > 1e-6


def test_names_say_which_weights(tiny_model, tiny_potential) -> None:
    names = {ModelEmbedder(model, "cpu").name for model in (tiny_model(), tiny_potential())}
    assert len(names) == 2 and all("features" in name for name in names)
    assert load_embedder(tiny_model(), "cpu").name in names
    assert load_embedder(lambda structures: np.ones((len(structures), 2))).name == "<lambda>"
    assert load_embedder(device="cpu").name.startswith("dao-p features")
    with pytest.raises(InputError):
        load_embedder(device="cpu")([])
    with pytest.raises(CrystalMLError, match="no-such"):
        load_embedder("no-such-model")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_megnet_from_a_folder(tmp_path, salts) -> None:
    from matgl.models import MEGNet

    torch.manual_seed(0)
    MEGNet().save(tmp_path)
    embedder = load_embedder(f"megnet:{tmp_path}")
    rows = embedder(salts)
    assert rows.shape == (5, 160) and np.isfinite(rows).all() and np.ptp(rows, axis=0).max() > 0
    np.testing.assert_allclose(embedder([salts[0] * (2, 1, 1)]), rows[:1], atol=1e-4)
    assert frechet(rows, rows) < 1e-6 and "MEGNet" in embedder.name
    with pytest.raises(WeightsError, match="megnet:FOLDER"):
        MEGNetEmbedder(tmp_path / "nothing")


def test_alignn_is_asked_for_by_its_package() -> None:
    try:
        import alignn  # noqa: F401
    except ImportError:
        with pytest.raises(UnsupportedError, match=r"crystalml-dao\[alignn\]"):
            load_embedder("alignn")
    else:
        with pytest.raises(WeightsError, match="fetch them once"):
            load_embedder("alignn")


def test_alignn_from_a_folder(tmp_path, salts) -> None:
    """What its last layer reads: 256 numbers for the published size, after no gradient."""
    alignn = pytest.importorskip("alignn.models.alignn_atomwise_pure", reason="needs the extra `alignn`")
    settings = {"name": "alignn_atomwise_pure", "atom_input_features": 92, "hidden_features": 256}
    torch.manual_seed(0)
    model = alignn.ALIGNNAtomWisePure(alignn.ALIGNNAtomWisePureConfig(**settings))
    torch.save(model.state_dict(), tmp_path / "best_model.pt")
    config = {"model": settings, "cutoff": 5.0, "max_neighbors": 12, "atom_features": "cgcnn"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    embedder = ALIGNNEmbedder(tmp_path)
    rows = embedder(salts)
    assert rows.shape == (5, 256) and np.ptp(rows, axis=0).max() > 0
    np.testing.assert_allclose(embedder(salts[::-1])[::-1], rows, atol=1e-6)
    (tmp_path / "config.json").write_text(json.dumps({"model": {"name": "alignn"}}))
    with pytest.raises(WeightsError, match="DGL"):
        ALIGNNEmbedder(tmp_path)
