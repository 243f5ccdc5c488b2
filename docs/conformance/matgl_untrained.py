"""matgl's calculator around a TensorNet with random weights: what is examined is the adapter."""

from typing import Any

import torch
from matgl.apps.pes import Potential
from matgl.ext.ase import PESCalculator
from matgl.models import TensorNet


def make(**settings: Any) -> PESCalculator:
    torch.manual_seed(0)
    potential = Potential(TensorNet(is_intensive=False), data_std=300.0)  # forces of some tenths of eV/A
    return PESCalculator(potential.eval(), **settings)
