"""What matminer asks of a featurizer and what scikit-learn asks of a transformer, on batches of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin

from crystalml.errors import CrystalMLError, InputError

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]


class BatchFeaturizer(TransformerMixin, BaseEstimator, ABC):
    """The contract of matminer's BaseFeaturizer, by duck typing: nothing of matminer is imported.

    An entry is what `featurize` takes: one object, or the tuple of its arguments. Entries are computed in
    batches in this process, on the device of the network: forked workers would each load it again, and break
    CUDA. Hence n_jobs is 1 whatever is asked.
    """

    progress: bool

    # --- to be written by a featurizer --------------------------------------------------------------------
    @abstractmethod
    def _check(self, entry: Any) -> Any:
        """The entry as `_compute` wants it; a CrystalMLError says what is wrong with it."""

    def _check_all(self, entries: Sequence[Any]) -> list[Any]:
        """All entries as `_compute` wants them, or a CrystalMLError if any is wrong."""
        return [self._check(entry) for entry in entries]

    @abstractmethod
    def _compute(self, checked: list[Any], report: Callable[[int], None]) -> Array:
        """(m, d) features; report(k) after every k entries."""

    @abstractmethod
    def feature_labels(self) -> list[str]:
        """One name a feature."""

    @abstractmethod
    def citations(self) -> list[str]:
        """BibTeX entries of what is behind the features."""

    # --- matminer -----------------------------------------------------------------------------------------
    def implementors(self) -> list[str]:
        return ["crystalml developers"]

    def featurize(self, *x: Any) -> list[float]:
        """The features of one entry."""
        row: list[float] = self.featurize_many([x if len(x) > 1 else x[0]], pbar=False)[0].tolist()
        return row

    def featurize_many(
        self,
        entries: Sequence[Any],
        ignore_errors: bool = False,
        return_errors: bool = False,
        pbar: bool | None = None,
    ) -> Any:
        """(m, d) array of float64, one row an entry.

        ignore_errors: an entry that cannot be featurized gives NaN instead of an exception; with
        return_errors a list of rows is returned, each with the error's text (NaN for none) appended, as in
        matminer. pbar None: as the featurizer was made.
        """
        from crystalml.progress import ProgressBar

        if return_errors and not ignore_errors:
            raise InputError("return_errors needs ignore_errors=True")
        errors: dict[int, str] = {}
        entries = [_alone(entry) for entry in entries]
        try:
            checked = list(enumerate(self._check_all(entries)))
        except CrystalMLError:  # which one, and what of the others?
            checked, errors = self._check_each(entries, ignore_errors)
        rows = np.full((len(entries), len(self.feature_labels())), np.nan)
        if checked:
            with ProgressBar(self.progress if pbar is None else pbar, type(self).__name__) as bar:
                bar.add(len(checked))
                found = self._compute([item for _, item in checked], bar.advance)
            rows[[k for k, _ in checked]] = found
        if return_errors:
            return [[*row.tolist(), errors.get(k, np.nan)] for k, row in enumerate(rows)]
        return rows

    def _check_each(
        self, entries: Sequence[Any], ignore_errors: bool
    ) -> tuple[list[tuple[int, Any]], dict[int, str]]:
        """(place, entry) of the good ones, and by place what is wrong with the others."""
        checked: list[tuple[int, Any]] = []
        errors: dict[int, str] = {}
        for k, entry in enumerate(entries):
            try:
                checked.append((k, self._check(entry)))
            except CrystalMLError as error:
                if not ignore_errors:
                    raise type(error)(f"entry {k}: {error}") from error
                errors[k] = str(error)
        return checked, errors

    def featurize_dataframe(
        self,
        df: pd.DataFrame,
        col_id: str | Sequence[str],
        ignore_errors: bool = False,
        return_errors: bool = False,
        inplace: bool = False,
        multiindex: bool = False,
        pbar: bool | None = None,
    ) -> pd.DataFrame:
        """The table with one column a feature added; with return_errors also "<class> Exceptions".

        Raises InputError for columns that are missing, or there already, and for multiindex=True, which
        matminer has and this has not.
        """
        import pandas as pd

        if multiindex:
            raise InputError("multiindex=True is not supported; columns have their features' names")
        columns = [col_id] if isinstance(col_id, str) else list(col_id)
        if missing := [name for name in columns if name not in df.columns]:
            raise InputError(
                f"no column {', '.join(map(repr, missing))}; there are {', '.join(map(str, df))}"
            )
        labels = self.feature_labels()
        if clash := [name for name in labels if name in df.columns]:
            raise InputError(f"the table has the column {clash[0]!r} already; drop or rename it")
        entries = (
            df[columns[0]].tolist()
            if len(columns) == 1
            else list(zip(*(df[c] for c in columns), strict=True))
        )
        found = self.featurize_many(entries, ignore_errors, return_errors, pbar)
        names = [*labels, f"{type(self).__name__} Exceptions"] if return_errors else labels
        new = pd.DataFrame(found, columns=names, index=df.index)
        if not inplace:
            return pd.concat([df, new], axis=1)
        for name in names:
            df[name] = new[name]
        return df

    def fit_featurize_dataframe(
        self, df: pd.DataFrame, col_id: str | Sequence[str], fit_args: Any = None, **settings: Any
    ) -> pd.DataFrame:
        """`featurize_dataframe`: there is nothing to fit."""
        return self.featurize_dataframe(df, col_id, **settings)

    def precheck(self, *x: Any) -> bool:
        """Whether the entry can be featurized."""
        try:
            self._check(x if len(x) > 1 else x[0])
        except CrystalMLError:
            return False
        return True

    @property
    def n_jobs(self) -> int:
        return 1

    def set_n_jobs(self, n_jobs: int) -> None:
        """Accepted for matminer's sake and not followed."""

    @property
    def chunksize(self) -> int:
        return 1

    def set_chunksize(self, chunksize: int) -> None:
        """Accepted for matminer's sake and not followed: batches are cut by the number of atoms."""

    # --- scikit-learn -------------------------------------------------------------------------------------
    def fit(self, X: Any = None, y: Any = None, **_: Any) -> BatchFeaturizer:
        """Nothing to learn."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def transform(self, X: Sequence[Any]) -> Array:
        """(m, d) features of the entries."""
        rows: Array = self.featurize_many(list(X))
        return rows

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.str_]:
        return np.asarray(self.feature_labels(), dtype=object)


def _alone(entry: Any) -> Any:
    """The one object of a row such as (structure,), which matminer's compound featurizers pass."""
    return entry[0] if isinstance(entry, tuple | list | np.ndarray) and len(entry) == 1 else entry
