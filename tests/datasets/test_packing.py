from pathlib import Path

import pytest

from crystalml.datasets.packing import training_set
from crystalml.errors import InputError


def test_frames_join_the_crystals_on_one_energy_scale(shared_data: Path) -> None:
    pytest.importorskip("pyarrow")
    data = training_set(shared_data, "val", max_atoms=4, num_frames=50)
    frame = data.labels["off_equilibrium"] == 1
    assert int(frame.sum()) == 50 and len(data) > 500
    energy = data.labels["energy"]
    assert energy[frame].isfinite().all()
    assert -6 < energy[frame].median() < 2 and -6 < energy[~frame].nanmedian() < 2
    assert int(data.num_atoms.max()) <= 4


def test_subsets_by_benchmark_and_label(shared_data: Path) -> None:
    pytest.importorskip("pyarrow")
    data = training_set(shared_data, "val", max_atoms=3, benchmark="mp_20_val", labelled=True)
    assert (
        len(data) > 300 and (data.labels["benchmark"] == 2).all() and data.labels["energy"].isfinite().all()
    )
    with pytest.raises(InputError, match="mp_20_train"):
        training_set(shared_data, benchmark="mp_21")
