"""Throughput: sampling and single points, ours beside the edge-by-edge reference of the same network.

All networks of one table have equal width and depth, see the same crystals in the same groups, and take
turns, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from crystalml.benchmarks.reference_cspnet import from_dense
from crystalml.benchmarks.report import environment, show, write_json
from crystalml.benchmarks.targets import choose, read_test
from crystalml.crystal import CrystalBatch
from crystalml.datasets.arrays import pack as pack_arrays
from crystalml.device import pick_device
from crystalml.errors import InputError
from crystalml.models.crysformer import CrysformerConfig
from crystalml.models.cspnet import CSPNetConfig
from crystalml.models.heads import EnergyScale
from crystalml.models.layers import fast_autocast
from crystalml.models.model import ModelConfig
from crystalml.noise.product import CrystalNoise
from crystalml.predict import Predictor, pack, pair_budget
from crystalml.sample.predictor_corrector import PredictorCorrector

Work = Callable[[], object]
REFERENCE = "CSPNet edge by edge"


def run(
    *,
    dim: int = 256,
    depth: int = 6,
    frequencies: int = 64,
    crystals: int = 64,
    steps: int = 5,
    repeats: int = 3,
    test: str | Path | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    device: str | None = None,
    max_pairs: int | None = None,
) -> dict[str, Any]:
    """Structures per second of `steps` sampling steps, of energies, and of energies with forces and stress.

    Untrained weights: the time does not depend on them. Sampling is given for full runs of the recipe's
    1000 levels, from the time of a few. Crystals are `test`'s, or random ones of 1 to 20 atoms as in
    MP-20. Each figure is the fastest of `repeats` rounds; the table in the JSON has the median as well.
    """
    if min(dim, depth, frequencies, crystals, steps, repeats) < 1:
        raise InputError("dim, depth, frequencies, crystals, steps and repeats must be at least 1 each")
    where = pick_device(device)
    batch = (crystals_of(test, crystals, seed) if test else random_crystals(crystals, seed)).to(where)
    networks = build(dim, depth, frequencies, where)
    noise = CrystalNoise.diffcsp()
    tasks: dict[str, Callable[[Network], Work]] = {
        "sampling": lambda network: _sampling(network, batch, noise, steps, seed, max_pairs),
        "energy": lambda network: _single_points(network, batch, False, max_pairs),
        "energy, forces, stress": lambda network: _single_points(network, batch, True, max_pairs),
    }
    rows = []
    for task, make in tasks.items():
        works = {n.name: make(n) for n in networks if task == "sampling" or not n.bfloat16}
        share = steps / noise.num_steps if task == "sampling" else 1.0
        rows += _figures(task, _take_turns(works, repeats, where), len(batch) * share)
    result = {
        "benchmark": "speed",
        "dim": dim,
        "depth": depth,
        "frequencies": frequencies,
        "crystals": len(batch),
        "mean_atoms": float(batch.num_atoms.double().mean()),
        "test": Path(test).name if test else "random, 1-20 atoms",
        "steps_timed": steps,
        "steps_of_a_sample": noise.num_steps,
        "rows": rows,
        "environment": environment(where),
    }
    if out is not None:
        write_json(Path(out), result)
    _print(result)
    return result


@dataclass(frozen=True)
class Network:
    """A model to be timed, in float32 or under bfloat16 autocast (as shipped, where hardware has it)."""

    name: str
    model: Any
    bfloat16: bool = False


def build(dim: int, depth: int, frequencies: int, device: torch.device) -> list[Network]:
    """The reference first, then ours, all of equal width and depth."""
    heads = next(count for count in (8, 4, 2, 1) if dim % count == 0)
    scale = EnergyScale()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cspnet = ModelConfig(CSPNetConfig(dim, depth, frequencies), energy=scale).build().to(device).eval()
        config = CrysformerConfig(dim, depth, heads, edge_dim=dim, frequencies=frequencies)
        crysformer = ModelConfig(config, energy=scale).build().to(device).eval()
    models = {REFERENCE: from_dense(cspnet), "CSPNet": cspnet, "Crysformer": crysformer}
    out = [Network(name, model) for name, model in models.items()]
    with fast_autocast(device):
        if torch.is_autocast_enabled(device.type):
            out += [Network(f"{name}, bfloat16", model, True) for name, model in models.items()]
    return out


def random_crystals(count: int, seed: int) -> CrystalBatch:
    """Cells of 1 to 20 atoms with 15 A^3 each: the sizes of MP-20; nothing physical."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 21, (count,), generator=g)
    n = int(sizes.sum())
    edge = (15.0 * sizes) ** (1 / 3)
    lattice = edge[:, None, None] * (torch.eye(3) + 0.1 * torch.randn(count, 3, 3, generator=g))
    return CrystalBatch(
        torch.randint(1, 90, (n,), generator=g), torch.rand(n, 3, generator=g), lattice, sizes
    )


def crystals_of(test: str | Path, count: int, seed: int) -> CrystalBatch:
    """Crystals of a test file, chosen by the seed."""
    return pack_arrays(choose(read_test(test), count, seed), labels=())[:]


def _sampling(
    network: Network, batch: CrystalBatch, noise: CrystalNoise, steps: int, seed: int, max_pairs: int | None
) -> Work:
    sampler = PredictorCorrector(noise, steps=steps, autocast=network.bfloat16)
    budget = max_pairs or pair_budget(batch.device, gradient=False)
    groups = [batch[ids.to(batch.device)] for ids in pack(batch.num_atoms, budget)]
    seeds = [torch.arange(len(group), device=batch.device) + seed for group in groups]

    def work() -> list[CrystalBatch]:
        return [
            sampler.sample(network.model.denoise, group, keys)
            for group, keys in zip(groups, seeds, strict=True)
        ]

    return work


def _single_points(network: Network, batch: CrystalBatch, forces: bool, max_pairs: int | None) -> Work:
    predictor = Predictor(network.model, max_pairs)
    return lambda: predictor(batch, forces=forces)


def _take_turns(works: Mapping[str, Work], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each work in each round, after one round unmeasured."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            _finish(device)
            start = time.perf_counter()
            work()
            _finish(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _figures(task: str, seconds: Mapping[str, list[float]], structures: float) -> list[dict[str, Any]]:
    best = {name: min(times) for name, times in seconds.items()}
    return [
        {
            "task": task,
            "network": name,
            "structures_per_second": structures / best[name],
            "structures_per_second_median": structures / median(times),
            "times_reference": best[REFERENCE] / best[name],
            "seconds": times,
        }
        for name, times in seconds.items()
    ]


def _print(result: dict[str, Any]) -> None:
    show(
        f"{result['crystals']} crystals, {result['mean_atoms']:.1f} atoms on average ({result['test']}); "
        f"{result['depth']} layers x {result['dim']}",
        ["", "structures/s", "median", "x reference"],
        [
            (
                f"{row['task']}: {row['network']}",
                f"{row['structures_per_second']:.4g}",
                f"{row['structures_per_second_median']:.4g}",
                f"{row['times_reference']:.2f}",
            )
            for row in result["rows"]
        ],
        f"sampling: {result['steps_of_a_sample']} steps a structure; "
        f"{result['environment']['threads']} threads of {result['environment']['cpu']}"
        + (f", {gpu}" if (gpu := result["environment"]["gpu"]) else ""),
    )
