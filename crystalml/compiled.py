"""A potential's energies and slopes as code for this machine: what `compile=True` does."""

from __future__ import annotations

import copy
import hashlib
import os
import platform
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import crystalml.models as networks
from crystalml.device import pick_device
from crystalml.errors import UnsupportedError
from crystalml.models.derivatives import pair_slopes
from crystalml.models.model import CrystalModel
from crystalml.progress import ProgressBar
from crystalml.weights.registry import DEFAULT_POTENTIAL, as_model, fingerprint

_STEPS = 3  # of the progress bar: trace, export, compile


def compile_potential(
    model: str | os.PathLike[str] | CrystalModel = DEFAULT_POTENTIAL,
    *,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> CrystalModel:
    """The potential with its energies, forces and stresses computed by code compiled for this machine.

    The same numbers up to rounding, on a CPU in half the time or less up to a hundred atoms; for thousands it
    does not pay. The model that comes back goes wherever one does: `relax(structures, model)`,
    `DaoCalculator(model)`. What the code does not cover, training and tables of a single atom or neighbour,
    the network does as before.

    The first call for given weights and number of threads takes a minute or two and needs a C++ compiler;
    the code is kept in the user's cache folder (`cache_folder`) and is there at once the next time. Weights
    and `torch.set_num_threads` changed afterwards are not seen. Raises UnsupportedError (no potential, no
    compiler) and WeightsError.
    """
    network = as_model(model, pick_device(device), dtype)
    if not network.is_potential:
        raise UnsupportedError("only a potential (recipe dao-p) is compiled; use this model as it is")
    path = cache_folder() / f"{_key(network)}.pt2"
    if not path.is_file():
        build(network, path, progress)
    weight = next(network.parameters())
    try:
        code = CompiledSlopes(path, str(weight.device), weight.dtype)
    except RuntimeError:  # cut short, or from a torch that looks the same and is not
        path.unlink(missing_ok=True)
        build(network, path, progress)
        code = CompiledSlopes(path, str(weight.device), weight.dtype)
    out = copy.deepcopy(network)
    out.compiled = code
    return out


def cache_folder() -> Path:
    """Where compiled code is kept; it may be deleted at any time."""
    return user_cache_path("crystalml") / "compiled"


@dataclass(frozen=True)
class CompiledSlopes:
    """The code in a file, for one device and precision. Copies share it; pickles load the file again."""

    path: Path
    device: str
    dtype: torch.dtype
    run: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        from torch._inductor import aoti_load_package

        object.__setattr__(self, "run", aoti_load_package(str(self.path)))

    def takes(self, vector: Tensor) -> bool:
        """Whether it was compiled for vectors (n, K, 3) like these."""
        return min(vector.shape[:2]) > 1 and vector.dtype == self.dtype and str(vector.device) == self.device

    def __call__(self, numbers: Tensor, j: Tensor, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """numbers (n,), neighbours j (n, K), vectors (n, K, 3): see `pair_slopes`."""
        y, g, last = self.run(numbers, j, vector)
        return y, g, last

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledSlopes:
        return self

    def __reduce__(self) -> tuple[type[CompiledSlopes], tuple[Path, str, torch.dtype]]:
        return CompiledSlopes, (self.path, self.device, self.dtype)


def build(model: CrystalModel, path: Path, progress: bool = False) -> None:
    """Compile the potential's `pair_slopes` into the file; whole or not at all."""
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise UnsupportedError(
            f"the potential could not be compiled ({error}): install a C++ compiler (g++ or clang; the "
            "variable CXX names it), or go on without compile=True"
        ) from error
    model = copy.deepcopy(model).requires_grad_(False)
    weight = next(model.parameters())

    def slopes(numbers: Tensor, j: Tensor, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return pair_slopes(model, numbers, j, vector, create_graph=False)

    n, k = 5, 7  # unlike each other, so that the trace keeps them apart
    example = (
        torch.arange(1, n + 1, device=weight.device),
        torch.arange(n * k, device=weight.device).view(n, k) % n,
        torch.linspace(1.0, 4.0, 3 * n * k, device=weight.device, dtype=weight.dtype).view(n, k, 3),
    )
    atoms, neighbors = torch.export.Dim("atoms", min=2), torch.export.Dim("neighbors", min=2)
    table = {0: atoms, 1: neighbors}
    path.parent.mkdir(parents=True, exist_ok=True)
    with ProgressBar(progress, "compiling the potential, once") as bar:
        bar.add(_STEPS)
        graph = make_fx(slopes, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*example)
        bar.advance(1)
        with torch.no_grad(), tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = torch.export.export(graph, example, dynamic_shapes=({0: atoms}, table, table))
            bar.advance(1)
            file = str(Path(folder) / path.name)
            aoti_compile_and_package(whole, package_path=file)
            os.replace(file, path)
        bar.advance(1)


def _key(model: CrystalModel) -> str:
    """A name for all that the code depends on: weights, precision, threads, package, torch, processor."""
    weight = next(model.parameters())
    parts = [fingerprint(model), weight.dtype, weight.device, torch.__version__, platform.machine()]
    if weight.device.type == "cuda":
        parts.append(torch.cuda.get_device_name(weight.device))
    else:
        # With the number of threads left open, the code would be a third slower on one of them.
        parts += [torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()]
        parts.append(getattr(torch.cpu, "get_capabilities", dict)())  # one cache folder serves many machines
    found = hashlib.blake2b(repr(parts).encode(), digest_size=16)
    for file in sorted(Path(networks.__path__[0]).glob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()
