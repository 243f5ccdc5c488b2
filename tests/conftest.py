"""What every test shares: one thread, no network for model hubs, no windows, the optional real data."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from crystalml.models.model import CrystalModel

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)  # test tensors are small: more threads only wait for each other
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("house")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real crystals, which is no part of the project: tests on it are skipped without it."""
    folder = Path(os.environ.get("CRYSTALML_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not at hand: no folder {folder} (set CRYSTALML_DATA to point at it)")
    return folder


def make_tiny_model(
    noise: bool = True, energy: bool = True, dtype: torch.dtype = torch.float32
) -> "CrystalModel":
    """An untrained Crysformer of a few thousand weights whose energy varies with the crystal."""
    from crystalml.models.crysformer import CrysformerConfig
    from crystalml.models.heads import EnergyScale
    from crystalml.models.model import CrystalModel, ModelConfig

    encoder = CrysformerConfig(dim=16, depth=2, heads=2, edge_dim=16, frequencies=4, time_dim=8)
    scale = EnergyScale(mean=-1.0, std=2.0) if energy else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CrystalModel(ModelConfig(encoder, noise=noise, energy=scale)).to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # heads that start at zero would make every law about gradients hold for free
        for weight in model.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator).to(dtype)
    return model


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., "CrystalModel"]:
    """tiny_model(noise=True, energy=True, dtype=torch.float32) -> the same untrained model every time."""
    return make_tiny_model


@pytest.fixture(scope="session")
def tiny_potential() -> "Callable[..., CrystalModel]":
    """tiny_potential(dtype=torch.float32) -> the same untrained periodic Crysformer every time."""

    def make(dtype: torch.dtype = torch.float32) -> "CrystalModel":
        from crystalml.models.heads import EnergyScale
        from crystalml.models.model import CrystalModel, ModelConfig
        from crystalml.models.periodic import PeriodicConfig

        encoder = PeriodicConfig(16, 1, 2, 4, 8, 8, 6, cutoff=5.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = CrystalModel(ModelConfig(encoder, noise=False, energy=EnergyScale(-1.0, 2.0))).eval()
            with torch.no_grad():  # a head that starts at zero would leave the repulsion alone
                for weight in model.parameters():
                    weight += 0.1 * torch.randn_like(weight)
        return model.to(dtype)

    return make


class Largest(TorchDispatchMode):
    """How many entries the largest tensor has that was made since."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else (out,)
        self.entries = max([self.entries, *(x.numel() for x in made if isinstance(x, torch.Tensor))])
        return out


@pytest.fixture
def largest() -> Largest:
    """with largest: ...; largest.entries -> of the largest tensor made there: memory and work."""
    return Largest()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """run("relax", path, "-q") -> what the command line made of it; errors that are bugs are raised."""
    from typer.testing import CliRunner

    from crystalml import cli

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def invoke(*args: object) -> Any:
        result = CliRunner().invoke(cli.app, [str(arg) for arg in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke
