"""Speed of the potential beside CHGNet and matgl: single points, many relaxations, cost per atom, memory.

Each contestant lives in a process of its own (`contestant`), all with the same number of threads. They take
turns, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.io import write

from crystalml.benchmarks import contestant
from crystalml.benchmarks.report import environment, show, write_json
from crystalml.benchmarks.speed import crystals_of
from crystalml.convert import to_atoms
from crystalml.device import pick_device
from crystalml.errors import InputError
from crystalml.progress import ProgressBar

SIZES = (2, 32, 256)  # atoms of the single points
SCALING = (96, 216, 512, 1000, 2744, 5120)  # and of the cost per atom
_EDGES = {2: None, 32: (1, 2, 2), 96: (2, 2, 3), 216: (3, 3, 3), 256: (2, 4, 4), 512: (4, 4, 4)}
_EDGES |= {1000: (5, 5, 5), 2744: (7, 7, 7), 5120: (8, 8, 10)}


def run(
    model: str = "dao-p",
    *,
    chgnet_python: str | Path | None = None,
    matgl: bool = True,
    compiled: bool = True,
    repeats: int = 5,
    relaxations: int = 64,
    crystals: str | Path | None = None,
    fmax: float = 0.05,
    max_steps: int = 500,
    scaling: Sequence[int] = SCALING,
    threads: int = 1,
    seed: int = 0,
    out: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Energy, forces and stress through ASE at 2, 32 and 256 atoms (rock salt, rattled anew for each call);
    `relaxations` crystals to fmax in eV/A; single points of 96 to 5120 atoms.

    The potential relaxes its crystals with `crystalml.relax`, CHGNet with its StructOptimizer one by one.
    They are `crystals`' (a Parquet file), chosen by the seed, or common structure types, all rattled by 0.1 A
    and strained by 3 %. chgnet_python: the interpreter that has CHGNet; None leaves it out. compiled: the
    potential after `compile_potential`, too. matgl runs its TensorNet untrained, since time does not depend
    on weights. Each time is the best of `repeats` after one unmeasured; medians are in the JSON. Memory is
    the process's peak above that of one after its first call.
    Raises InputError.
    """
    if min(repeats, threads) < 1 or relaxations < 0 or not set(scaling) <= set(_EDGES):
        raise InputError(
            f"repeats and threads must be at least 1, relaxations at least 0 and scaling among "
            f"{sorted(_EDGES)}, not {repeats}, {threads}, {relaxations} and {list(scaling)}"
        )
    where = pick_device(device)
    own = ("crystalml", *("compiled",) * compiled, *("matgl",) * matgl)
    field = dict.fromkeys(own, sys.executable)
    field |= {} if chgnet_python is None else {"chgnet": str(chgnet_python)}
    starts = disturbed(relaxations, crystals, seed)
    result: dict[str, Any] = {
        "benchmark": "potential-speed",
        "model": model,
        "threads": threads,
        "relaxations": f"{relaxations} of {Path(crystals).name if crystals else 'structure types'}",
        "fmax": fmax,
        **_times(field, (model, where.type, threads), repeats, starts, (fmax, max_steps), scaling, progress),
        "environment": environment(where),
    }
    if out is not None:
        write_json(Path(out), result)
    _print(result)
    return result


