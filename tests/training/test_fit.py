import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from crystalml import recipes
from crystalml.crystal import CrystalBatch
from crystalml.datasets.packed import PackedDataset, SizeBatches
from crystalml.errors import TrainingError
from crystalml.models.crysformer import CrysformerConfig
from crystalml.models.heads import EnergyScale
from crystalml.models.model import CrystalModel, ModelConfig
from crystalml.noise.product import CrystalNoise
from crystalml.objectives.denoising import Denoising
from crystalml.objectives.energy import IntermediateEnergy
from crystalml.testing import rand_crystals
from crystalml.training.ema import EMA
from crystalml.training.fit import FitConfig, fit, learning_rate, optimizers

OBJECTIVE = Denoising(CrystalNoise.diffcsp(20))


def _data(count: int = 12) -> PackedDataset:
    x = rand_crystals(0, count, max_atoms=5, dtype=torch.float32)
    arrays = (v.numpy() for v in (x.numbers, x.frac, x.lattice, x.num_atoms))
    return PackedDataset.from_arrays(*arrays)


def _model() -> CrystalModel:
    torch.manual_seed(0)
    return ModelConfig(CrysformerConfig(16, 1, 2, 8, 4, 8, "log")).build()


def _batches(data: PackedDataset) -> SizeBatches:
    return SizeBatches(data.num_atoms, budget=100, max_crystals=4)


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon: torch >= 2.9")
each_optimizer = pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=needs_muon)])


@each_optimizer
def test_the_loss_falls(optimizer: Literal["adamw", "muon"]) -> None:
    data = _data()
    data = PackedDataset(
        data.numbers, data.frac, data.lattice, data.num_atoms, {"energy": torch.linspace(-3, 1, 12)}
    )
    torch.manual_seed(0)
    model = ModelConfig(CrysformerConfig(16, 1, 2, 8, 4, 8, "log"), energy=EnergyScale()).build()
    objective = IntermediateEnergy(OBJECTIVE.noise, EnergyScale(), clean=1.0)
    losses = [
        out["loss"]
        for _, out in fit(
            model, objective, data, _batches(data), FitConfig(steps=150, lr=1e-2, optimizer=optimizer)
        )
    ]
    assert len(losses) == 150
    assert sum(losses[-30:]) < 0.3 * sum(losses[:30])


@each_optimizer
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, optimizer: Literal["adamw", "muon"]
) -> None:
    data = _data()
    config = FitConfig(steps=12, lr=1e-3, checkpoint_seconds=0, optimizer=optimizer)
    whole = _model()
    for run, _ in fit(whole, OBJECTIVE, data, _batches(data), config):
        whole_average = run.ema.shadow
    killed, state = _model(), tmp_path / "state.safetensors"
    for run, _ in fit(killed, OBJECTIVE, data, _batches(data), config, state=state):
        if run.progress.step == 7:
            break  # the last state on disk is that of step 6, in the middle of an epoch
    resumed = _model()
    for run, _ in fit(resumed, OBJECTIVE, data, _batches(data), config, state=state):
        average = run.ema.shadow
    assert run.progress.step == 12
    assert torch.equal(_weights(resumed), _weights(whole))
    assert all(torch.equal(average[name], whole_average[name]) for name in average)


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    data, state = _data(), tmp_path / "state.safetensors"
    config = FitConfig(steps=3)
    assert len(list(fit(_model(), OBJECTIVE, data, _batches(data), config, state=state))) == 3
    assert list(fit(_model(), OBJECTIVE, data, _batches(data), config, state=state)) == []


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    data, state = _data(), tmp_path / "state.safetensors"
    list(fit(_model(), OBJECTIVE, data, _batches(data), FitConfig(steps=2), state=state))
    other = ModelConfig(CrysformerConfig(24, 1, 2, 8, 4, 8, "log")).build()
    with pytest.raises(TrainingError, match="different run"):
        list(fit(other, OBJECTIVE, data, _batches(data), FitConfig(steps=4), state=state))
    for wrong, name in (
        (FitConfig(steps=4, lr=3e-4), "lr 0.001, not 0.0003"),
        (FitConfig(steps=4, optimizer="muon"), "optimizer adamw, not muon"),
        (FitConfig(steps=4, seed=1), "seed 0, not 1"),
    ):
        with pytest.raises(TrainingError, match=f"begun with {name}"):
            list(fit(_model(), OBJECTIVE, data, _batches(data), wrong, state=state))
    fewer = data.select(torch.arange(len(data) - 1))
    with pytest.raises(TrainingError, match="begun with crystals"):
        list(fit(_model(), OBJECTIVE, fewer, _batches(fewer), FitConfig(steps=4), state=state))
    longer = fit(_model(), OBJECTIVE, data, _batches(data), FitConfig(steps=4), state=state)
    assert len(list(longer)) == 2  # a later end is no other run


