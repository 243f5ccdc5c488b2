"""PropertyPredictor: learn any property of crystals from a table, on top of a pretrained encoder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils import ClassifierTags, RegressorTags, Tags
from torch import Tensor

from crystalml.convert import to_batch
from crystalml.crystal import CrystalBatch
from crystalml.datasets.labels import read_labels
from crystalml.datasets.packed import PackedDataset
from crystalml.datasets.splits import random_split
from crystalml.device import pick_device
from crystalml.elements import numbers_of, symbol
from crystalml.embed import embed, knows_cell
from crystalml.errors import InputError, TrainingError, UnsupportedError
from crystalml.learners import N_SAMPLES, Learner, as_learner, method_of, quantiles
from crystalml.models.model import CrystalModel, EncoderConfig, ModelConfig
from crystalml.models.property_head import Estimate, PropertyConfig
from crystalml.primitive import primitive_cells
from crystalml.progress import ProgressBar
from crystalml.training.checkpoint import save_model
from crystalml.training.finetune import Epoch, FinetuneConfig
from crystalml.weights.registry import PROPERTY, as_model, list_models, load_model

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

    Structures = Structure | Atoms | CrystalBatch | Iterable[Structure | Atoms | CrystalBatch]

Array = NDArray[Any]
Method = Literal["regression", "diffusion", "ridge", "gp"]
DEFAULT_ENCODER = "dao-p"  # fine-tuned, and frozen, the best of those shipped: docs/benchmarks.md
_EDGE, _AT_EDGE = 0.05, 10  # share and number of values at one end that make it where values end
_SIGMA = (0.15865525, 0.84134475)  # the interval of one standard deviation on both sides


class NotLearnedError(InputError, NotFittedError):
    """A predictor asked before `fit`; to scikit-learn, an attribute that is not there yet."""


class PropertyPredictor(BaseEstimator):
    """fit(structures, y), predict(structures, return_std=True), save, load: any number or class of a crystal.

    encoder: shipped name, path, "hf://..." or CrystalModel whose encoder is the start, or an encoder's
    configuration for untrained weights. method: "regression" trains encoder and a two-layer head (with
    freeze=True the head alone) with early stopping, "diffusion" likewise a head that draws from a
    distribution (CrysDiff); for few labels "ridge" (Bayesian ridge, or logistic regression) and "gp"
    (Gaussian process) fit a head on the frozen features; or a `learners.Learner`. name, unit: its own.
    classification: None decides by y (bool, and text that is no number, are classes). primitive: bring
    crystals to primitive Niggli cells where the encoder knows the cell: the answer does not depend on it.
    val_fraction: of the training crystals, watched for early stopping and error bars, unless
    fit(validation=...) gives others. compile: torch.compile while training, which pays after some ten
    thousand crystals. lr, encoder_lr: learning rates of the head and of the encoder; None is the method's own
    share of lr for a pretrained encoder, lr for an untrained one. seed fixes split, initial head and batches.

    A scikit-learn estimator whose X is a list of structures: `clone` and `GridSearchCV` work.
    """

    def __init__(
        self,
        encoder: str | os.PathLike[str] | CrystalModel | EncoderConfig = DEFAULT_ENCODER,
        method: Method | Learner = "regression",
        *,
        name: str = "y",
        unit: str = "",
        classification: bool | None = None,
        primitive: bool = True,
        val_fraction: float = 0.1,
        epochs: int = 100,
        minutes: float | None = None,
        patience: int = 20,
        lr: float = 1e-3,
        encoder_lr: float | None = None,
        freeze: bool = False,
        compile: bool = False,
        seed: int = 0,
        device: str | None = None,
        progress: bool = False,
    ) -> None:
        self.encoder = encoder
        self.method = method
        self.name = name
        self.unit = unit
        self.classification = classification
        self.primitive = primitive
        self.val_fraction = val_fraction
        self.epochs = epochs
        self.minutes = minutes
        self.patience = patience
        self.lr = lr
        self.encoder_lr = encoder_lr
        self.freeze = freeze
        self.compile = compile
        self.seed = seed
        self.device = device
        self.progress = progress

    # --- learning ---------------------------------------------------------------------------------------
    def fit(
        self,
        structures: Structures,
        y: Sequence[Any] | Array,
        validation: tuple[Structures, Sequence[Any] | Array] | None = None,
    ) -> PropertyPredictor:
        """Learn from crystals and their values (b,). history_ then holds one `Epoch` for each epoch.

        Raises InputError (lengths, missing values or NaN, text among numbers, a constant target, one class,
        an unknown method). Warns where fewer than four validation crystals tell how large errors are.
        """
        learner = as_learner(self.method)
        model = self._start()
        x = self._cells(structures, model)
        target, z = self._target(y, len(x), learner)
        train, val = self._split(x, z, target, validation, model, learner)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # the head's first weights
            model = with_target(model, target, len(train))
        model.to(self._device())
        self.history_: list[Epoch] = []
        with ProgressBar(self.progress, f"learning {self.name}") as bar:
            bar.add(1000)
            done = 0
            for epoch in learner.learn(model, train, val, self._training(learner)):
                self.history_.append(epoch)
                bar.advance(round(1000 * epoch.share) - done)
                done = round(1000 * epoch.share)
            if not target.classes:
                learner.recalibrate(model, val)
            bar.advance(1000 - done)
        seen = torch.unique(torch.cat([train.numbers, val.numbers])).tolist()
        model.card = self._card(
            model, sorted(set(seen) | numbers_of(model.card.get("elements"))), len(train), len(val)
        )
        self.model_ = model.eval()
        return self

    def _start(self) -> CrystalModel:
        """The encoder to start from, with nothing on it but the noise heads that joint diffusion needs."""
        joint = as_learner(self.method).joint
        if isinstance(self.encoder, str | os.PathLike | CrystalModel):
            found = as_model(self.encoder, "cpu", torch.float32)
            return _same_weights(_base(found.config, joint).build(), found)
        able = hasattr(self.encoder, "noise_head")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return _base(ModelConfig(self.encoder, noise=able), joint).build()

    def _training(self, learner: Learner) -> FinetuneConfig:
        untrained = not isinstance(self.encoder, str | os.PathLike | CrystalModel)
        slow = 1.0 if untrained else learner.slow
        if self.encoder_lr is not None:
            slow = self.encoder_lr / self.lr
        return FinetuneConfig(
            self.epochs,
            self.minutes,
            self.patience,
            self.lr,
            slow,
            freeze=self.freeze,
            seed=self.seed,
            compile=self.compile,
        )

    def _target(
        self, y: Sequence[Any] | Array, count: int, learner: Learner
    ) -> tuple[PropertyConfig, Tensor]:
        """What is learned, and its standardised values or class numbers (b,)."""
        if np.shape(y) != (count,):
            raise InputError(f"{count} structures need {count} values of y in one row, not {np.shape(y)}")
        values = read_labels(y, self.classification)
        if values.dtype.kind == "U":
            names, codes = np.unique(values, return_inverse=True)
            if len(names) < 2:
                raise InputError(f"all {count} crystals are of class {names[0]!r}: there is nothing to learn")
            if learner.label is None:
                raise InputError(f"method {self.method!r} is for numbers, not for classes; use 'regression'")
            config = PropertyConfig(self.name, self.unit, classes=tuple(names.tolist()), head=learner.label)
            return config, torch.from_numpy(codes).float()
        mean, std = float(values.mean()), float(values.std())
        if not std > 0:
            raise InputError(f"y is {mean:g} for all {count} crystals: there is nothing to learn")
        low, high = _edges(values)
        config = replace(learner.target(self.name, self.unit, mean, std), low=low, high=high)
        return config, config.to_network(torch.from_numpy(values)).float()

    def _split(
        self,
        x: CrystalBatch,
        z: Tensor,
        target: PropertyConfig,
        validation: tuple[Structures, Sequence[Any] | Array] | None,
        model: CrystalModel,
        learner: Learner,
    ) -> tuple[PackedDataset, PackedDataset]:
        data = _packed(x, z)
        if validation is not None:
            others = self._cells(validation[0], model)
            return data, _packed(others, _codes(validation[1], len(others), target))
        if not learner.trained:
            return data, data.select(torch.arange(0))
        parts = random_split(len(data), {"train": 1 - self.val_fraction, "val": self.val_fraction}, self.seed)
        if not len(parts["train"]):
            raise TrainingError(f"val_fraction {self.val_fraction} leaves none of {len(data)} crystals")
        return tuple(data.select(torch.from_numpy(part)) for part in parts.values())  # type: ignore[return-value]

    def _card(self, model: CrystalModel, elements: list[int], train: int, val: int) -> dict[str, Any]:
        base = model.card.get("name") or type(model.encoder).__name__
        training: dict[str, Any] = {"method": str(self.method), "crystals": train, "validation": val}
        training["primitive"] = self.primitive
        if self.history_:
            training |= {"epochs": len(self.history_), "validation_loss": self.history_[-1].best}
        kind = "class" if model.config.target and model.config.target.classes else "value"
        unit = f" ({self.unit})" if self.unit else ""
        return {
            "name": self.name,
            "recipe": PROPERTY,
            "description": f"{self.name}{unit}: a {kind} learned on {base}.",
            "training": training,
            "elements": [symbol(z) for z in elements],
        }

    # --- answering --------------------------------------------------------------------------------------
    def predict(
        self,
        structures: Structures,
        return_std: bool = False,
        quantiles: Sequence[float] | None = None,
        n_samples: int = N_SAMPLES,
    ) -> Any:
        """(b,) values in the property's unit, or classes.

        With return_std or quantiles a tuple: also (b,) error bars, also (b, m) quantiles at m levels between
        0.005 and 0.995, such as (0.05, 0.5, 0.95).

        Quantiles are conformal: of the errors on validation crystals, in units of each crystal's own scale.
        [5 %, 95 %] holds 90 % of crystals like those. The error bar is half the width of the middle 68 %.
        n of them tell levels from 1/(n + 1) on; beyond, and below 19, errors count as normal (Student's
        distribution). "ridge" and "gp" without validation crystals take their normal posterior. Where a
        twentieth of the training values, and ten, were the least (or largest) one, no answer passes it: gaps
        are not negative.
        n_samples: chains of "diffusion", whose median is the value; 1 gives a single draw. Intervals were
        calibrated with 64.
        Warns of elements seen neither in pretraining nor in fit.
        """
        if n_samples < 1:
            raise InputError(f"n_samples must be at least 1, not {n_samples}")
        target, found = self._estimate(structures, n_samples)
        if target.classes:
            if return_std or quantiles is not None:
                raise UnsupportedError("classes have no error bar; predict_proba gives their probabilities")
            return np.asarray(target.classes)[found.value.argmax(-1).numpy()]
        out = [target.to_physical(found.value).numpy()]
        if return_std:
            low, high = self._quantiles(found, _SIGMA).T
            out.append((0.5 * (high - low) * target.std).numpy())
        if quantiles is not None:
            out.append(target.to_physical(self._quantiles(found, quantiles)).numpy())
        return tuple(out) if len(out) > 1 else out[0]

    def predict_proba(self, structures: Structures) -> Array:
        """(b, k) probabilities of the classes, in the order of `classes_`."""
        target, estimate = self._estimate(structures)
        if not target.classes:
            raise UnsupportedError(f"{target.name} is a number, it has no classes; use predict")
        return estimate.value.softmax(-1).numpy()

    def score(self, structures: Structures, y: Sequence[Any] | Array) -> float:
        """R^2 of numbers, accuracy of classes: scikit-learn's convention."""
        from sklearn.metrics import accuracy_score, r2_score

        found = self.predict(structures)
        if self._target_config().classes:
            return float(accuracy_score(np.asarray(y).astype(str), found))
        return float(r2_score(np.asarray(y, float), found))

    @property
    def classes_(self) -> Array:
        return np.asarray(self._target_config().classes)

    def __sklearn_tags__(self) -> Tags:
        """A classifier if fitted to classes or told so, else a regressor: folds and scorers ask."""
        tags = super().__sklearn_tags__()
        classes = self.model_.config.target if hasattr(self, "model_") else None
        if bool(classes.classes) if classes is not None else bool(self.classification):
            tags.estimator_type, tags.classifier_tags = "classifier", ClassifierTags()
        else:
            tags.estimator_type, tags.regressor_tags = "regressor", RegressorTags()
        tags.target_tags.required = True
        tags.input_tags.two_d_array = False
        return tags

    def _quantiles(self, found: Estimate, levels: Sequence[float]) -> Tensor:
        """(b, m), standardised."""
        head = self.model_.property_head
        assert head is not None
        return quantiles(head, found, levels)

    def _estimate(
        self, structures: Structures, n_samples: int = N_SAMPLES
    ) -> tuple[PropertyConfig, Estimate]:
        target, model = self._target_config(), self.model_
        x = self._cells(structures, model)
        _warn_of_strangers(x, model.card)
        with ProgressBar(self.progress, f"predicting {target.name}") as bar:
            bar.add(len(x))
            h = embed(model, x, report=bar.advance).graph
        assert model.property_head is not None
        with torch.no_grad():
            found = as_learner(method_of(target)).estimate(model.property_head, h, n_samples)
        parts = (found.value, found.std, found.draws)
        return target, Estimate(*[part if part is None else part.double().cpu() for part in parts])  # type: ignore[arg-type]

    def _target_config(self) -> PropertyConfig:
        if not hasattr(self, "model_"):
            raise NotLearnedError("this PropertyPredictor has learned nothing yet: call fit, or load one")
        target = self.model_.config.target
        assert target is not None
        return target

    def _cells(self, structures: Structures, model: CrystalModel) -> CrystalBatch:
        x = to_batch(structures, dtype=torch.float64)
        if self.primitive and knows_cell(model.config.encoder):
            x, _ = primitive_cells(x)
        return x.replace(labels={}, site_labels={})

    def _device(self) -> torch.device:
        return pick_device(self.device)

    # --- keeping ----------------------------------------------------------------------------------------
    def save(self, path: str | Path, card: dict[str, Any] | None = None) -> None:
        """Write one .safetensors file with encoder, head and card; `card` overrides entries."""
        self._target_config()
        if Path(path).suffix != ".safetensors":
            raise InputError(f"{path}: a property model is kept as a .safetensors file; give such a name")
        save_model(self.model_, path, {**self.model_.card, **(card or {})})

    @classmethod
    def load(
        cls, model: str | os.PathLike[str], device: str | None = None, progress: bool = False
    ) -> PropertyPredictor:
        """A saved predictor: shipped name, path or "hf://owner/repo". Raises WeightsError as `load_model`."""
        place = pick_device(device)
        found = load_model(model, place)
        if found.config.target is None:
            ready = ", ".join(info.name for info in list_models() if info.recipe == PROPERTY) or "none yet"
            raise UnsupportedError(
                f"{model} predicts no property; fine-tune it: PropertyPredictor({str(model)!r}). "
                f"Ready models: {ready}"
            )
        target = found.config.target
        out = cls(
            model,
            method_of(target),  # type: ignore[arg-type]
            name=target.name,
            unit=target.unit,
            classification=bool(target.classes),
            primitive=found.card.get("training", {}).get("primitive", True),
            device=device,
            progress=progress,
        )
        out.model_, out.history_ = found, []
        return out


