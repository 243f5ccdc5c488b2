"""How a property is learned and how it is read: by regression, diffusion, ridge or a Gaussian process."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crystalml.calibrate import MIN_CRYSTALS, fit_error_bar
from crystalml.crystal import CrystalBatch
from crystalml.datasets.packed import PackedDataset
from crystalml.embed import embed, knows_hands
from crystalml.errors import InputError
from crystalml.models.encoder import Features
from crystalml.models.error_bar import ErrorBar
from crystalml.models.model import CrystalModel, Outputs
from crystalml.models.property_head import (
    DiffusionHead,
    Estimate,
    HeadKind,
    MLPHead,
    PropertyConfig,
    PropertyHead,
    TrainedHead,
)
from crystalml.models.recalibration import FEW
from crystalml.models.scalar_head import Kind
from crystalml.noise.gaussian import property_ddpm
from crystalml.objectives.denoising import Denoising
from crystalml.objectives.regression import Regression as RegressionLoss
from crystalml.objectives.scalar import PropertyDenoising, ScalarDenoising
from crystalml.recipes import noise_for
from crystalml.sample.scalar import ScalarChains
from crystalml.training.fewshot import kernel_head, linear_head, logistic_head
from crystalml.training.finetune import Epoch, FinetuneConfig, Task, finetune

Array = NDArray[np.float64]

N_SAMPLES = 64  # chains of a prediction, and of the calibration of its intervals
_STANDARD = 1000  # crystals that tell mean and spread of the features
_FOLDS = 5
_MARGIN = 0.2  # of the range of training values: how far beyond them chains may go
_ENCODED = 10  # times as many epochs for a head alone, whose crystals are encoded once


class Learner(ABC):
    """A strategy of PropertyPredictor.

    number, label: the heads it puts on an encoder for numbers and for classes (None: it has none for these).
    trained: whether it goes through the crystals many times and watches validation crystals. slow: its
    learning rate of a pretrained encoder as a share of the head's. joint: whether it denoises the crystals
    too, for which the encoder keeps its noise heads.
    """

    number: ClassVar[HeadKind]
    label: ClassVar[HeadKind | None]
    trained: ClassVar[bool]
    slow: float = 1.0
    joint: bool = False

    @abstractmethod
    def learn(
        self, model: CrystalModel, train: PackedDataset, val: PackedDataset, config: FinetuneConfig
    ) -> Iterator[Epoch]:
        """Set the weights of the model's head (and encoder) in place, and say so after every epoch."""

    def estimate(self, head: PropertyHead, h: Tensor, n_samples: int = N_SAMPLES) -> Estimate:
        """What the head says of features (b, d); the same features get the same answer in any company."""
        found: Estimate = head(h)
        return found

    def validate(self, head: PropertyHead, h: Tensor, z: Tensor) -> Estimate:
        """`estimate` for validation crystals of known values z (n,), after fitting what sets its scale."""
        return self.estimate(head, h)

    def target(self, name: str, unit: str, mean: float, std: float) -> PropertyConfig:
        """The description of a head for a number."""
        return PropertyConfig(name, unit, mean, std, head=self.number)

    def recalibrate(self, model: CrystalModel, val: PackedDataset) -> None:
        """Fit the quantiles of a number to validation crystals, `label` standardised as in training.

        Warns if they are too few to tell how large errors are; a head with a posterior then keeps that.
        """
        head, z = model.property_head, val.labels["target"]
        assert head is not None
        if len(z) < FEW:
            if not self.trained:
                return
            warnings.warn(
                f"error bars of {len(z)} validation crystals are a guess from the spread of the training "
                'values; take method="ridge" or "gp" for few labels, give fit(validation=...) or more labels',
                stacklevel=3,
            )
        draws, scale = torch.zeros(0, 1), torch.zeros(0)
        with torch.no_grad():
            if len(z):
                h = embed(model, val[:]).graph
                draws, scale = _draws(self.validate(head, h, z.to(h)))
            head.recalibration.fit(draws, scale, z.to(draws))