@dataclass
class Poisoned:
    """An objective whose loss is NaN on chosen calls."""

    bad: range
    calls: int = 0

    def __call__(
        self, model: nn.Module, x: CrystalBatch, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        self.calls += 1
        losses = OBJECTIVE(model, x, generator=generator)
        return {"loss": losses["loss"] * (math.nan if self.calls in self.bad else 1.0)}


def test_one_bad_batch_is_skipped_and_many_stop_the_run() -> None:
    data, model = _data(), _model()
    before = _weights(model)
    steps = fit(model, Poisoned(range(1, 2)), data, _batches(data), FitConfig(steps=3))
    next(steps)
    assert torch.equal(_weights(model), before)
    list(steps)
    assert _weights(model).isfinite().all() and not torch.equal(_weights(model), before)
    with pytest.raises(TrainingError, match="in a row"):
        list(fit(_model(), Poisoned(range(1000)), data, _batches(data), FitConfig(steps=100)))


def test_learning_rate_warms_up_and_decays() -> None:
    config = FitConfig(steps=1, lr=1e-3, warmup=0.1)
    rates = [learning_rate(config, share) for share in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert rates[0] == pytest.approx(1e-5) and rates[2] == pytest.approx(1e-3)
    assert rates[0] < rates[1] < rates[2] > rates[3] > rates[4]
    assert rates[4] == pytest.approx(1e-5)


def test_muon_updates_the_matrices_and_adamw_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model = recipes.dao_p("tiny").model.build()
    assert len(optimizers(model, FitConfig(steps=1))) == 1
    if hasattr(torch.optim, "Muon"):
        rest, muon = optimizers(model, FitConfig(steps=1, optimizer="muon"))
        matrices, others = ({p for group in o.param_groups for p in group["params"]} for o in (muon, rest))
        assert matrices | others == set(model.parameters()) and not matrices & others
        assert all(p.dim() == 2 for p in matrices)
        assert model.encoder.embed_own.weight not in matrices  # rows of a table are no map
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(TrainingError, match=r"torch >= 2\.9"):
        FitConfig(steps=1, optimizer="muon")
    with pytest.raises(TrainingError, match="adamw or muon"):
        FitConfig(steps=1, optimizer="lion")  # type: ignore[arg-type]


def test_a_run_needs_an_end() -> None:
    with pytest.raises(TrainingError, match="steps or minutes"):
        FitConfig()


def test_minutes_end_a_run() -> None:
    data = _data()
    steps = list(fit(_model(), OBJECTIVE, data, _batches(data), FitConfig(minutes=0.5 / 60)))
    assert 0 < len(steps) < 2000


def test_average_forgets_the_start_and_is_applied_for_a_while() -> None:
    model = nn.Linear(2, 1, bias=False)
    average = EMA(model, decay=0.9)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, -3.0]]))
    for _ in range(200):
        average.update(model)
    with average.applied(model):
        torch.testing.assert_close(model.weight, torch.tensor([[3.0, -3.0]]), atol=1e-3, rtol=0)
    torch.testing.assert_close(model.weight, torch.tensor([[3.0, -3.0]]))
    assert not torch.equal(start, model.weight)