def _times(
    field: dict[str, str],
    settings: tuple[str, str, int],
    repeats: int,
    starts: list[Atoms],
    ends: tuple[float, int],
    scaling: Sequence[int],
    progress: bool,
) -> dict[str, Any]:
    """Start everybody (name -> interpreter; settings: model, device, threads) and let them take turns."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        teams = [stack.enter_context(Process(name, python, *settings)) for name, python in field.items()]
        bar = stack.enter_context(ProgressBar(progress, "timing"))
        bar.add(len(SIZES) + len(scaling) + 1)
        single, large = {}, {}
        for n in SIZES:
            single[n] = _single(teams, salt(n), folder, repeats)
            bar.advance(1)
        relaxed = _relax(teams, starts, folder, *ends)
        bar.advance(1)
        for n in scaling:
            large[n] = _single(teams[: 1 + ("compiled" in field)], salt(n), folder, min(repeats, 3))
            bar.advance(1)
    return {"single": single, "relax": relaxed, "scaling": large}


class Process:
    """A contestant's process, to be asked one thing at a time."""

    def __init__(self, name: str, python: str, model: str, device: str, threads: int) -> None:
        self.name = name
        script = str(Path(contestant.__file__).resolve())
        count = {key: str(threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        try:
            self.process = subprocess.Popen(
                [python, "-W", "ignore", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, **count},
            )
        except OSError as error:
            raise InputError(f"cannot start {python!r} for {name}: {error}") from error
        self.settings = {"task": "load", "name": name, "model": model, "device": device, "threads": threads}

    def __enter__(self) -> Process:
        try:
            self.ask(self.settings)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()  # ends its loop
        self.process.stdout.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise InputError(f"{self.name} cannot {order['task']}: {answer['error']}")
        return answer


def salt(n: int) -> Atoms:
    """n atoms of rock salt: the primitive cell, else multiples of the cubic one."""
    edges = _EDGES[n]
    if edges is None:
        return bulk("NaCl", "rocksalt", 5.64)
    return bulk("NaCl", "rocksalt", 5.64, cubic=True) * edges


def disturbed(count: int, crystals: str | Path | None, seed: int) -> list[Atoms]:
    """Crystals of a file, or of common structure types, rattled by 0.1 A and strained by 3 %."""
    if crystals is None:
        types = [
            *(
                bulk(name, "rocksalt", a)
                for name, a in (("NaCl", 5.64), ("MgO", 4.21), ("KBr", 6.60), ("LiF", 4.03))
            ),
            *(
                bulk(name, "zincblende", a)
                for name, a in (("GaAs", 5.65), ("ZnS", 5.41), ("SiC", 4.36), ("InP", 5.87))
            ),
            *(bulk(name, "fluorite", a) for name, a in (("CaF2", 5.46), ("Li2O", 4.62))),
            *(bulk(name, "cesiumchloride", a) for name, a in (("CsCl", 4.12), ("NiAl", 2.89))),
            *(bulk(name, cubic=True) for name in ("Si", "Cu", "Fe", "Al")),
        ]
        chosen = [types[k % len(types)].copy() for k in range(count)]
    else:
        chosen = to_atoms(crystals_of(crystals, count, seed))
    g = np.random.default_rng(seed)
    for atoms in chosen:
        strain = g.normal(0, 0.03, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += g.normal(0, 0.1, atoms.positions.shape)
    return chosen


def _relax(
    teams: Sequence[Process], starts: list[Atoms], folder: Path, fmax: float, steps: int
) -> dict[str, Any]:
    """Of each contestant that has a relaxer, once: matgl's untrained one would find nothing."""
    if not starts:
        return {}
    path = folder / "relax.traj"
    write(path, starts)
    order = {"task": "relax", "path": str(path), "fmax": fmax, "steps": steps}
    return {team.name: team.ask(order) for team in teams if team.name != "matgl"}


def _single(teams: Sequence[Process], atoms: Atoms, folder: Path, repeats: int) -> dict[str, Any]:
    path = folder / "single.traj"
    write(path, atoms)
    found: dict[str, list[dict[str, Any]]] = {team.name: [] for team in teams}
    for turn in range(repeats + 1):
        for team in teams:
            answer = team.ask({"task": "single", "path": str(path), "turn": turn})
            if turn:
                found[team.name].append(answer)
    return {
        name: {
            "seconds": min(answer["seconds"] for answer in answers),
            "seconds_median": median(answer["seconds"] for answer in answers),
            "peak_mib": max(answer["peak_mib"] for answer in answers),
        }
        for name, answers in found.items()
    }


def _print(result: dict[str, Any]) -> None:
    names = list(next(iter(result["single"].values())))
    best = "compiled" if "compiled" in names else "crystalml"
    others = [name for name in names if name not in ("crystalml", "compiled")]
    show(
        "Energy, forces and stress through ASE, milliseconds",
        ["atoms", *names, *(f"{name} / {best}" for name in others), "peak MiB"],
        [
            (
                str(n),
                *(f"{1000 * part[name]['seconds']:.1f}" for name in names),
                *(f"{part[name]['seconds'] / part[best]['seconds']:.1f}" for name in others),
                f"{part[best]['peak_mib']:.0f}",
            )
            for n, part in result["single"].items()
        ],
        f"{result['threads']} threads of {result['environment']['cpu']}; best of the rounds",
    )
    if result["relax"]:
        own = result["relax"]["crystalml"]["seconds"]
        show(
            f"Relaxation of {result['relaxations']} to {result['fmax']} eV/A",
            ["", "seconds", "converged", "steps", "times crystalml"],
            [
                (
                    name,
                    f"{part['seconds']:.1f}",
                    str(part["converged"]),
                    str(part["steps"]),
                    f"{part['seconds'] / own:.1f}",
                )
                for name, part in result["relax"].items()
            ],
            "crystalml all in one batch, CHGNet's StructOptimizer one by one",
        )
    if result["scaling"]:
        show(
            "Cost per atom of crystalml",
            ["", "atoms", "µs / atom", "peak MiB", "KiB / atom"],
            [
                (
                    name,
                    str(n),
                    f"{1e6 * part['seconds'] / n:.0f}",
                    f"{part['peak_mib']:.0f}",
                    f"{1024 * part['peak_mib'] / n:.0f}",
                )
                for n, parts in result["scaling"].items()
                for name, part in parts.items()
            ],
        )