@dataclass(frozen=True)
class Regression(Learner):
    """Encoder and a two-layer head learn the value with |error| as loss, or the class."""

    number: ClassVar[HeadKind] = "mlp"
    label: ClassVar[HeadKind | None] = "mlp"
    trained: ClassVar[bool] = True
    slow: float = 1.0

    def learn(
        self, model: CrystalModel, train: PackedDataset, val: PackedDataset, config: FinetuneConfig
    ) -> Iterator[Epoch]:
        assert model.config.target is not None
        classes = bool(model.config.target.classes)
        loss = RegressionLoss(classes=classes, mirrored=knows_hands(model.config.encoder))
        yield from _train(model, loss, train, val, config)

    def validate(self, head: PropertyHead, h: Tensor, z: Tensor) -> Estimate:
        assert isinstance(head, MLPHead) and head.error_bar is not None
        value = self.estimate(head, h).value
        bar, scale = _bars(head.last(h).double().cpu().numpy(), (value - z).double().cpu().numpy())
        head.error_bar.load_state_dict(bar.state_dict())
        return Estimate(value, torch.from_numpy(scale).to(h))


@dataclass(frozen=True)
class Diffusion(Learner):
    """CrysDiff: the value is diffused and denoised around the crystal's features; chains are draws of it.

    prior: where chains start. "guess": a two-layer head learns the value as in `Regression`, then the noise
    head learns, on features that stay, how the guess errs (CARD, Han et al. 2022). "mean": the training mean;
    the encoder learns from denoising alone (CrysDiff as printed). head: "mlp", "affine" or "paper", see
    `ScalarNoiseHead`. repeats: levels of each crystal in a training step. The value is the median,
    recalibrated as all quantiles are, with one chain a single draw. joint: learn by denoising the crystal
    together with its property instead of around the clean one (Figure 5 of the paper, where it is worse),
    from the mean; chains go around the clean crystal all the same.
    """

    number: ClassVar[HeadKind] = "diffusion"
    label: ClassVar[HeadKind | None] = None
    trained: ClassVar[bool] = True
    prior: Literal["guess", "mean"] = "guess"
    head: Kind = "mlp"
    repeats: int = 64
    slow: float = 0.5
    joint: bool = False

    def __post_init__(self) -> None:
        if self.joint and self.prior == "guess":
            raise InputError('joint diffusion starts from the mean: Diffusion(prior="mean", joint=True)')

    def target(self, name: str, unit: str, mean: float, std: float) -> PropertyConfig:
        return PropertyConfig(name, unit, mean, std, head="diffusion", noise=self.head)

    def learn(
        self, model: CrystalModel, train: PackedDataset, val: PackedDataset, config: FinetuneConfig
    ) -> Iterator[Epoch]:
        head = model.property_head
        assert isinstance(head, DiffusionHead)
        if self.joint and config.freeze:
            raise InputError("joint diffusion teaches the encoder noisy crystals: use it with freeze=False")
        z, target = train.labels["target"], model.config.target
        assert target is not None
        low, high = float(z.min()), float(z.max())
        margin = _MARGIN * (high - low)
        below, above = margin * (target.low is None), margin * (target.high is None)
        head.bounds.copy_(torch.tensor([low - below, high + above]))
        structure = Denoising(noise_for(model)) if self.joint else None
        mirrored = knows_hands(model.config.encoder)
        loss = PropertyDenoising(
            ScalarDenoising(property_ddpm(), self.repeats), mirrored=mirrored, structure=structure
        )
        if self.prior == "mean":
            yield from _train(model, loss, train, val, config)
            return
        count = 0
        for epoch in _train(model, RegressionLoss(mirrored=mirrored), train, val, config):
            count = epoch.epoch
            yield replace(epoch, share=epoch.share / 2)
        for epoch in _learn_errors(model, head, loss.watched(), train, val, config):
            yield replace(epoch, epoch=count + epoch.epoch, share=(1 + epoch.share) / 2)

    def estimate(self, head: PropertyHead, h: Tensor, n_samples: int = N_SAMPLES) -> Estimate:
        assert isinstance(head, DiffusionHead)
        guess = head(h).value[:, None]
        low, high = ((bound - guess) / head.unit for bound in head.bounds)
        chains = ScalarChains(property_ddpm(), low, high)
        draws = guess + head.unit * chains(head.noise, head.standard(h), n_samples)
        scale = draws.std(1, correction=0) + head.floor
        if n_samples == 1:
            return Estimate(draws[:, 0], scale, draws)
        return Estimate(head.recalibration(draws, scale, torch.tensor([0.5]))[:, 0], scale, draws)

    def validate(self, head: PropertyHead, h: Tensor, z: Tensor) -> Estimate:
        assert isinstance(head, DiffusionHead)
        draws = self.estimate(head, h).draws
        assert draws is not None
        head.floor.copy_(draws.std(1, correction=0).mean().clamp(min=1e-6))
        return self.estimate(head, h)


