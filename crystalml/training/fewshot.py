"""Heads on frozen features, for a handful of labels: fitted by scikit-learn, kept as plain tensors."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crystalml.errors import InputError
from crystalml.models.property_head import KernelHead, LinearHead

Array = NDArray[np.float64]

MAX_POINTS = 2000  # of a Gaussian process, which costs their cube and keeps their square


def linear_head(features: Tensor, z: Tensor) -> LinearHead:
    """Bayesian ridge regression, its two precisions by evidence (Bishop 2006, §3.5); z (b,) standardised."""
    from sklearn.linear_model import BayesianRidge

    u, shift, scale = _standard(features)
    fitted = BayesianRidge().fit(u, z.double().numpy())
    head = LinearHead(u.shape[1], 0)
    _set(head.net.weight, fitted.coef_[None])
    _set(head.net.bias, np.atleast_1d(fitted.intercept_))
    _set(head.covariance, fitted.sigma_)
    _set(head.noise, np.array(1 / fitted.alpha_))
    _set(head.shift, shift)
    _set(head.scale, scale)
    return head.eval()


def logistic_head(features: Tensor, y: Tensor, classes: int, seed: int = 0) -> LinearHead:
    """Multinomial logistic regression, its penalty by cross-validation if every class has five crystals."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    u, shift, scale = _standard(features)
    target = y.long().numpy()
    model = LogisticRegression(max_iter=2000)
    if int(np.min(np.bincount(target, minlength=classes))) >= 5:
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        model = GridSearchCV(model, {"C": np.logspace(-4, 2, 7)}, cv=folds, scoring="neg_log_loss")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a penalty too weak to converge loses the search anyway
        fitted = model.fit(u, target)
    fitted = getattr(fitted, "best_estimator_", fitted)
    weight, bias = fitted.coef_, fitted.intercept_
    if classes == 2:  # scikit-learn keeps the second class's logit alone
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    head = LinearHead(u.shape[1], classes)
    _set(head.net.weight, weight)
    _set(head.net.bias, bias)
    _set(head.shift, shift)
    _set(head.scale, scale)
    return head.eval()


def kernel_head(features: Tensor, z: Tensor, seed: int = 0) -> KernelHead:
    """Gaussian process with a radial kernel; amplitude, length and noise by marginal likelihood."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    if len(z) > MAX_POINTS:
        raise InputError(
            f"a Gaussian process on {len(z)} crystals is too large, the limit is {MAX_POINTS}; use "
            "method='ridge' or method='regression'"
        )
    u, shift, scale = _standard(features)
    length = float(np.sqrt(u.shape[1]))
    # Bounds that keep the covariance well conditioned in the float32 of a file.
    kernel = ConstantKernel(1.0, (1e-2, 10.0)) * RBF(length, (0.05 * length, 50 * length))
    kernel = kernel + WhiteKernel(0.1, (1e-3, 10.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a bound reached is an answer
        fitted = GaussianProcessRegressor(kernel, n_restarts_optimizer=1, random_state=seed).fit(
            u, z.double().numpy()
        )
    amplitude, noise = fitted.kernel_.k1.k1.constant_value, fitted.kernel_.k2.noise_level
    head = KernelHead(u.shape[1], len(z))
    _set(head.points, u)
    _set(head.weights, fitted.alpha_)
    _set(head.whiten, np.linalg.inv(fitted.L_))
    _set(head.hyper, np.array([amplitude, fitted.kernel_.k1.k2.length_scale, noise]))
    _set(head.shift, shift)
    _set(head.scale, scale)
    return head.eval()


def _standard(features: Tensor) -> tuple[Array, Array, Array]:
    """Features of mean 0 and variance 1, and the shift and scale that make them so."""
    h = features.double().cpu().numpy()
    shift, scale = h.mean(0), h.std(0)
    least = 1e-6 * max(float(np.max(scale)), 1e-30)
    scale = np.where(scale > least, scale, 1e30)  # a constant tells nothing
    return (h - shift) / scale, shift, scale


def _set(target: Tensor, value: Array) -> None:
    with torch.no_grad():
        target.copy_(torch.as_tensor(np.asarray(value)).reshape(target.shape))
