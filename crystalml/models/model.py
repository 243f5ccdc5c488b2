"""CrystalModel: an encoder with its heads, and the plain-data description that rebuilds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

from torch import Tensor, nn

from crystalml.crystal import CrystalBatch, Tangent
from crystalml.errors import ArchitectureError, UnsupportedError
from crystalml.geometry.neighbors import Neighbors, Topology
from crystalml.models.averaged import Averaged, AveragedConfig
from crystalml.models.crysformer import CrysformerConfig
from crystalml.models.cspnet import CSPNetConfig
from crystalml.models.encoder import Features
from crystalml.models.error_bar import ErrorBar
from crystalml.models.fourierframenet import FourierFrameNetConfig
from crystalml.models.gemsnet import GemsNetConfig
from crystalml.models.heads import AtomicEnergyHead, EnergyHead, EnergyScale
from crystalml.models.pairs import Pairs
from crystalml.models.periodic import PeriodicConfig, PeriodicCrysformer
from crystalml.models.pretext import Pretext, pretext_head
from crystalml.models.property_head import PropertyConfig

EncoderConfig = (
    AveragedConfig | CrysformerConfig | CSPNetConfig | FourierFrameNetConfig | GemsNetConfig | PeriodicConfig
)
_ENCODERS: dict[str, type[EncoderConfig]] = {
    "averaged": AveragedConfig,
    "crysformer": CrysformerConfig,
    "cspnet": CSPNetConfig,
    "fourierframenet": FourierFrameNetConfig,
    "gemsnet": GemsNetConfig,
    "periodic": PeriodicConfig,
}


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to rebuild a model before its weights are read.

    energy: scale of the energy head, None for no such head. centered: the noise head's per-crystal mean
    is removed. A periodic encoder carries a potential: an energy of every atom and no noise heads.
    error_bar: the potential was calibrated, see `crystalml.calibrate`. process: the name of the noise that
    the model was trained with, see `recipes.noise_for`. pretext: the head of a pretraining task.
    target: the property that a property head reads.
    """

    encoder: EncoderConfig
    noise: bool = True
    centered: bool = False
    energy: EnergyScale | None = None
    error_bar: bool = False
    process: str = "diffcsp"
    pretext: Pretext | None = None
    target: PropertyConfig | None = None

    def __post_init__(self) -> None:
        periodic = isinstance(self.encoder, PeriodicConfig)
        if periodic and self.noise:
            raise ValueError("the periodic encoder knows no time: it takes no noise heads, noise=False")
        if self.error_bar and not (periodic and self.energy):
            raise ValueError("only a potential carries an error bar: error_bar=False")
        if isinstance(self.encoder, FourierFrameNetConfig | AveragedConfig) and self.noise:
            name = type(self.encoder).__name__.removesuffix("Config")
            raise ValueError(f"{name} generates nothing: it takes no noise heads, noise=False")

    def build(self) -> CrystalModel:
        return CrystalModel(self)

    def to_dict(self) -> dict[str, Any]:
        return {
            "encoder": _described(self.encoder),
            "noise": self.noise,
            "centered": self.centered,
            "energy": self.energy and self.energy.to_dict(),
            "error_bar": self.error_bar,
            "process": self.process,
            "pretext": self.pretext,
            "target": self.target and self.target.to_dict(),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ModelConfig:
        try:
            energy = data["energy"]
            return ModelConfig(
                _rebuilt(data["encoder"]),
                bool(data["noise"]),
                bool(data["centered"]),
                EnergyScale(**energy) if energy else None,
                bool(data.get("error_bar", False)),
                str(data.get("process", "diffcsp")),
                data.get("pretext"),
                PropertyConfig.from_dict(data["target"]) if data.get("target") else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArchitectureError(
                f"the checkpoint describes no architecture this version can build ({error!r}); "
                f"known encoders: {sorted(_ENCODERS)}"
            ) from error


def _described(encoder: EncoderConfig) -> dict[str, Any]:
    name = next(key for key, kind in _ENCODERS.items() if isinstance(encoder, kind))
    parts = {"member": _described(encoder.member)} if isinstance(encoder, AveragedConfig) else {}
    return {"name": name, **asdict(encoder), **parts}


def _rebuilt(data: Mapping[str, Any]) -> EncoderConfig:
    fields = dict(data)
    kind = _ENCODERS[fields.pop("name")]
    if kind is AveragedConfig:
        fields["member"] = _rebuilt(fields["member"])
    return kind(**fields)


@dataclass(frozen=True)
class Outputs:
    """noise: Tangent or None. energy: (b,) in network units or None. features: the encoder's.

    energies: (n,) the atoms' parts, in network units, whose mean over a crystal is its energy; None where
    the energy is no such sum.
    """

    features: Features
    noise: Tangent | None
    energy: Tensor | None
    energies: Tensor | None = None


class Slopes(Protocol):
    """What stands in for `pair_slopes` where it takes the table of neighbours (`crystalml.compiled`)."""

    def takes(self, vector: Tensor) -> bool: ...

    def __call__(self, numbers: Tensor, j: Tensor, vector: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...


class CrystalModel(nn.Module):
    """Encoder, noise head, energy head; the last two optional. `card` is set by the weight loader.

    compiled: a potential's derivatives as compiled code, set by `compile_potential`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compiled: Slopes | None = None
        self.card: dict[str, Any] = {}
        self.encoder = config.encoder.build()
        dim = self.encoder.dim
        self.noise_head: nn.Module | None = None
        if config.noise:
            # ModelConfig has refused these
            assert not isinstance(config.encoder, PeriodicConfig | FourierFrameNetConfig | AveragedConfig)
            self.noise_head = config.encoder.noise_head(config.centered)
        head = AtomicEnergyHead if isinstance(config.encoder, PeriodicConfig) else EnergyHead
        self.energy_head = head(dim, config.energy) if config.energy else None
        self.error_bar = ErrorBar(dim) if config.error_bar else None
        vectors = getattr(config.encoder, "vectors", None)
        self.pretext_head = pretext_head(config.pretext, dim, vectors) if config.pretext else None
        self.property_head = config.target.build(dim) if config.target else None

    @property
    def has_noise(self) -> bool:
        return self.noise_head is not None

    def train(self, mode: bool = True) -> Self:
        """As torch has it. Weights about to change are no longer those that were compiled."""
        if mode:
            self.compiled = None
        return super().train(mode)

    @property
    def has_energy(self) -> bool:
        return self.energy_head is not None

    @property
    def is_potential(self) -> bool:
        """Whether the energy is a sum over atoms with a finite view: any size, any cell, slabs, molecules."""
        return self.has_energy and isinstance(self.config.encoder, PeriodicConfig)

    def forward(
        self, x: CrystalBatch, t: Tensor | None = None, edges: Neighbors | Topology | None = None
    ) -> Outputs:
        """t: (b,) integer noise levels, 0 = clean (the default). edges: neighbours, if known."""
        time = x.num_atoms.new_zeros(len(x)) if t is None else t
        features = self.encoder(x, time) if edges is None else self.encoder(x, time, edges)
        noise = self.noise_head(features, x) if self.noise_head is not None else None
        if self.energy_head is None:
            return Outputs(features, noise, None)
        return Outputs(features, noise, *self.energy_head(features, x))

    def denoise(self, x: CrystalBatch, t: Tensor) -> Tangent:
        """What the noise that the model was trained with asks of it at levels t (b,), see `crystalml.noise`.

        lattice (b, 3, 3), frac (n, 3): DiffCSP's lattice noise and normalised score, GemsDiff's log P_0 and
        way back to the clean crystal.
        """
        noise = self(x, t).noise
        if noise is None:
            raise UnsupportedError("this model has no noise head; load one trained to generate (dao-g)")
        return noise

    def free_energy(self, x: CrystalBatch, t: Tensor | None = None, edges: Neighbors | None = None) -> Tensor:
        """(b,) f(M_t, t) = -log E[exp(-beta y_0) | M_t] in network units (DAO, Eq. 10)."""
        energy = self(x, t, edges).energy
        if energy is None:
            raise UnsupportedError("this model has no energy head; load one trained on energies (dao-p)")
        return energy

    def atomic_energies(self, numbers: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """(n,) a potential's energies of atoms with these neighbours, in network units.

        Also (n, d), the features that the last linear layer reads.
        """
        assert isinstance(self.encoder, PeriodicCrysformer) and isinstance(self.energy_head, AtomicEnergyHead)
        node = self.encoder.attend(numbers, pairs)
        return self.energy_head.atomic(node, numbers, self.encoder.short_range(numbers, pairs))

    def energy(self, x: CrystalBatch, t: Tensor | None = None, edges: Neighbors | None = None) -> Tensor:
        """(b,) formation energy in eV/atom; t = None reads x as a clean crystal. edges: see `forward`."""
        y = self.free_energy(x, t, edges)
        assert self.config.energy is not None  # free_energy has refused otherwise
        return self.config.energy.to_physical(y)


def averaged(models: Sequence[CrystalModel]) -> CrystalModel:
    """One model without heads whose encoder averages theirs. Raises ValueError for unlike encoders."""
    config = models[0].config.encoder
    if not isinstance(config, CSPNetConfig | CrysformerConfig):
        raise ValueError(f"only dense encoders are averaged, not {type(config).__name__}")
    if any(model.config.encoder != config for model in models):
        raise ValueError("encoders to average must be of one architecture")
    out = ModelConfig(AveragedConfig(config, len(models)), noise=False).build()
    out.to(next(models[0].parameters()).dtype)
    assert isinstance(out.encoder, Averaged)
    for member, model in zip(out.encoder.members, models, strict=True):
        member.load_state_dict(model.encoder.state_dict())
    out.card = dict(models[0].card)
    return out