@dataclass(frozen=True)
class Ridge(Learner):
    """Bayesian ridge regression, or logistic regression for classes, on the features of a frozen encoder."""

    number: ClassVar[HeadKind] = "linear"
    label: ClassVar[HeadKind | None] = "linear"
    trained: ClassVar[bool] = False

    def learn(
        self, model: CrystalModel, train: PackedDataset, val: PackedDataset, config: FinetuneConfig
    ) -> Iterator[Epoch]:
        h, z = embed(model, train[:]).graph.cpu(), train.labels["target"]
        assert model.config.target is not None and model.property_head is not None
        count = len(model.config.target.classes)
        head = logistic_head(h, z, count, config.seed) if count else linear_head(h, z)
        model.property_head.load_state_dict(head.state_dict())
        yield from ()


@dataclass(frozen=True)
class GaussianProcess(Learner):
    """A Gaussian process on the features of a frozen encoder."""

    number: ClassVar[HeadKind] = "kernel"
    label: ClassVar[HeadKind | None] = None
    trained: ClassVar[bool] = False

    def learn(
        self, model: CrystalModel, train: PackedDataset, val: PackedDataset, config: FinetuneConfig
    ) -> Iterator[Epoch]:
        assert model.property_head is not None
        h, z = embed(model, train[:]).graph.cpu(), train.labels["target"]
        model.property_head.load_state_dict(kernel_head(h, z, config.seed).state_dict())
        yield from ()


LEARNERS: dict[str, Learner] = {
    "regression": Regression(),
    "diffusion": Diffusion(),
    "ridge": Ridge(),
    "gp": GaussianProcess(),
}


def as_learner(method: str | Learner) -> Learner:
    """A strategy by its name, or itself. Raises InputError for a name that is none."""
    if isinstance(method, Learner):
        return method
    if method not in LEARNERS:
        raise InputError(f"unknown method {method!r}; choose one of {', '.join(LEARNERS)}")
    return LEARNERS[method]


def method_of(target: PropertyConfig) -> str | Learner:
    """The method whose head this is, under its name where its settings are the usual ones."""
    if target.head == "diffusion" and target.noise != "mlp":
        return Diffusion(head=target.noise)
    return next(name for name, learner in LEARNERS.items() if learner.number == target.head)


def _train(
    model: CrystalModel, loss: Task, train: PackedDataset, val: PackedDataset, config: FinetuneConfig
) -> Iterator[Epoch]:
    head = model.property_head
    assert isinstance(head, TrainedHead)
    few = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))[:_STANDARD]
    head.standardise(embed(model, train[few]).graph)
    if not config.freeze:
        yield from finetune(model, loss, train, val, config)
    else:
        frozen = cast(CrystalModel, _Frozen(head))  # all of a model that fine-tuning asks for
        yield from finetune(frozen, loss.watched(), _encoded(model, train), _encoded(model, val), config)


