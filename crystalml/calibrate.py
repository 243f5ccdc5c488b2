"""Give a trained energy model an error bar: what `crystalml calibrate` does."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from crystalml.datasets.packed import PackedDataset
from crystalml.errors import InputError, UnsupportedError
from crystalml.models.derivatives import atomic_energies, crystal_mean
from crystalml.models.error_bar import LEVELS, ErrorBar, with_error_bar
from crystalml.models.model import CrystalModel
from crystalml.models.periodic import PeriodicCrysformer
from crystalml.predict import pack_neighbors, pair_budget
from crystalml.progress import ProgressBar

Array = NDArray[np.float64]

MIN_CRYSTALS = 200  # a 95 % quantile rests on the largest twentieth of them
_RIDGE = 1e-3  # on standardised slopes; coverage is the same from 1e-4 to 1e-2
_NOVELTY = 0.3  # the least kappa: what lies far from all data always gets a wider bar
_TAILS = (0.01, 0.99)  # the linear read-out is trusted between these quantiles of its calibration values


@dataclasses.dataclass(frozen=True)
class Residuals:
    """features: (b, d) mean last-layer features; predicted, label: (b,) eV/atom. Float64, on the CPU."""

    features: Array
    predicted: Array
    label: Array

    @property
    def error(self) -> Array:
        return self.predicted - self.label

    def __len__(self) -> int:
        return len(self.label)

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Residuals:
        return Residuals(self.features[rows], self.predicted[rows], self.label[rows])


def calibrate(
    model: CrystalModel, data: PackedDataset, label: str = "energy", progress: bool = False
) -> CrystalModel:
    """A copy of the model whose predictions carry `energy_uncertainty`; its weights are the same.

    data: crystals that the model was not trained on, label in eV/atom. The errors of what is predicted later
    must come from the same mixture for the intervals to hold: crystals of other chemistry, or farther from
    equilibrium, are covered only as far as their features tell.
    Raises InputError (label missing, fewer than 200 crystals that have it), UnsupportedError (no energy).
    """
    found = residuals(model, data, label, progress)
    return with_error_bar(model, fit_error_bar(found.features, found.error))


def residuals(
    model: CrystalModel, data: PackedDataset, label: str = "energy", progress: bool = False
) -> Residuals:
    """Features, predictions and labels of the crystals whose label is known, in their order."""
    if label not in data.labels:
        raise InputError(f"the data have no label {label!r}; there are {', '.join(sorted(data.labels))}")
    if not isinstance(model.encoder, PeriodicCrysformer):
        raise UnsupportedError("only a potential (recipe dao-p) can be calibrated; this model is none")
    rows = torch.nonzero(data.labels[label].isfinite())[:, 0]
    weight = next(model.parameters())
    budget, cutoff = pair_budget(weight.device, gradient=False), model.encoder.config.cutoff
    energies = torch.empty(len(rows), dtype=torch.float64)
    features = torch.empty(len(rows), model.encoder.dim, dtype=torch.float64)
    with ProgressBar(progress, "predicting") as bar, torch.no_grad():
        bar.add(len(rows))
        for chunk in torch.arange(len(rows)).split(2048):
            batch = data[rows[chunk]].to(weight.device, weight.dtype)
            for group in pack_neighbors(batch, cutoff, budget):
                x = batch[group.to(weight.device)]
                found, last = atomic_energies(model, x)
                energies[chunk[group]] = crystal_mean(found, x).to("cpu", torch.float64)
                features[chunk[group]] = crystal_mean(last, x).to("cpu", torch.float64)
                bar.advance(len(group))
    return Residuals(features.numpy(), energies.numpy(), data.labels[label][rows].double().numpy())


def fit_error_bar(features: Array, error: Array) -> ErrorBar:
    """Fit w, w_0 and kappa by maximum likelihood of |error| ~ Laplace, then the quantiles; see ErrorBar.

    features (b, d), error (b,) in eV/atom. The quantile q_p is the ceil((b + 1) p)-th smallest ratio of error
    and bar, which covers at least p of exchangeable new crystals but for what the same crystals have told
    w and kappa: about d of them in b.
    """
    if len(error) < MIN_CRYSTALS:
        raise InputError(f"{len(error)} crystals are too few to calibrate on: give at least {MIN_CRYSTALS}")
    if not (np.isfinite(features).all() and np.isfinite(error).all()):
        raise InputError("an energy or a feature of the calibration set is not finite")
    size = np.maximum(np.abs(error), 1e-9)  # no label is known to a neV
    mean, spread = features.mean(0), features.std(0)
    least = 1e-6 * max(float(np.max(spread)), 1e-30)
    spread = np.where(spread > least, spread, np.inf)  # a constant tells nothing
    z = (features - mean) / spread
    root = _inverse_root(z)
    novelty = np.square(z @ root).sum(1)
    slope, offset, kappa = _likelihood(z, novelty, size)
    expected = z @ slope + offset
    low, high = np.quantile(expected, _TAILS)
    bar = np.exp(np.clip(expected, low, high)) * np.sqrt(1 + kappa * novelty)
    ratio = np.sort(size / bar)
    ranks = [min(int(np.ceil((len(ratio) + 1) * p)), len(ratio)) - 1 for p in LEVELS]
    q = ratio[ranks]
    out = ErrorBar(features.shape[1])
    shift = np.log(q[0])
    out.mean.copy_(torch.as_tensor(mean))
    out.slope.copy_(torch.as_tensor(slope / spread))
    out.whiten.copy_(torch.as_tensor(root / spread[:, None] * kappa**0.5))
    out.offset.fill_(offset + shift)
    out.bounds.copy_(torch.tensor([low + shift, high + shift]))
    out.factors.copy_(torch.as_tensor(q / q[0]))
    return out


def _inverse_root(z: Array) -> Array:
    """R with R R^T = (C + 1e-4 I)^-1 / d: (d, d)."""
    d = z.shape[1]
    values, vectors = np.linalg.eigh(z.T @ z / len(z))
    root: Array = vectors / np.sqrt(d * (np.maximum(values, 0) + 1e-4))
    return root


def _likelihood(z: Array, novelty: Array, size: Array) -> tuple[Array, float, float]:
    """argmin mean(log s + |e| / s) + ridge |w|^2 with log s = w.z + w_0 + log(1 + kappa h) / 2."""
    x = np.concatenate([z, np.ones((len(z), 1))], 1)

    def objective(p: Array) -> tuple[float, Array]:
        kappa = np.exp(p[-1])
        log_s = x @ p[:-1] + 0.5 * np.log1p(kappa * novelty)
        with np.errstate(over="ignore"):
            ratio = size * np.exp(-log_s)
        share = 0.5 * kappa * novelty / (1 + kappa * novelty)  # d log s / d log kappa
        gradient = np.append(x.T @ (1 - ratio), ((1 - ratio) * share).sum())
        gradient /= len(z)
        gradient[:-2] += 2 * _RIDGE * p[:-2]
        return float((log_s + ratio).mean() + _RIDGE * np.square(p[:-2]).sum()), gradient

    start = np.zeros(x.shape[1] + 1)
    start[-2] = np.log(max(size.mean(), 1e-12))
    limits = [(None, None)] * x.shape[1] + [(np.log(_NOVELTY), np.log(100.0))]
    p = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=limits).x
    return p[:-2], float(p[-2]), float(np.exp(p[-1]))
