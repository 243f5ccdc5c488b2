import json

import pytest
import torch

from crystalml.errors import ArchitectureError, UnsupportedError
from crystalml.models.averaged import AveragedConfig
from crystalml.models.crysformer import CrysformerConfig
from crystalml.models.cspnet import CSPNetConfig
from crystalml.models.heads import EnergyScale
from crystalml.models.model import ModelConfig
from crystalml.testing import rand_crystals

TINY = CrysformerConfig(8, 1, 2, 8, 2, 8)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(TINY),
        ModelConfig(TINY, noise=False, energy=EnergyScale(-1.5, 2.0, 0.5)),
        ModelConfig(CSPNetConfig(8, 1, 2, 8), centered=True),
        ModelConfig(AveragedConfig(CSPNetConfig(8, 1, 2, 8, "log"), 3), noise=False),
    ],
)
def test_description_round_trips_through_json(config: ModelConfig) -> None:
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "broken", [{}, {"encoder": {"name": "gpt"}}, {"encoder": {"name": "cspnet", "width": 3}}]
)
def test_unknown_architecture_is_refused(broken: dict[str, object]) -> None:
    data = ModelConfig(TINY).to_dict() | broken if broken else broken
    with pytest.raises(ArchitectureError, match="known encoders"):
        ModelConfig.from_dict(data)


def test_an_average_has_no_noise_heads() -> None:
    with pytest.raises(ValueError, match="Averaged generates nothing"):
        ModelConfig(AveragedConfig(TINY))


def test_missing_heads_say_so() -> None:
    x = rand_crystals(0, 2, dtype=torch.float32)
    with pytest.raises(UnsupportedError, match="noise head"):
        ModelConfig(TINY, noise=False, energy=EnergyScale()).build().denoise(x, torch.tensor([1, 1]))
    with pytest.raises(UnsupportedError, match="energy head"):
        ModelConfig(TINY).build().energy(x)


def test_energy_scale_round_trips_and_an_untrained_head_says_zero() -> None:
    scale = EnergyScale(-4.5, 2.0)
    e = torch.tensor([-3.0, 0.0, 1.0])
    torch.testing.assert_close(scale.to_physical(scale.to_network(e)), e)
    model = ModelConfig(TINY, energy=scale).build()
    torch.testing.assert_close(model.energy(rand_crystals(0, 3, dtype=torch.float32)), torch.zeros(3))
