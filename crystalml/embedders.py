"""The networks that Frechet distances are measured in: our own, matgl's MEGNet, ALIGNN."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pymatgen.core import Structure

from crystalml.convert import to_batch
from crystalml.device import pick_device
from crystalml.embed import embed, knows_cell
from crystalml.errors import InputError, UnsupportedError, WeightsError
from crystalml.metrics.embedding import Embedder, as_embedder
from crystalml.models.model import CrystalModel
from crystalml.primitive import primitive_cells
from crystalml.weights import DEFAULT_POTENTIAL, as_model
from crystalml.weights.registry import fingerprint

Features = NDArray[np.float64]
ALIGNN_MODEL = "formation_energy_peratom_radius"  # of alignn.pretrained
MEGNET_MODEL = "MEGNet-Eform-MP-2018.6.1"  # of matgl


def load_embedder(spec: Any = None, device: str | None = None) -> Embedder:
    """An embedder by name: a model of ours (shipped name, path, "hf://"), "megnet[:name or folder]" or
    "alignn[:name or folder]"; an object with `transform` or a function as it is. None: the default potential.
    """
    if isinstance(spec, CrystalModel):
        return ModelEmbedder(spec, device)
    if spec is not None and not isinstance(spec, str | Path):
        return as_embedder(spec)
    kind, _, rest = str(spec or DEFAULT_POTENTIAL).partition(":")
    if kind == "megnet":
        return MEGNetEmbedder(rest or MEGNET_MODEL)
    if kind == "alignn":
        return ALIGNNEmbedder(rest or ALIGNN_MODEL)
    return ModelEmbedder(spec or DEFAULT_POTENTIAL, device)


class ModelEmbedder:
    """Graph features of one of our encoders: the mean over atoms of its last node features, (n, d).

    A potential sees any cell of a crystal alike; an encoder that knows the cell gets the primitive Niggli
    one (`crystalml.embed`, `crystalml.primitive`).
    """

    def __init__(self, model: str | Path | CrystalModel, device: str | None = None) -> None:
        place = pick_device(device)
        self.model = as_model(model, place, torch.float32)
        card = self.model.card
        label = card.get("name") or ("custom" if isinstance(model, CrystalModel) else str(model))
        self.name = f"{label} features ({fingerprint(self.model)[:8]})"

    def __call__(self, structures: Sequence[Structure]) -> Features:
        if not structures:
            raise InputError("there is no crystal to embed")
        x = to_batch(structures, dtype=torch.float64)
        if knows_cell(self.model.config.encoder):
            x, _ = primitive_cells(x)
        return embed(self.model, x).graph.double().cpu().numpy()


class MEGNetEmbedder:
    """The vector that MEGNet reads its property from (set-to-set over bonds and atoms, and the state).

    model: a folder saved by matgl, or a name that matgl knows and has in its cache (it downloads otherwise).
    160 features for the published sizes (Chen et al., Chem. Mater. 31, 3564 (2019)).
    """

    def __init__(self, model: str | Path = MEGNET_MODEL) -> None:
        import matgl

        try:
            self.model = matgl.load_model(model)
        except Exception as error:  # matgl raises RuntimeError, ValueError, hub and network errors
            raise WeightsError(
                f"matgl cannot load {str(model)!r}: {error}. Give the folder of a saved MEGNet, as "
                f"megnet:FOLDER, or fetch {MEGNET_MODEL} once on a machine with network."
            ) from error
        if type(self.model).__name__ != "MEGNet":
            raise WeightsError(f"{str(model)!r} is a {type(self.model).__name__}, not a MEGNet")
        self.model.eval()
        self.name = f"MEGNet readout ({Path(model).name})"

    def __call__(self, structures: Sequence[Structure]) -> Features:
        rows = []
        with torch.no_grad():
            for structure in structures:
                self.model.predict_structure(structure)
                rows.append(self.model.feature_dict["readout"].flatten().double().numpy())
        return np.array(rows)


class ALIGNNEmbedder:
    """The vector that ALIGNN's last linear layer reads: with it, a Frechet distance is GemsDiff's FAD.

    model: a folder with `config.json` and `best_model.pt`, or a name of `alignn.pretrained` whose weights are
    in alignn's cache already. Needs the package: pip install "crystalml-dao[alignn]". The weights behind the
    paper's numbers are not named there: compare only values of one name.
    """

    def __init__(self, model: str | Path = ALIGNN_MODEL) -> None:
        try:
            from alignn.models.alignn_atomwise_pure import ALIGNNAtomWisePure, ALIGNNAtomWisePureConfig
        except ImportError as error:
            raise UnsupportedError('ALIGNN is not installed: pip install "crystalml-dao[alignn]"') from error
        folder = _alignn_folder(model)
        self.config = json.loads((folder / "config.json").read_text())
        settings = self.config["model"]
        if settings.get("name") != "alignn_atomwise_pure":
            raise WeightsError(f"{folder} holds a model of kind {settings.get('name')!r}, which needs DGL")
        self.model = ALIGNNAtomWisePure(ALIGNNAtomWisePureConfig(**settings))
        state = torch.load(folder / "best_model.pt", map_location="cpu", weights_only=True)
        self.model.load_state_dict(state.get("model", state))
        self.model.config.calculate_gradient = False  # features only
        self.model.eval()
        self.name = f"ALIGNN features ({folder.name})"

    def __call__(self, structures: Sequence[Structure]) -> Features:
        from alignn.torch_graph_builder import build_pure_torch_graph
        from jarvis.core.atoms import Atoms

        rows: list[Features] = []
        hook = self.model.fc.register_forward_pre_hook(
            lambda _, inputs: rows.append(inputs[0].detach().double().numpy()[0])
        )
        inputs = self.config["model"].get("atom_input_features", 92)
        try:
            for structure in structures:
                atoms = Atoms(
                    lattice_mat=structure.lattice.matrix,
                    coords=structure.frac_coords,
                    elements=[site.specie.symbol for site in structure],
                    cartesian=False,
                )
                graph, lines = build_pure_torch_graph(
                    atoms=atoms,
                    two_body_cutoff=float(self.config.get("cutoff", 8.0)),
                    max_neighbors=int(self.config.get("max_neighbors", 12)),
                    atom_features=self.config.get("atom_features")
                    or ("atomic_number" if inputs == 1 else "cgcnn"),
                    compute_line_graph=True,
                )
                self.model([graph, lines, torch.tensor(structure.lattice.matrix, dtype=torch.float32)])
        finally:
            hook.remove()
        return np.array(rows)


def _alignn_folder(model: str | Path) -> Path:
    """Where the weights lie; nothing is downloaded."""
    folder = Path(model)
    if not folder.is_dir():
        from alignn.pretrained import ALIGNN2_MODELS, get_alignn2_model

        if str(model) not in ALIGNN2_MODELS:
            raise WeightsError(f"{str(model)!r} is neither a folder nor a model that alignn.pretrained knows")
        found = get_alignn2_model(str(model), download=False)
        if {"config.json", "best_model.pt"} - set(found):
            raise WeightsError(
                f"the weights of ALIGNN's {str(model)!r} are not on this machine: fetch them once with "
                f'python -c "from alignn.pretrained import get_alignn2_model as g; g({str(model)!r})"'
            )
        folder = Path(found["config.json"]).parent
    if not ((folder / "config.json").is_file() and (folder / "best_model.pt").is_file()):
        raise WeightsError(f"{folder} lacks config.json or best_model.pt")
    return folder
