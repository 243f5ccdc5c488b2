"""Which proposal is right: a conditional logit over what is known of each, fitted to validation crystals.

P(i) = exp(w . x_i) / sum_j exp(w . x_j) over the proposals j of one request, x_i its features. The weights
maximise sum over targets of log P(any proposal that matches), with a ridge (McFadden 1974; marginal
likelihood, since several proposals may match). The likeliest are relaxed, which tells more of their energies;
a second such logit, of log P, these energies, and whether they are believed, then decides among these.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure
from scipy.optimize import minimize
from scipy.special import logsumexp

from crystalml.errors import FileReadError, InputError
from crystalml.hybrid.refine import Judged

Array = NDArray[Any]

FEATURES = {
    "score": "log share by chemical likeness",
    "share": "share by chemical likeness",
    "gap": "energy above the lowest proposal's, eV/atom, at most 0.5",
    "low": "exp(-gap / 0.08 eV/atom)",
    "force": "root mean square force, eV/A, at most 2",
    "lost": "1 where the potential had no answer",
    "merged": "1 where one element holds two colours",
    "split": "1 where two elements share one colour",
    "supercell": "1 for a supercell of a smaller prototype",
}
AFTER = {
    "log_share": "log of the probability before relaxation",
    "depth": "energy where it ended above the lowest answer's, eV/atom, at most 0.1",
    "believed": "1 where it ended within the trusted region",
}
"""What decides among answers that were relaxed."""

_UNMOVED = {"log_share": 1.0, "depth": 0.0, "believed": 0.0}
DEFAULT = Path(__file__).parent / "ranker.json"


def features(proposals: Sequence[Judged]) -> Array:
    """(m, k) FEATURES of the proposals of one request; energies count only where the potential gave them."""
    energy = np.array([item.energy for item in proposals])
    known = np.isfinite(energy)
    lowest = energy[known].min() if known.any() else 0.0
    gap = np.where(known, np.minimum(energy - lowest, 0.5), 0.0)
    force = np.array([item.force for item in proposals])
    properties = [item.structure.properties for item in proposals]
    columns = {
        "score": np.array([p["score"] for p in properties]),
        "share": np.exp([p["score"] for p in properties]),
        "gap": gap,
        "low": np.where(known, np.exp(-gap / 0.08), 0.0),
        "force": np.where(known, np.minimum(force, 2.0), 0.0),
        "lost": np.where(known, 0.0, float(known.any())),
        "merged": np.array([p["derived"] == "merged" for p in properties], float),
        "split": np.array([p["derived"] == "split" for p in properties], float),
        "supercell": np.array([p["supercell"] > 1 for p in properties], float),
    }
    return np.stack([columns[name] for name in FEATURES], 1)


def features_after(answers: Sequence[Structure], log_share: Array) -> Array:
    """(m, 3) AFTER of what relaxation made of proposals; without its energies, only the order counts."""
    energy = np.array([s.properties.get("minimum_energy", math.nan) for s in answers])
    known = np.isfinite(energy)
    lowest = energy[known].min() if known.any() else 0.0
    depth = np.where(known, np.minimum(energy - lowest, 0.1), 0.1)
    believed = np.array([bool(s.properties.get("relaxed")) for s in answers], float)
    return np.stack([log_share, depth, believed], 1)


@dataclass(frozen=True)
class Ranker:
    """weights: of each of FEATURES. after: of each of AFTER; as given, relaxation changes nothing. card: how
    they were made.
    """

    weights: Mapping[str, float]
    card: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=lambda: dict(_UNMOVED))

    def __post_init__(self) -> None:
        for given, known in ((self.weights, FEATURES), (self.after, AFTER)):
            if set(given) != set(known):
                raise InputError(f"a ranker needs a weight for each of {list(known)}, not {list(given)}")

    @property
    def name(self) -> str:
        """A digest of the weights."""
        text = json.dumps(dict(sorted(self.weights.items())) | dict(sorted(self.after.items())))
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    def log_probabilities(self, proposals: Sequence[Judged]) -> Array:
        """(m,) log P of each proposal of one request."""
        return self.log_shares(features(proposals))

    def log_shares(self, x: Array) -> Array:
        """As `log_probabilities`, from features (m, k)."""
        total = x @ np.array([self.weights[name] for name in FEATURES])
        out: Array = total - logsumexp(total)
        return out

    def log_shares_after(self, x: Array) -> Array:
        """(m,) log P of answers that were relaxed, from `features_after`. What the answers have together is
        what they had together before.
        """
        total = x @ np.array([self.after[name] for name in AFTER])
        out: Array = total - logsumexp(total) + logsumexp(x[:, 0])
        return out

    def save(self, path: str | Path) -> None:
        known = {"features": FEATURES, "after_features": AFTER}
        data = {"weights": dict(self.weights), "after": dict(self.after), **known, **self.card}
        Path(path).write_text(json.dumps(data, indent=1) + "\n")

    @staticmethod
    def load(path: str | Path) -> Ranker:
        try:
            data = json.loads(Path(path).read_text())
            weights = {name: float(data["weights"][name]) for name in FEATURES}
            after = {name: float(data.get("after", _UNMOVED)[name]) for name in AFTER}
        except (OSError, ValueError, KeyError) as error:
            raise FileReadError(
                f"{path} is no ranker ({error!r}); make one with `crystalml fit-ranker`"
            ) from error
        card = {key: value for key, value in data.items() if key not in ("weights", "after")}
        return Ranker(weights, card, after)

    @staticmethod
    @cache
    def default() -> Ranker:
        """The ranker shipped with the package, for energies of the shipped potential."""
        return Ranker.load(DEFAULT)

    @staticmethod
    def by_score() -> Ranker:
        """Chemical likeness alone, for proposals that no potential has seen."""
        return Ranker({name: float(name == "score") for name in FEATURES})


def fit_ranker(
    tables: Sequence[tuple[Array, Array]], ridge: float = 0.01, fixed: Sequence[str] = ()
) -> Ranker:
    """Fit to (features (m, k), matches (m,) bool) of many targets; those without a match teach nothing.

    ridge: of standardised weights. fixed: names of features that shall not count.
    """
    return Ranker(_fitted(tables, list(FEATURES), ridge, fixed))


def fit_after(ranker: Ranker, tables: Sequence[tuple[Array, Array]], ridge: float = 0.003) -> Ranker:
    """The ranker with `after` fitted to (features_after (m, 3), matches (m,)) of many targets."""
    return replace(ranker, after=_fitted(tables, list(AFTER), ridge))


def _fitted(
    tables: Sequence[tuple[Array, Array]], names: Sequence[str], ridge: float, fixed: Sequence[str] = ()
) -> dict[str, float]:
    usable = [(x, y) for x, y in tables if y.any() and not y.all()]
    if not usable:
        raise InputError("no target has both proposals that match and proposals that do not: nothing to fit")
    scale = np.concatenate([x for x, _ in usable]).std(0)
    free = np.array([name not in fixed for name in names]) & (scale > 1e-9)
    scale = np.where(scale > 1e-9, scale, 1.0)

    def loss(w: Array) -> tuple[float, Array]:
        value, slope = ridge * float(w @ w), 2 * ridge * w
        for x, y in usable:
            z = (x / scale * free) @ w
            p = np.exp(z - logsumexp(z))
            q = np.where(y, p, 0.0) / p[y].sum()
            value -= math.log(p[y].sum()) / len(usable)
            slope = slope + ((p - q) @ (x / scale * free)) / len(usable)
        return value, slope

    found = minimize(loss, np.zeros(len(names)), jac=True, method="L-BFGS-B")
    weights = found.x * free / scale
    return {name: round(float(w), 4) for name, w in zip(names, weights, strict=True)}