def with_target(model: CrystalModel, target: PropertyConfig, points: int) -> CrystalModel:
    """The same model with a fresh head for the property."""
    target = replace(target, points=points) if target.head == "kernel" else target
    return _same_weights(replace(model.config, target=target).build(), model)


def _same_weights(model: CrystalModel, found: CrystalModel) -> CrystalModel:
    """The weights of `found` in all parts that the model shares with it, but for the property's head."""
    theirs = found.state_dict()
    shared = [k for k in model.state_dict() if k in theirs and not k.startswith("property_head.")]
    model.load_state_dict({k: theirs[k] for k in shared}, strict=False)
    model.card = dict(found.card)
    return model


def _base(config: ModelConfig, joint: bool) -> ModelConfig:
    """The encoder alone, or for joint diffusion with its noise heads."""
    if not joint:
        return ModelConfig(config.encoder, noise=False)
    if not config.noise:
        name = type(config.encoder).__name__.removesuffix("Config")
        raise InputError(
            "joint diffusion denoises the crystal too: it needs an encoder with noise heads such as that of "
            f"'diffcsp', and this {name} has none"
        )
    return replace(config, energy=None, error_bar=False, pretext=None, target=None)


def _edges(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """The least and the largest value, where more crystals share it than by chance: gaps of metals."""
    enough = max(_EDGE * len(values), _AT_EDGE)
    ends = (float(end(values)) for end in (np.min, np.max))
    low, high = (end if (values == end).sum() >= enough else None for end in ends)
    return low, high


def _codes(y: Sequence[Any] | Array, count: int, target: PropertyConfig) -> Tensor:
    """Validation values as the head sees them."""
    if np.shape(y) != (count,):
        raise InputError(f"{count} validation structures need {count} values, not {np.shape(y)}")
    values = read_labels(y, bool(target.classes), "y of validation")
    if not target.classes:
        return target.to_network(torch.from_numpy(values)).float()
    places = {name: k for k, name in enumerate(target.classes)}
    strange = sorted(set(values) - set(places))
    if strange:
        raise InputError(f"validation holds classes that training lacks: {', '.join(strange)}")
    return torch.tensor([places[name] for name in values]).float()


def _packed(x: CrystalBatch, z: Tensor) -> PackedDataset:
    labels = {"target": z.numpy()}
    return PackedDataset.from_arrays(
        x.numbers.numpy(), x.frac.numpy(), x.lattice.numpy(), x.num_atoms.numpy(), labels
    )


def _warn_of_strangers(x: CrystalBatch, card: dict[str, Any]) -> None:
    strange = sorted(set(x.numbers.unique().tolist()) - numbers_of(card.get("elements")))
    if strange and card.get("elements"):
        names = ", ".join(symbol(z) for z in strange)
        warnings.warn(f"never seen in training: {names}; do not trust these predictions", stacklevel=4)
