"""crystalml's potential with random weights: what is examined is the network's form and the adapter."""

from typing import Any

import torch

from crystalml import DaoCalculator
from crystalml.models.model import CrystalModel
from crystalml.recipes import dao_p


def make(**settings: Any) -> DaoCalculator:
    torch.manual_seed(0)
    model = CrystalModel(dao_p("tiny").model)
    with torch.no_grad():  # heads that start at zero would keep many laws for free
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape)
    return DaoCalculator(model, device="cpu", **settings)
