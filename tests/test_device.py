"""The device asked for, the best one otherwise, a clear word where there is none."""

import pytest
import torch

from crystalml import DaoCalculator
from crystalml.device import pick_device
from crystalml.errors import UnsupportedError


@pytest.mark.parametrize(("gpus", "expected"), [(0, "cpu"), (2, "cuda")])
def test_the_best_one_otherwise(monkeypatch, gpus, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert pick_device(None) == torch.device(expected)
    assert pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(UnsupportedError, match=r"cuda:2.*device='cpu'"):
        pick_device("cuda:2")


def test_what_is_no_device(monkeypatch):
    with pytest.raises(UnsupportedError, match="'gpu' is no device"):
        pick_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedError, match="no GPU"):
        DaoCalculator(device="cuda")
