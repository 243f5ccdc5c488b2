"""Which device to compute on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crystalml.errors import UnsupportedError

if TYPE_CHECKING:
    import torch


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for ("cpu", "cuda", "cuda:1"); None is a GPU if there is one, else the CPU.

    Raises UnsupportedError for a device that does not exist here.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is None:
        return torch.device("cuda" if gpus else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UnsupportedError(f"{device!r} is no device; write 'cpu', 'cuda' or 'cuda:1'") from error
    if found.type == "cuda" and (found.index or 0) >= gpus:
        have = f"has {gpus} GPUs that PyTorch can use" if gpus else "has no GPU that PyTorch can use"
        raise UnsupportedError(f"device {device!s} was asked for but this machine {have}; use device='cpu'")
    return found
