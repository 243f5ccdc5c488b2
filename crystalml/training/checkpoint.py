"""Model files and resumable training states: safetensors with JSON metadata, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from crystalml.errors import ArchitectureError, WeightsError
from crystalml.models.model import CrystalModel, ModelConfig
from crystalml.replacing import replacing

FORMAT = "crystalml-1"


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write atomically: a kill at any moment leaves the old file or the new one, never half of one."""
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with replacing(path) as file:
        save_file(contiguous, file, metadata={"format": FORMAT, "json": json.dumps(metadata)})


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file written by `write_tensors`, and its metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise WeightsError(f"no weights at {path}; `crystalml models` lists those shipped") from error
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        if meta["format"] != FORMAT:
            raise KeyError(meta["format"])
        return tensors, json.loads(meta["json"])
    except (KeyError, json.JSONDecodeError) as error:
        raise ArchitectureError(
            f"{path} carries no {FORMAT} description ({error!r}); was it saved by `crystalml train`?"
        ) from error


def save_model(
    model: CrystalModel, path: str | Path, card: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Weights and everything needed to rebuild the model; dtype narrows what is stored.

    Missing folders are made: a long training must not end for want of one.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    write_tensors(path, state, {"model": model.config.to_dict(), "card": dict(card)})


def load_model_file(path: str | Path, device: torch.device | str = "cpu") -> CrystalModel:
    """Rebuild a saved model in float32, in eval mode, with `card` set."""
    tensors, meta = read_tensors(path)
    if "model" not in meta:
        raise ArchitectureError(f"{path} is a crystalml file but holds no model")
    model = ModelConfig.from_dict(meta["model"]).build()
    floats = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    try:
        model.load_state_dict(floats)
    except RuntimeError as error:
        raise ArchitectureError(f"{path} does not fit the architecture it describes: {error}") from error
    model.card = dict(meta.get("card", {}))
    return model.to(device).eval()
