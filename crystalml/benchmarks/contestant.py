"""One contestant of the speed comparison, in a process and with a Python of its own.

Run as a script by the interpreter that has the contestant installed; needs ASE, numpy and the contestant, not
crystalml. Reads one JSON object a line from stdin, answers with one each. Structures come in ASE files.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ase.build import bulk
from ase.io import read

MIB = 2**20


class Contestant:
    """A calculator with its name and what belongs to timing it."""

    def __init__(self, name: str, model: str, device: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.name, self.device = name, device
        make: dict[str, Callable[[str, str], Any]] = {
            "crystalml": _crystalml,
            "compiled": partial(_crystalml, compile=True),
            "chgnet": _chgnet,
            "matgl": _matgl,
        }
        self.calculator = make[name](model, device)
        atoms = bulk("NaCl", "rocksalt", 5.64)
        atoms.calc = self.calculator
        atoms.get_stress()  # imports and first-time work are over
        self.idle = resident(device)

    def single(self, path: str, turn: int) -> dict[str, Any]:
        """Seconds of energy, forces and stress of a structure nobody has seen before, neighbours included."""
        atoms: Any = read(path)
        atoms.rattle(1e-3, seed=turn)  # or the answer would come from a cache
        atoms.calc = self.calculator
        reset_peak(self.device)
        start = time.perf_counter()
        atoms.get_potential_energy()
        atoms.get_forces()
        atoms.get_stress()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "peak_mib": (peak(self.device) - self.idle) / MIB}

    def relax(self, path: str, fmax: float, steps: int) -> dict[str, Any]:
        """Seconds to relax all structures of a file, atoms and cells, by what the contestant has for it."""
        structures: Any = read(path, index=":")
        start = time.perf_counter()
        how = _relax_chgnet if self.name == "chgnet" else _relax_crystalml
        done = how(self.calculator, structures, fmax, steps)
        return {"seconds": time.perf_counter() - start, **done}


def _crystalml(model: str, device: str, compile: bool = False) -> Any:
    from crystalml import DaoCalculator

    return DaoCalculator(model, device=device, compile=compile)


def _chgnet(model: str, device: str) -> Any:
    from chgnet.model import CHGNet
    from chgnet.model.dynamics import CHGNetCalculator

    return CHGNetCalculator(CHGNet.load(verbose=False), use_device=device)


def _matgl(model: str, device: str) -> Any:
    """matgl's TensorNet as its published potentials build it; the time does not depend on the weights."""
    from matgl.apps.pes import Potential
    from matgl.ext.ase import PESCalculator
    from matgl.models import TensorNet

    potential = Potential(TensorNet(is_intensive=False)).eval().to(device)
    return PESCalculator(potential, stress_unit="eV/A3", device=device)


def _relax_crystalml(calculator: Any, structures: list[Any], fmax: float, steps: int) -> dict[str, Any]:
    from crystalml.relax import relax

    found = relax(structures, calculator, fmax=fmax, max_steps=steps, progress=False)
    return {
        "converged": sum(result["converged"] for result in found),
        "steps": sum(result["n_steps"] for result in found),
    }


def _relax_chgnet(calculator: Any, structures: list[Any], fmax: float, steps: int) -> dict[str, Any]:
    from chgnet.model.dynamics import StructOptimizer

    optimizer = StructOptimizer(calculator, optimizer_class="FIRE")
    counts = [
        len(optimizer.relax(atoms, fmax=fmax, steps=steps, verbose=False)["trajectory"].energies)
        for atoms in structures
    ]
    return {"converged": sum(count <= steps for count in counts), "steps": sum(counts) - len(counts)}


# --- memory -----------------------------------------------------------------------------------------------
def reset_peak(device: str) -> None:
    """Forget the largest memory so far (Linux; on a GPU that of torch)."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak(device: str) -> int:
    """Bytes at most since `reset_peak`."""
    return _memory(device, "VmHWM:")


def resident(device: str) -> int:
    """Bytes now."""
    return _memory(device, "VmRSS:")


def _memory(device: str, field: str) -> int:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() if field == "VmHWM:" else torch.cuda.memory_allocated()
    try:
        with open("/proc/self/status") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith(field))
    except (OSError, StopIteration):  # not Linux: no figure
        return 0


# --- the conversation -------------------------------------------------------------------------------------
def main() -> None:
    """Answer each line of stdin; the first makes the contestant. Whatever libraries print goes to stderr."""
    answers = io.TextIOWrapper(os.fdopen(os.dup(1), "wb"), line_buffering=True)
    os.dup2(2, 1)
    contestant: Contestant | None = None
    for line in sys.stdin:
        order = json.loads(line)
        task = order.pop("task")
        try:
            if task == "load":
                contestant = Contestant(**order)
                answer: dict[str, Any] = {"name": contestant.name}
            else:
                answer = getattr(contestant, task)(**order)
        except Exception as error:  # of any library: the other side says which
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
