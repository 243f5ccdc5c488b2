"""Heads of properties: the fitted ones are what scikit-learn fitted, and all survive being written down."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import BayesianRidge
from torch import Tensor

from crystalml.errors import InputError
from crystalml.models.property_head import KernelHead, LinearHead, MLPHead, PropertyConfig
from crystalml.training.fewshot import kernel_head, linear_head, logistic_head

G = torch.Generator().manual_seed(0)
H = torch.randn(80, 5, generator=G) * torch.tensor([1.0, 10.0, 0.1, 1.0, 0.0]) + 3.0  # the last says nothing
Z = 0.3 * H[:, 0] + 0.05 * H[:, 1] + 0.1 * torch.randn(80, generator=G)


def standardised(h: Tensor) -> np.ndarray[Any, Any]:
    u = (h - H.mean(0)) / H.std(0, unbiased=False)
    return u[:, :4].double().numpy()


def test_ridge_says_what_scikit_learn_says() -> None:
    mean, std = (
        BayesianRidge().fit(standardised(H), Z.double().numpy()).predict(standardised(H), return_std=True)
    )
    found = linear_head(H, Z)(H)
    assert found.std is not None
    np.testing.assert_allclose(found.value.detach(), mean, atol=1e-4)
    np.testing.assert_allclose(found.std.detach(), std, rtol=1e-2)


def test_gaussian_process_says_what_scikit_learn_says() -> None:
    head = kernel_head(H[:60], Z[:60])
    a, length, noise = head.hyper.tolist()
    kernel = ConstantKernel(a) * RBF(length) + WhiteKernel(noise)
    u = ((H - head.shift) / head.scale).double().numpy()
    reference = GaussianProcessRegressor(kernel, optimizer=None).fit(u[:60], Z[:60].double().numpy())
    mean, std = reference.predict(u[60:], return_std=True)
    found = head(H[60:])
    assert found.std is not None
    np.testing.assert_allclose(found.value, mean, atol=1e-3)
    np.testing.assert_allclose(found.std, std, rtol=1e-2)
    assert float((found.value - Z[60:]).abs().mean()) < 0.2 < float(Z[60:].std())


def test_logistic_heads_separate_what_a_line_separates() -> None:
    two = (Z.median() < Z).float()
    three = torch.bucketize(Z, torch.quantile(Z, torch.tensor([1 / 3, 2 / 3]))).float()
    for y, count in ((two, 2), (three, 3)):
        value = logistic_head(H, y, count)(H).value
        assert value.shape == (80, count)
        assert float((value.argmax(-1) == y).float().mean()) > 0.85


def test_a_process_too_large_is_refused() -> None:
    with pytest.raises(InputError, match="3000 crystals"):
        kernel_head(torch.zeros(3000, 2), torch.zeros(3000))


def test_an_untrained_head_says_the_mean() -> None:
    found = MLPHead(5, 0)(H)
    assert (found.value == 0).all() and found.std is not None and (found.std > 0).all()
    assert (MLPHead(5, 3)(H).value.softmax(-1) - 1 / 3).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (PropertyConfig("gap", "eV", 1.0, 2.0), MLPHead),
        (PropertyConfig("metal", classes=("no", "yes"), head="linear"), LinearHead),
        (PropertyConfig("k", "GPa", head="kernel", points=7), KernelHead),
    ],
)
def test_description_round_trips_through_json(config: PropertyConfig, kind: type) -> None:
    again = PropertyConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and isinstance(again.build(5), kind)


def test_units_round_trip() -> None:
    config = PropertyConfig(mean=-3.0, std=2.5)
    torch.testing.assert_close(config.to_physical(config.to_network(Z)), Z)


def test_classes_have_no_process() -> None:
    with pytest.raises(ValueError, match="classes"):
        PropertyConfig(classes=("a", "b"), head="kernel").build(3)
