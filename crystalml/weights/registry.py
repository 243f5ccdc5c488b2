"""The offline registry of shipped weights, and the one door through which weights are loaded.

Only safetensors are read: a tensor file with JSON metadata cannot run code, a pickle can.
Nothing here touches the network unless a `hf://` address is asked for, and nothing happens on import.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalml.device import pick_device
from crystalml.errors import ArchitectureError, ChecksumError, CrystalMLError, WeightsError
from crystalml.replacing import replacing

if TYPE_CHECKING:
    import torch

    from crystalml.datasets.packed import PackedDataset
    from crystalml.models.model import CrystalModel

REGISTRY = Path(__file__).with_name("registry.json")
MAX_BYTES = 16 * 2**20  # a shipped file must stay small enough for a wheel and a git clone
HUB_FILE = "model.safetensors"
PROPERTY = "property"  # recipe of what PropertyPredictor fits and loads
DEFAULT_POTENTIAL = "dao-p"  # what energies, relaxations and hulls use unless told otherwise


@dataclass(frozen=True)
class ModelInfo:
    """What the registry knows about one set of weights (a model card in JSON).

    energy: {"units", "reference"} of the energy head, or None. figures: measured numbers by name.
    formula_units: most common Z in training, see `crystalml.sample.template.FormulaUnits`.
    """

    name: str
    file: str
    sha256: str
    bytes: int
    recipe: str = ""
    size: str = ""
    parameters: int = 0
    licence: str = ""
    description: str = ""
    training_data: str = ""
    elements: list[str] = field(default_factory=list)
    max_atoms: int | None = None
    energy: dict[str, str] | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    known_failures: list[str] = field(default_factory=list)
    formula_units: dict[str, Any] = field(default_factory=dict)


def list_models(registry: Path = REGISTRY) -> list[ModelInfo]:
    """Every model shipped with this installation, by name; reads one JSON file and nothing else."""
    return [_info(name, entry) for name, entry in sorted(_read(registry).items())]


def model_info(name: str, registry: Path = REGISTRY) -> ModelInfo:
    """The registry's entry of one name. Raises WeightsError with close matches if there is none."""
    models = _read(registry)
    if name not in models:
        close = difflib.get_close_matches(name, models, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "nothing comes close."
        known = ", ".join(sorted(models)) or "none yet"
        raise WeightsError(
            f"no model is called {name!r}: {hint} Shipped models: {known}. "
            "A file is given by its path, a Hugging Face repository as 'hf://owner/repo'."
        )
    return _info(name, models[name])


def load_model(
    model: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    *,
    registry: Path = REGISTRY,
) -> CrystalModel:
    """A trained model in evaluation mode: `load_model("dao-p" | path | "hf://owner/repo[/file][@revision]")`.

    A shipped name is checked against the registry's sha256. dtype None means float32. `model.card` holds the
    model card. Raises WeightsError (missing, unreadable, unknown, hub out of reach), ChecksumError
    (differs from the registry), ArchitectureError (made for another network) or UnsupportedError (no
    such device).
    """
    device = pick_device(device)
    if isinstance(model, str) and model.startswith("hf://"):
        return _load_file(download(model), device, dtype, {"source": model})
    if _is_path(model):
        return _load_file(Path(model).expanduser(), device, dtype, {"source": str(model)})
    info = model_info(str(model), registry)
    path = registry.parent / info.file
    verify(path, info)
    return _load_file(path, device, dtype, asdict(info))


def as_model(
    model: str | os.PathLike[str] | CrystalModel, device: str | torch.device, dtype: torch.dtype
) -> CrystalModel:
    """What a facade was given as a model in evaluation mode, on its device, in its precision.

    Names, paths and addresses go to `load_model`. A module is used as it is if it fits, else a copy of it:
    the caller's own never changes.
    """
    if isinstance(model, str | os.PathLike):
        return load_model(model, device, dtype)
    import torch

    weight, wanted = next(model.parameters()), torch.device(device)
    there = weight.device.type == wanted.type and wanted.index in (None, weight.device.index)
    if weight.dtype == dtype and there and not model.training:
        return model
    return copy.deepcopy(model).to(device=device, dtype=dtype).eval()


def verify(path: Path, info: ModelInfo) -> None:
    """Compare a shipped file with the registry. Raises WeightsError if absent, ChecksumError if different."""
    if not path.is_file():
        raise WeightsError(f"the weights of {info.name!r} are missing: {path}. Reinstall crystalml.")
    found = digest(path)
    if found != info.sha256:
        raise ChecksumError(
            f"the weights of {info.name!r} are corrupt or were tampered with: {path} has sha256 {found}, "
            f"the registry says {info.sha256}. Reinstall crystalml, or load your own file by its path."
        )


def digest(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(model: CrystalModel) -> str:
    """A digest of the network and its weights, wherever they came from."""
    found = hashlib.blake2b(repr(model.config).encode(), digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()


def download(address: str) -> Path:
    """Fetch `hf://owner/repo[/file][@revision]` into the Hugging Face cache, HF_HUB_OFFLINE permitting."""
    body, _, revision = address.removeprefix("hf://").partition("@")
    parts = body.strip("/").split("/")
    if len(parts) < 2 or not all(parts):
        raise WeightsError(f"{address!r} is not a hub address: write 'hf://owner/repo[/file][@revision]'.")
    repo, file = "/".join(parts[:2]), "/".join(parts[2:]) or HUB_FILE
    _require_safetensors(file)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, file, revision=revision or None))
    except LocalEntryNotFoundError as error:  # offline mode, or no connection, and nothing in the cache
        raise WeightsError(
            f"{address!r} is not in the local cache and the hub cannot be reached "
            "(no network, or HF_HUB_OFFLINE is set). Fetch it once on a machine with network, or pass a path."
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"cannot fetch {address!r}: {reason}. Check owner, repository, file {file!r} and revision."
        ) from error


def register(
    path: str | os.PathLike[str],
    name: str,
    card: Mapping[str, Any] | None = None,
    data: PackedDataset | None = None,
    *,
    registry: Path = REGISTRY,
) -> ModelInfo:
    """Ship a trained file under a name: copy it beside the registry, note its sha256, write its card.

    For maintainers. The entry is the file's own card, updated with the elements, largest cell and formula
    units of the training set `data`, updated with `card`; all use the field names of ModelInfo. The file
    must load as it is; a name in use is replaced.
    """
    source = Path(path)
    model = _load_file(source, "cpu", None, {})
    if (size := source.stat().st_size) > MAX_BYTES:
        raise WeightsError(f"{source} has {size} bytes, more than the {MAX_BYTES} that may be shipped.")
    seen = training_set(data) if data is not None else {}
    target = registry.parent / f"{name}.safetensors"
    known = {f.name for f in fields(ModelInfo)}
    entry = {key: value for key, value in {**model.card, **seen, **(card or {})}.items() if key in known}
    entry["parameters"] = sum(p.numel() for p in model.parameters())
    entry.update(name=name, file=target.name, sha256=digest(source), bytes=size)
    info = _info(name, entry)
    if source.resolve() != target.resolve():
        shutil.copyfile(source, target)
    models = _read(registry) if registry.exists() else {}
    models[name] = {key: value for key, value in asdict(info).items() if key != "name"}
    text = json.dumps({"version": 1, "models": dict(sorted(models.items()))}, indent=2) + "\n"
    for path, content in ((registry, text), (target.with_suffix(".md"), render_card(info))):
        with replacing(path) as file:
            file.write_text(content)
    return info


def training_set(data: PackedDataset) -> dict[str, Any]:
    """What a card says about the crystals a model was trained on."""
    from crystalml.elements import symbol
    from crystalml.sample.template import FormulaUnits

    return {
        "elements": [symbol(z) for z in data.numbers.unique().tolist()],
        "max_atoms": int(data.num_atoms.max()),
        "formula_units": FormulaUnits.count(data.numbers, data.num_atoms).to_dict(),
    }


def render_card(info: ModelInfo) -> str:
    """The model card as Markdown."""
    energy = f"{info.energy['units']}; {info.energy['reference']}" if info.energy else "none"
    rows = {
        "Recipe": f"`{info.recipe}` {info.size}".strip(),
        "Parameters": f"{info.parameters:,}",
        "File": f"`{info.file}`, {info.bytes:,} bytes",
        "sha256": f"`{info.sha256}`",
        "Licence": info.licence,
        "Energy": energy,
        "Training data": info.training_data,
        "Largest cell in training": f"{info.max_atoms} atoms" if info.max_atoms else "",
        "Elements": f"{len(info.elements)}: {' '.join(info.elements)}" if info.elements else "",
    }
    lines = [f"# {info.name}", "", info.description, "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in rows.items() if value]
    if info.figures:
        lines += ["", "## Measured", "", "| figure | value |", "|---|---|"]
        lines += [f"| {key} | {value} |" for key, value in info.figures.items()]
    if info.known_failures:
        lines += ["", "## Known failures", "", *(f"- {failure}" for failure in info.known_failures)]
    if info.recipe == PROPERTY:
        use = ["from crystalml import PropertyPredictor", "", f'PropertyPredictor.load("{info.name}")']
    else:
        use = ["from crystalml import load_model", "", f'load_model("{info.name}")']
    lines += ["", "```python", *use, "```"]
    return "\n".join(lines) + "\n"


def _is_path(model: str | os.PathLike[str]) -> bool:
    if not isinstance(model, str):
        return True
    return "/" in model or os.sep in model or Path(model).suffix != "" or Path(model).is_file()


def _require_safetensors(file: str) -> None:
    if not file.endswith(".safetensors"):
        raise WeightsError(
            f"{file!r} is not a .safetensors file. Other formats (.pt, .ckpt, .pkl) can run code when opened "
            "and are never read; convert with crystalml.training.checkpoint.save_model."
        )


def _load_file(
    path: Path, device: str | torch.device, dtype: torch.dtype | str | None, card: Mapping[str, Any]
) -> CrystalModel:
    if not path.is_file():
        raise WeightsError(f"no weights at {path}: the file does not exist. `crystalml models` lists names.")
    _require_safetensors(path.name)
    import torch

    from crystalml.training.checkpoint import load_model_file

    try:
        model = load_model_file(path, device)
    except CrystalMLError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # a configuration no network accepts
        raise ArchitectureError(f"{path} describes a network that cannot be built: {error}") from error
    if dtype is not None:
        model = model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    model.card = {**getattr(model, "card", {}), **card}
    return model.eval()


def _read(registry: Path) -> dict[str, dict[str, Any]]:
    try:
        return dict(json.loads(registry.read_text())["models"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{registry} is unreadable ({error}). Reinstall crystalml.") from error


def _info(name: str, entry: Mapping[str, Any]) -> ModelInfo:
    known = {f.name for f in fields(ModelInfo)}
    return ModelInfo(**{**{key: value for key, value in entry.items() if key in known}, "name": name})
