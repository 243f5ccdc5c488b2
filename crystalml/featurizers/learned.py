"""Features of crystals and of their atoms from the pretrained networks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from crystalml.convert import to_batch
from crystalml.crystal import CrystalBatch
from crystalml.device import pick_device
from crystalml.elements import numbers_of
from crystalml.embed import embed, knows_cell
from crystalml.errors import InputError
from crystalml.featurizers.base import BatchFeaturizer
from crystalml.featurizers.cache import FeatureCache, key
from crystalml.models.model import CrystalModel
from crystalml.primitive import primitive_cells
from crystalml.weights.registry import as_model, fingerprint

Array = NDArray[np.float64]
Per = Literal["structure", "site"]
_CHUNK = 512  # crystals at a time: bounds memory, and what a kill loses of a cache

_NEURALCRYSTAL = (
    "@article{neuralcrystal, title={A Geometric Foundation Model for Crystalline Material Discovery}, "
    "author={Liu, Shengchao and Yan, Divin and Du, Weitao and Li, Zhuoxinran and Zheng, Zhiling and "
    "Yaghi, Omar and Borgs, Christian and Guo, Hongyu and Anandkumar, Anima and Chayes, Jennifer}}"
)
_DAO = (
    "@article{dao, title={Siamese Foundation Models for Crystal Structure Prediction}, author={Wu, Liming "
    "and Huang, Wenbing and Jiao, Rui and Huang, Jianxing and Liu, Liwei and Zhou, Yipeng and Sun, Hao and "
    "Liu, Yang and Sun, Fuchun and Ren, Yuxiang and Wen, Jirong}, journal={arXiv:2503.10471}, year={2025}}"
)


class _Learned(BatchFeaturizer):
    """Features of any model of ours; subclasses say which by default, and whose they are."""

    _prefix: str
    _bibtex: str

    def __init__(
        self,
        model: str | os.PathLike[str] | CrystalModel,
        per: Per,
        primitive: bool,
        cache: str | os.PathLike[str] | None,
        device: str | None,
        progress: bool,
    ) -> None:
        self.model = model
        self.per = per
        self.primitive = primitive
        self.cache = cache
        self.device = device
        self.progress = progress

    def _loaded(self) -> CrystalModel:
        """The model, loaded once for these settings; a clone or a pickle loads its own."""
        place = pick_device(self.device)
        settings = (id(self.model) if isinstance(self.model, CrystalModel) else str(self.model), place)
        if getattr(self, "_settings", None) != settings:
            self._network = as_model(self.model, place, torch.float32)
            self._settings = settings
        return self._network

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_network", "_settings")}

    def feature_labels(self) -> list[str]:
        return [f"{self._prefix}_{k}" for k in range(self._loaded().encoder.dim)]

    def citations(self) -> list[str]:
        return [self._bibtex]

    def _known(self) -> set[int] | None:
        """The elements the model knows, None for all."""
        return numbers_of(self._loaded().card.get("elements")) or None

    def _check_all(self, entries: Sequence[Any]) -> list[Any]:
        """One conversion for all: entry by entry it costs five times as much."""
        if self.per != "structure" or any(isinstance(entry, CrystalBatch) for entry in entries):
            return super()._check_all(entries)
        x = to_batch(list(entries), dtype=torch.float64, known=self._known())
        return [(one, None) for one in x.split()]

    def _check(self, entry: Any) -> tuple[CrystalBatch, int | None]:
        if self.per not in ("structure", "site"):
            raise InputError(f"per={self.per!r} must be 'structure' or 'site'")
        known = self._known()
        if self.per == "structure":
            return to_batch([entry], dtype=torch.float64, known=known), None
        if not (
            isinstance(entry, tuple | list) and len(entry) == 2 and isinstance(entry[1], int | np.integer)
        ):
            raise InputError("a site is given as (structure, index)")
        x, site = to_batch([entry[0]], dtype=torch.float64, known=known), int(entry[1])
        if not 0 <= site < len(x.numbers):
            raise InputError(f"site {site} does not exist, the structure has {len(x.numbers)} atoms")
        return x, site

    def _compute(self, checked: list[Any], report: Callable[[int], None]) -> Array:
        if self.per == "structure":
            return self._structures([x for x, _ in checked], report)
        rows: list[tuple[int, int]] = []
        places: dict[str, int] = {}
        crystals: list[CrystalBatch] = []
        for x, site in checked:
            name = key(x, "")
            if name not in places:
                places[name] = len(crystals)
                crystals.append(x)
            rows.append((places[name], site))
        tables = self._sites(crystals)
        report(len(checked))
        return np.stack([tables[k][site] for k, site in rows])

    def featurize_sites(self, structure: Any) -> Array:
        """(n, d) features of all atoms of one crystal."""
        x = to_batch([structure], dtype=torch.float64, known=self._known())
        return self._sites([x])[0]

    def _structures(self, crystals: list[CrystalBatch], report: Callable[[int], None]) -> Array:
        model = self._loaded()
        if self.cache is None:
            return np.concatenate(
                [self._rows(model, crystals[k : k + _CHUNK], report) for k in range(0, len(crystals), _CHUNK)]
            )
        cache = FeatureCache(self.cache, model.encoder.dim)
        keys = [key(x, f"{fingerprint(model)} {self.primitive}") for x in crystals]
        new = {name: x for name, x in zip(keys, crystals, strict=True) if name not in cache.rows}
        report(len(crystals) - len(new))
        names = list(new)
        for k in range(0, len(names), _CHUNK):
            part = names[k : k + _CHUNK]
            cache.add(part, self._rows(model, [new[name] for name in part], report))
        return np.stack([cache.rows[name] for name in keys])

    def _rows(
        self, model: CrystalModel, crystals: list[CrystalBatch], report: Callable[[int], None]
    ) -> Array:
        x = CrystalBatch.cat(crystals)
        if self.primitive and knows_cell(model.config.encoder):
            x, _ = primitive_cells(x)
        return embed(model, x, report=report).graph.double().cpu().numpy()

    def _sites(self, crystals: list[CrystalBatch]) -> list[Array]:
        model, x = self._loaded(), CrystalBatch.cat(crystals)
        owner = torch.arange(len(x.numbers))
        cells = x
        if self.primitive and knows_cell(model.config.encoder):
            cells, owner = primitive_cells(x)
        node = embed(model, cells).node.cpu()[owner].double()
        return [part.numpy() for part in node.split(x.num_atoms.tolist())]


class FourierFrameNetFeaturizer(_Learned):
    """Features of FourierFrameNet, pretrained without labels (NeuralCrystal).

    featurize(structure) gives the mean over its atoms; with per="site", featurize(structure, i) gives atom i,
    in matminer's form. Crystals are first brought to primitive Niggli cells (primitive=True): supercells and
    other settings get the same features, as do mirror images with the shipped weights.
    model: shipped name, path, "hf://..." or CrystalModel. cache: a Parquet file of features by crystal and
    weights, of structures only. Entries: pymatgen Structures or ASE Atoms.
    """

    _prefix = "ffn"
    _bibtex = _NEURALCRYSTAL

    def __init__(
        self,
        model: str | os.PathLike[str] | CrystalModel = "fourierframenet-pfm",
        *,
        per: Per = "structure",
        primitive: bool = True,
        cache: str | os.PathLike[str] | None = None,
        device: str | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__(model, per, primitive, cache, device, progress)


class DaoFeaturizer(_Learned):
    """Features of DAO's Crysformer: of "dao-p-diffusion", taught energies, or "dao-g", taught structures.

    Arguments and entries as for `FourierFrameNetFeaturizer`. The Crysformer knows the cell and tells
    hands: crystals are asked in primitive Niggli cells and as both mirror images, of which the mean is taken.
    """

    _prefix = "dao"
    _bibtex = _DAO

    def __init__(
        self,
        model: str | os.PathLike[str] | CrystalModel = "dao-p-diffusion",
        *,
        per: Per = "structure",
        primitive: bool = True,
        cache: str | os.PathLike[str] | None = None,
        device: str | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__(model, per, primitive, cache, device, progress)
