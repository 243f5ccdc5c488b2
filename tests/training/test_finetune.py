"""Fine-tuning: epochs are whole passes over the crystals, however they are cut into batches."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.datasets.packed import PackedDataset, SizeBatches
from crystalml.models.model import CrystalModel
from crystalml.testing import rand_crystals
from crystalml.training.finetune import FinetuneConfig, finetune


@dataclass
class Seen:
    """An objective that notes how many crystals it was shown."""

    crystals: list[int] = field(default_factory=list)

    def __call__(
        self, model: CrystalModel, x: CrystalBatch, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        if torch.is_grad_enabled():
            self.crystals.append(len(x))
        return {"loss": model.energy(x).square().mean()}

    def watched(self) -> "Seen":
        return self


@pytest.mark.parametrize("seed", [0, 3, 4])
def test_every_epoch_is_one_pass_where_epochs_differ_in_length(
    seed: int, tiny_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond one window of crystals each epoch is cut in another way, here into 8 or 9 batches."""
    x = rand_crystals(0, 40, max_atoms=6, dtype=torch.float32)
    data = PackedDataset.from_arrays(*(v.numpy() for v in (x.numbers, x.frac, x.lattice, x.num_atoms)))
    plan = SizeBatches(data.num_atoms, budget=150, max_crystals=8, window=10, seed=seed)
    monkeypatch.setattr("crystalml.training.finetune.batches", lambda *_: plan)
    lengths = [len(plan.epoch(k)) for k in range(4)]
    seen, config = Seen(), FinetuneConfig(epochs=4, seed=seed)
    run = finetune(tiny_model(noise=False), seen, data, data, config)
    epochs, shown = zip(*((epoch, sum(seen.crystals)) for epoch in run), strict=True)
    assert len(set(lengths)) > 1 and [epoch.epoch for epoch in epochs] == [1, 2, 3, 4]
    assert shown[:3] == (40, 80, 120) and epochs[-1].share == 1
