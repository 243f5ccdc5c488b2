"""Typed errors: each names the offending value and the way out."""


class CrystalMLError(Exception):
    """Base class of every error raised on purpose by crystalml."""


class InputError(CrystalMLError, ValueError):
    """Something handed in by the user cannot be used as it is."""


class UnknownElementError(InputError):
    """A species that is not a plain element the model knows (dummy, isotope mix, Z out of range)."""


class DisorderedStructureError(InputError):
    """A site holds several species or a partial occupancy."""


class NonFiniteError(InputError):
    """NaN or infinity in coordinates or cell."""


class CellError(InputError):
    """A missing, singular or otherwise unusable cell."""


class EmptyStructureError(InputError):
    """A structure without atoms."""


class OverlappingAtomsError(InputError):
    """Two atoms (or an atom and its image) closer than the allowed distance."""


class TooManyAtomsError(InputError):
    """More atoms than the model or the caller's limit allows."""


class CompositionError(InputError):
    """A composition that cannot be turned into whole atoms in a cell."""


class FileReadError(InputError):
    """A file that cannot be read as crystals."""


class UnsupportedError(CrystalMLError, NotImplementedError):
    """A request that the chosen model cannot serve, such as a slab for a bulk-only model."""


class WeightsError(CrystalMLError):
    """Weights that are missing, unreadable or do not fit."""


class ChecksumError(WeightsError):
    """Weights whose sha256 differs from the registry's: corrupt or tampered with."""


class ArchitectureError(WeightsError):
    """A checkpoint made for another architecture."""


class TrainingError(CrystalMLError):
    """Training that cannot start, go on or resume."""
