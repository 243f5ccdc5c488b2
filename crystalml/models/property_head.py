"""Heads that read a property, and how far it may be off, from a crystal's features."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crystalml.models.error_bar import ErrorBar

HeadKind = Literal["mlp", "linear", "kernel"]


@dataclass(frozen=True)
class PropertyConfig:
    """What is predicted and by which head, as plain data.

    mean, std: of the training values; heads work with z = (y - mean) / std. classes: the names of a
    classification's classes, () for a number. points: training crystals that a "kernel" head keeps.
    """

    name: str = "y"
    unit: str = ""
    mean: float = 0.0
    std: float = 1.0
    classes: tuple[str, ...] = ()
    head: HeadKind = "mlp"
    points: int = 0

    def build(self, dim: int) -> PropertyHead:
        if self.head == "kernel":
            if self.classes:
                raise ValueError("a Gaussian process is for numbers, not for classes")
            return KernelHead(dim, self.points)
        return {"mlp": MLPHead, "linear": LinearHead}[self.head](dim, len(self.classes))

    def to_network(self, y: Tensor) -> Tensor:
        return (y - self.mean) / self.std

    def to_physical(self, z: Tensor) -> Tensor:
        return z * self.std + self.mean

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "classes": list(self.classes)}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> PropertyConfig:
        return PropertyConfig(**{**data, "classes": tuple(data["classes"])})


@dataclass(frozen=True)
class Estimate:
    """value: (b,) standardised numbers, or (b, k) logits of classes. std: (b,) of the numbers, else None."""

    value: Tensor
    std: Tensor | None = None


class PropertyHead(nn.Module):
    """Features (b, d) of crystals -> Estimate."""

    def forward(self, h: Tensor) -> Estimate:
        raise NotImplementedError


class MLPHead(PropertyHead):
    """Two layers (DAO, Appendix 3.3), and for numbers an error bar on the features of the last one.

    The bar is fitted on validation crystals: std is the half width in which 68 % of their errors lie.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(dim, dim), nn.SiLU())
        self.out = nn.Linear(dim, classes or 1)
        self.error_bar = None if classes else ErrorBar(dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor) -> Estimate:
        last = self.hidden(h)
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
