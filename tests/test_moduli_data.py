"""The answer of atoms to a strain leaves no force on them."""

from pathlib import Path

import pytest
import torch
from ase.build import bulk

from crystalml.convert import to_batch
from crystalml.errors import UnsupportedError
from crystalml.models.derivatives import derivatives
from crystalml.moduli_data import moduli_data, responses
from crystalml.objectives.moduli import disturbed
from crystalml.weights import load_model


def test_atoms_that_have_answered_feel_no_force(tiny_potential) -> None:
    """Zincblende under pressure, where the repulsion makes every mode stiff; and rock salt, which stays."""
    model = tiny_potential().double()
    soft, stiff = bulk("GaAs", "zincblende", a=4.0), bulk("NaCl", "rocksalt", a=4.4)
    x = to_batch([soft, stiff]).to(dtype=torch.float64)
    way = responses(model, x)
    assert way.shape == (4, 6, 3) and way[:2].abs().max() > 0.05 and way[2:].abs().max() < 1e-3
    strain = torch.full((2,), 1e-3, dtype=torch.float64)
    answered = x.replace(site_labels={"response": way.double()})
    held, moved = (derivatives(model, disturbed(y, strain)).forces.abs().max() for y in (x, answered))
    assert moved < 0.05 * held


def test_the_callers_model_stays_as_it_is(tiny_potential) -> None:
    model, x = tiny_potential(), to_batch([bulk("NaCl", "rocksalt", a=4.4)])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    responses(model, x)
    assert all(
        torch.equal(value, before[name]) and value.dtype == before[name].dtype
        for name, value in model.state_dict().items()
    )
    assert torch.float32 in {value.dtype for value in before.values()}


def test_real_crystals_come_with_their_answers(shared_data: Path, tiny_potential) -> None:
    pytest.importorskip("pyarrow")
    data = moduli_data(shared_data, tiny_potential(), "val", 2, progress=False)
    way = data.site_labels["response"]
    assert len(data) > 20 and way.shape == (len(data.numbers), 6, 3) and way.isfinite().all()
    centre = way.view(-1, 2, 6, 3).mean(1)
    assert centre.abs().max() < 1e-5  # crystals do not drift
    with pytest.raises(UnsupportedError, match="dao-p"):
        moduli_data(shared_data, load_model("dao-g"), "val", 2)
