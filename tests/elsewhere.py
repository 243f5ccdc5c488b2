"""A pretended second device, so that tests see code that mixes devices on machines that have only a CPU.

Inside `elsewhere()` the device "meta" holds real numbers: tensors made there, or moved there, say that they
are there, compute on the CPU, and refuse to meet tensors of the CPU where CUDA would refuse. "meta" is
borrowed because autograd needs no driver for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

THERE = torch.device("meta")
_aten = torch.ops.aten
_AUTOCAST, _ADAMW = torch.autocast, torch.optim.AdamW
_MOVES = {_aten._to_copy.default, _aten.copy_.default}  # take tensors of both devices
_INDEXED = {
    _aten.index.Tensor,
    _aten.index_put_.default,
    _aten.index_put.default,
}  # indices may be on the CPU


class Elsewhere(torch.Tensor):
    """A tensor that says it is elsewhere; `here` holds its numbers."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> Elsewhere:
        out = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=THERE, layout=here.layout, requires_grad=False,
        )  # fmt: skip
        out.here = here
        return out

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        return self.here.tolist()

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None) -> torch.Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or THERE)

    def __repr__(self, **kwargs: Any) -> str:
        return f"Elsewhere({self.here!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Generator(torch.Generator):
    """A generator that is noted where it is meant to be; PyTorch hands on its core only."""

    places: ClassVar[dict[int, bool]] = {}

    def __new__(cls, device: Any = "cpu") -> Generator:
        out = super().__new__(cls)
        cls.places[out._cdata] = torch.device(device) == THERE  # type: ignore[attr-defined]
        return out


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    there = any(isinstance(x, Elsewhere) for x in flat)
    strangers = [x for x in flat if not isinstance(x, Elsewhere) and x.dim() > 0]
    if func in _INDEXED and isinstance(args[0], Elsewhere):
        indices = {id(x) for x in args[1] if x is not None}
        strangers = [x for x in strangers if id(x) not in indices]
    if there and strangers and func not in _MOVES:
        raise AssertionError(f"{func} mixes devices: {[tuple(x.shape) for x in strangers]} stayed on the CPU")
    wanted = kwargs.get("device")
    if wanted is not None:
        there = torch.device(wanted) == THERE
    generator = kwargs.get("generator")
    if generator is not None and Generator.places.get(generator._cdata, False) != there:
        raise AssertionError(f"{func}: the generator is not where the numbers are wanted")
    here = {key: "cpu" if key == "device" and value is not None else value for key, value in kwargs.items()}
    if here.get("pin_memory"):
        here["pin_memory"] = False
    inner_args, inner_kwargs = tree_map(_here, (args, here))
    out = func(*inner_args, **inner_kwargs)
    if not there:
        return out
    wrapped = tree_map(lambda x: Elsewhere(x) if isinstance(x, torch.Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _here(x: Any) -> Any:
    return x.here if isinstance(x, Elsewhere) else x


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """The device, for as long as it is pretended."""
    replaced = {name: _made_here(getattr(torch, name)) for name in ("tensor", "as_tensor")}
    replaced |= {"Generator": Generator, "autocast": _autocast}
    optimizer = mock.patch.object(torch.optim, "AdamW", _plain_adamw)
    with mock.patch.multiple(torch, **replaced), optimizer, _Mode():
        yield THERE


def _plain_adamw(*args: Any, **kwargs: Any) -> torch.optim.Optimizer:
    """The fused kernel knows true devices only."""
    return _ADAMW(*args, **{**kwargs, "fused": False})


def _autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
    return nullcontext() if device_type == THERE.type else _AUTOCAST(device_type, *args, **kwargs)


def _made_here(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Tensors of Python's numbers are built inside PyTorch, where no mode looks: move them afterwards."""

    def made(data: Any, *, device: Any = None, **kwargs: Any) -> torch.Tensor:
        out = make(data, **kwargs)
        return out if device is None else out.to(device)

    return made