def _learn_errors(
    model: CrystalModel,
    head: DiffusionHead,
    loss: Task,
    train: PackedDataset,
    val: PackedDataset,
    config: FinetuneConfig,
) -> Iterator[Epoch]:
    """The noise head learns what is left of the values beside the guess, on features that stay.

    Errors on training crystals are smaller than on others: each set's are in units of its own, and chains of
    other crystals in those of validation. The unit is a standard deviation if errors are normal.
    """
    known, others = _encoded(model, train), _encoded(model, val)
    known, unit = _errors(head, known)
    others, unit = _errors(head, others) if len(others) else (others, unit)
    head.unit.fill_(unit)
    if not config.freeze:
        minutes = None if config.minutes is None else config.minutes / _ENCODED
        config = replace(config, epochs=_ENCODED * config.epochs, minutes=minutes)
    yield from finetune(cast(CrystalModel, _Frozen(head)), loss, known, others, config)


def _errors(head: DiffusionHead, data: PackedDataset) -> tuple[PackedDataset, float]:
    """Encoded crystals whose target is what the guess lacks, in units of its mean size, and that unit."""
    with torch.no_grad():
        guess = head(data.labels["features"].to(head.unit)).value.cpu()
    error = data.labels["target"] - guess
    unit = max(float(error.abs().mean()) * math.sqrt(math.pi / 2), 1e-6)
    return replace(data, labels={**data.labels, "target": error / unit}), unit


class _Frozen(nn.Module):
    """A head whose crystals come with their features: a frozen encoder is asked once, not in every epoch."""

    def __init__(self, head: TrainedHead) -> None:
        super().__init__()
        self.property_head = head
        self.encoder = nn.Module()

    def forward(self, x: CrystalBatch) -> Outputs:
        return Outputs(Features(x.frac, x.labels["features"]), None, None)


def _encoded(model: CrystalModel, data: PackedDataset) -> PackedDataset:
    """One atom stands for each crystal, its features are a label."""
    b = len(data)
    h = embed(model, data[:]).graph.cpu() if b else torch.zeros(0, model.encoder.dim)
    one, count = torch.ones(b, dtype=torch.int8), torch.ones(b, dtype=torch.int16)
    labels = {**data.labels, "features": h.float()}
    return PackedDataset(one, torch.zeros(b, 3), torch.eye(3).expand(b, 3, 3).contiguous(), count, labels)


def _bars(features: Array, error: Array) -> tuple[ErrorBar, Array]:
    """An error bar fitted to crystals (n,), and how wide it is where it was fitted to the others (n,).

    On crystals it was fitted to a bar knows too much: quantiles of their errors in its units would be too
    small for any other. Where it says less of the others than one width for all, or where there are too few,
    the bar is one width, which holds 68 % of the errors.
    """
    count = len(error)
    flat, size = ErrorBar(features.shape[1]), np.maximum(np.sort(np.abs(error)), 1e-9)
    flat.offset.fill_(float(np.log(size[min(int(np.ceil((count + 1) * 0.68)), count) - 1])))
    one_width = _widths(flat, features)
    if count - count // _FOLDS < MIN_CRYSTALS:
        return flat, one_width
    fold = np.random.default_rng(0).permutation(count) % _FOLDS
    scale = np.empty(count)
    for k in range(_FOLDS):
        scale[fold == k] = _widths(fit_error_bar(features[fold != k], error[fold != k]), features[fold == k])
    if _surprise(error, scale) > _surprise(error, one_width):
        return flat, one_width
    return fit_error_bar(features, error), scale


def _surprise(error: Array, scale: Array) -> float:
    """Mean -log likelihood of Laplace-distributed errors of these scales, times the best factor."""
    return float(np.log(np.mean(np.abs(error) / scale) + 1e-12) + np.mean(np.log(scale)))


def _widths(bar: ErrorBar, features: Array) -> Array:
    found: Array = bar(torch.as_tensor(features).to(bar.mean)).double().numpy()
    return found


def quantiles(head: PropertyHead, found: Estimate, levels: Any) -> Tensor:
    """(b, m) recalibrated quantiles of standardised numbers at levels (m,)."""
    out: Tensor = head.recalibration(*_draws(found), torch.as_tensor(levels, dtype=torch.float64))
    return out


def _draws(found: Estimate) -> tuple[Tensor, Tensor]:
    """(b, k) and (b,): a value without draws is the only draw."""
    assert found.std is not None
    return (found.value[:, None] if found.draws is None else found.draws), found.std
