"""Learned features in scikit-learn, and a property from twenty labels.

python examples/12_features.py [model]

model: default "fourierframenet-pfm". The data are lattice constants (Angstrom) and bulk moduli (GPa) of rock
salts: halides from C. Kittel, Introduction to Solid State Physics, chapter 3, table 7, oxides rounded from
handbooks. Prints leave-one-out errors; seconds on a CPU; writes nothing.
"""

import sys

import numpy as np
from pymatgen.core import Composition, Lattice, Structure
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from crystalml import FourierFrameNetFeaturizer, PropertyPredictor

DATA = """
LiF 4.02 67.1   LiCl 5.13 29.8  LiBr 5.50 23.8  NaF 4.62 46.5   NaCl 5.64 24.0  NaBr 5.97 19.9
NaI 6.47 15.1   KF 5.35 30.5    KCl 6.29 17.4   KBr 6.60 14.8   KI 7.07 11.7    RbF 5.64 26.2
RbCl 6.58 15.6  RbBr 6.85 13.0  RbI 7.34 10.6   MgO 4.21 155    CaO 4.81 112    SrO 5.16 88
BaO 5.54 61     LiI 6.00 17.1
"""


def rock_salt(formula: str, a: float) -> Structure:
    cation, anion = sorted(Composition(formula))  # by electronegativity
    return Structure.from_spacegroup(225, Lattice.cubic(a), [cation, anion], [[0, 0, 0], [0.5] * 3])


def main(model: str = "fourierframenet-pfm") -> None:
    words = DATA.split()
    formulas, a, modulus = words[::3], np.array(words[1::3], float), np.array(words[2::3], float)
    structures = [rock_salt(formula, size) for formula, size in zip(formulas, a, strict=True)]
    log_modulus = np.log10(modulus)

    features = FourierFrameNetFeaturizer(model)
    chain = make_pipeline(features, StandardScaler(), RidgeCV(np.logspace(-1, 4, 20)))
    found = cross_val_predict(chain, structures, log_modulus, cv=LeaveOneOut())
    print(f"{len(formulas)} rock salts, {len(features.feature_labels())} features")
    print(f"log10 K, mean absolute error of the mean:  {np.abs(log_modulus - log_modulus.mean()).mean():.3f}")
    print(f"ridge on the features, leaving one out:    {np.abs(found - log_modulus).mean():.3f}")

    known = [k for k, formula in enumerate(formulas) if formula not in ("NaCl", "MgO", "KBr")]
    predictor = PropertyPredictor(model, "gp", name="log10 K", unit="log10 GPa")
    predictor.fit([structures[k] for k in known], log_modulus[known])
    left = [k for k in range(len(formulas)) if k not in known]
    value, std = predictor.predict([structures[k] for k in left], return_std=True)
    for k, v, s in zip(left, value, std, strict=True):
        low, high = 10 ** (v - s), 10 ** (v + s)
        print(f"{formulas[k]:5s} K = {10**v:5.1f} GPa ({low:.1f} to {high:.1f}), measured {modulus[k]:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
