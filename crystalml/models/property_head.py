"""Heads that read a property, and how far it may be off, from a crystal's features."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crystalml.models.error_bar import ErrorBar
from crystalml.models.recalibration import Recalibration
from crystalml.models.scalar_head import Kind, ScalarNoiseHead

_NEAR = 1e-4  # standard deviations from where values end: there, but for rounding
HeadKind = Literal["mlp", "linear", "kernel", "diffusion"]


@dataclass(frozen=True)
class PropertyConfig:
    """What is predicted and by which head, as plain data.

    mean, std: of the training values; heads work with z = (y - mean) / std. classes: the names of a
    classification's classes, () for a number. points: training crystals that a "kernel" head keeps. noise:
    the form of a "diffusion" head's network. low, high: where values end, None for nowhere.
    """

    name: str = "y"
    unit: str = ""
    mean: float = 0.0
    std: float = 1.0
    classes: tuple[str, ...] = ()
    head: HeadKind = "mlp"
    points: int = 0
    noise: Kind = "mlp"
    low: float | None = None
    high: float | None = None

    def build(self, dim: int) -> PropertyHead:
        if self.classes and self.head in ("kernel", "diffusion"):
            raise ValueError(f"a {self.head} head is for numbers, not for classes")
        if self.head == "kernel":
            return KernelHead(dim, self.points)
        if self.head == "diffusion":
            return DiffusionHead(dim, self.noise)
        return {"mlp": MLPHead, "linear": LinearHead}[self.head](dim, len(self.classes))

    def to_network(self, y: Tensor) -> Tensor:
        return (y - self.mean) / self.std

    def to_physical(self, z: Tensor) -> Tensor:
        y, near = z * self.std + self.mean, _NEAR * self.std
        if self.low is not None:
            y = torch.where(y < self.low + near, self.low, y)
        if self.high is not None:
            y = torch.where(y > self.high - near, self.high, y)
        return y

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "classes": list(self.classes)}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> PropertyConfig:
        return PropertyConfig(**{**data, "classes": tuple(data["classes"])})


@dataclass(frozen=True)
class Estimate:
    """value: (b,) standardised numbers, or (b, k) logits of classes. std: (b,) of the numbers, else None.

    draws: (b, n) of a distribution, None where there is but the value.
    """

    value: Tensor
    std: Tensor | None = None
    draws: Tensor | None = None


class PropertyHead(nn.Module):
    """Weights that read features (b, d) of crystals, and what validation says about the errors of numbers."""

    def __init__(self, spread: bool = True) -> None:
        super().__init__()
        self.recalibration = Recalibration(spread)


class TrainedHead(PropertyHead):
    """A head learned by gradients, which reads (h - shift) / scale.

    shift, scale: mean and spread of the training crystals' features before fine-tuning; what tells crystals
    of a narrow family apart is small beside what they share.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, dim: int, spread: bool = True) -> None:
        super().__init__(spread)
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))

    def standardise(self, h: Tensor) -> None:
        """Take shift and scale from features (b, d)."""
        self.shift.copy_(h.mean(0))
        self.scale.copy_((h - h.mean(0)).square().mean().sqrt().clamp(min=1e-3))

    def standard(self, h: Tensor) -> Tensor:
        return (h - self.shift) / self.scale


class TwoLayerHead(TrainedHead):
    """Two layers (DAO, Appendix 3.3), which say zero until they have learned."""

    def __init__(self, dim: int, outputs: int = 1, spread: bool = True) -> None:
        super().__init__(dim, spread)
        self.hidden = nn.Sequential(nn.Linear(dim, dim), nn.SiLU())
        self.out = nn.Linear(dim, outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def last(self, h: Tensor) -> Tensor:
        """(b, d) what the last linear layer reads."""
        out: Tensor = self.hidden(self.standard(h))
        return out


class DiffusionHead(TwoLayerHead):
    """A guess f(h), its value, and the noise in (z - f) / unit, of which `sample.scalar` makes draws.

    The prior of the chains is N(f, unit^2) in standardised values z: CARD's choice, with the unit variance in
    units of the guess's own errors. f = 0 and unit = 1 are the prior of CrysDiff, the training mean. bounds:
    (2,) of z. floor: what is added to the spread of a crystal's draws to make its scale, so that draws that
    happen to agree claim no certainty.
    """

    unit: Tensor
    bounds: Tensor
    floor: Tensor

    def __init__(self, dim: int, kind: Kind = "mlp") -> None:
        super().__init__(dim, spread=False)
        self.noise = ScalarNoiseHead(dim, kind)
        self.register_buffer("unit", torch.ones(()))
        self.register_buffer("bounds", torch.tensor([-10.0, 10.0]))
        self.register_buffer("floor", torch.ones(()))

    def forward(self, h: Tensor) -> Estimate:
        return Estimate(self.out(self.last(h)).squeeze(-1))


class MLPHead(TwoLayerHead):
    """Two layers, and for numbers an error bar on the features of the last one.

    The bar is fitted on validation crystals: std is the half width in which 68 % of their errors lie.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__(dim, classes or 1)
        self.error_bar = None if classes else ErrorBar(dim)

    def forward(self, h: Tensor) -> Estimate:
        last = self.last(h)
        out = self.out(last)
        if self.error_bar is None:
            return Estimate(out)
        return Estimate(out.squeeze(-1), self.error_bar(last))


class LinearHead(PropertyHead):
    """w.u + c of standardised features u; for numbers the variance of a Bayesian linear model.

    var = noise + u^T S u (Bishop 2006, Eq. 3.59), with S the posterior covariance of the weights.
    """

    shift: Tensor
    scale: Tensor
    covariance: Tensor
    noise: Tensor

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.numbers = not classes
        self.net = nn.Linear(dim, classes or 1)
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("covariance", torch.zeros(dim, dim) if self.numbers else torch.zeros(0))
        self.register_buffer("noise", torch.zeros(()))

    def forward(self, h: Tensor) -> Estimate:
        u = (h - self.shift) / self.scale
        out = self.net(u)
        if not self.numbers:
            return Estimate(out)
        return Estimate(out.squeeze(-1), (self.noise + ((u @ self.covariance) * u).sum(-1)).sqrt())


class KernelHead(PropertyHead):
    """A Gaussian process, k(u, u') = a exp(-|u - u'|^2 / 2 l^2) (Rasmussen and Williams 2006, Alg. 2.1).

    points (m, d) and weights (m,) of the training crystals; whiten (m, m) is the inverse of the Cholesky
    factor of their covariance.
    """

    shift: Tensor
    scale: Tensor
    points: Tensor
    weights: Tensor
    whiten: Tensor
    hyper: Tensor

    def __init__(self, dim: int, points: int) -> None:
        super().__init__()
        shapes = {"shift": (dim,), "scale": (dim,), "points": (points, dim), "weights": (points,)}
        for name, shape in {**shapes, "whiten": (points, points)}.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("hyper", torch.ones(3))  # a, l, variance of the noise

    def forward(self, h: Tensor) -> Estimate:
        a, length, noise = self.hyper
        u = (h - self.shift) / self.scale
        k = a * torch.exp(-0.5 * (torch.cdist(u, self.points) / length).square())
        explained = (k @ self.whiten.T).square().sum(-1)
        return Estimate(k @ self.weights, (a + noise - explained).clamp(min=1e-12).sqrt())
