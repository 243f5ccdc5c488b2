"""Learning a property from labelled crystals: numbers or classes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from crystalml.crystal import CrystalBatch
from crystalml.geometry.torus import wrap


@dataclass(frozen=True)
class Regression:
    """mean |z - z'| of a standardised number, or the cross-entropy of a class, both from the property head.

    label: of the data, numbers already standardised, classes as their place in the list. mirrored: show half
    of the crystals as their mirror images, F -> -F, for encoders that tell the two apart: a scalar property
    cannot (methods §3.1, pitfall 5).
    """

    label: str = "target"
    classes: bool = False
    mirrored: bool = False

    def __call__(
        self, model: nn.Module, x: CrystalBatch, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """{"loss"}: scalar."""
        features = crystal_features(model, either_hand(x, generator) if self.mirrored else x)
        with torch.autocast(x.device.type, enabled=False):
            found = model.property_head(features).value  # type: ignore[operator]
            wanted = x.labels[self.label]
            if self.classes:
                return {"loss": cross_entropy(found, wanted.long())}
            return {"loss": (found - wanted).abs().mean()}

    def watched(self) -> Regression:
        """The same without chance, for validation."""
        return replace(self, mirrored=False)


def either_hand(x: CrystalBatch, generator: torch.Generator | None) -> CrystalBatch:
    """The crystals, half of them as their mirror images."""
    flip = torch.rand(len(x), generator=generator, device=x.device) < 0.5
    return x.replace(frac=wrap(torch.where(flip[x.index][:, None], -x.frac, x.frac)))


def crystal_features(model: nn.Module, x: CrystalBatch) -> Tensor:
    """(b, d) of clean crystals."""
    found: Tensor = model(x).features.graph.to(x.dtype)
    return found
