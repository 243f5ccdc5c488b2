"""The suite passes sound calculators and, for each broken one, fails exactly the law that it breaks."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.calculators.calculator import BaseCalculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from crystalml.conformance import CHECKS, Report, check_calculator
from crystalml.errors import InputError

spec = importlib.util.spec_from_file_location("conformance_toys", Path(__file__).with_name("toys.py"))
assert spec and spec.loader
toys = importlib.util.module_from_spec(spec)
sys.modules["conformance_toys"] = toys  # pickles look their class up here
spec.loader.exec_module(toys)


def check(calculator: object, **options: object) -> Report:
    return check_calculator(calculator, pairs=[("Na", "Cl"), ("O", "O")], **options)  # type: ignore[arg-type]


# --- sound calculators --------------------------------------------------------------------------------------
def test_a_sound_calculator_keeps_all_laws():
    report = check(toys.Sound)
    assert report.ok, report
    assert report.counts == {"pass": len(report.results)}
    assert report.info["precision"] == "float64" and report.info["elements"] == "Na-Cl"
    assert len(report.results) == len({result.name for result in report.results}) > 40


def test_an_instance_is_as_good_as_a_factory():
    assert check(toys.Sound()).ok
    assert check(lambda: toys.Sound()).ok


def test_lennard_jones_with_a_smooth_cutoff_is_sound():
    """But periodic atoms without a cell give NaN."""
    report = check(lambda: LennardJones(sigma=1.9, epsilon=0.1, rc=6.0, ro=4.0, smooth=True))
    assert report.failed == ("errors/no-cell",), report


def test_lennard_jones_with_a_sharp_cutoff_has_a_kink():
    report = check(lambda: LennardJones(sigma=1.9, epsilon=0.1, rc=4.1), only=["smooth"])
    assert report.failed == ("smooth/dimer", "smooth/bulk")
    assert "force jumps near 4.100" in report["smooth/dimer"].message


def test_emt_is_sound_but_cannot_be_pickled_after_a_call():
    """Nor does it refuse periodic atoms without a cell."""
    report = check_calculator(EMT)
    assert report.failed == ("copy/pickle", "errors/no-cell"), report
    assert report["copy/pickle"].message.startswith("after a call")
    assert report.info["elements"] == "Cu-Au"
    assert "No EMT-potential for Og" in report["errors/element"].message


# --- broken calculators -------------------------------------------------------------------------------------
BROKEN = {
    "GigaPascal": ["stress/units"],
    "Pressure": ["stress/sign"],
    "OtherOrder": ["stress/order"],
    "Matrix": ["types/stress"],
    "DiluteStress": ["stress/slab"],
    "WrongForces": ["forces/bulk", "forces/slab", "forces/molecule"],
    "NoPartialPeriodicity": ["pbc/slab", "pbc/wire"],
    "AlwaysPeriodic": ["pbc/tight"],
    "WeakNoPartialPeriodicity": ["pbc/slab", "pbc/wire"],
    "VirialForSlabs": ["stress/slab", "stress/molecule"],
    "AbruptCutoff": ["smooth/dimer", "smooth/bulk"],
    "KinkedCutoff": ["smooth/dimer", "smooth/bulk"],
    "Hole": ["dimer/holes"],
    "SinglePrecisionArrays": ["types/forces"],
    "ArrayEnergy": ["types/energy"],
    "NotExtensive": ["invariance/supercell"],
    "NoFreeEnergy": ["contract/free-energy"],
    "Forgetful": ["cache/reuse"],
    "Stale": ["cache/changes"],
    "Meddler": ["contract/input"],
    "NoPickle": ["copy/pickle"],
    "NoCopyAfterUse": ["copy/deepcopy"],
    "ModelInParameters": ["contract/trajectory"],
    "KeyErrorForElements": ["errors/element"],
    "CrashOnEmpty": ["errors/empty"],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_law_is_caught_and_no_other(name):
    report = check(getattr(toys, name))
    assert list(report.failed) == BROKEN[name], report


def test_missing_images_are_caught():
    report = check(toys.OnlyNearestImages, only=["invariance"])
    assert "invariance/supercell" in report.failed


def test_an_answer_that_wanders_is_caught():
    result = check(toys.Wandering, only=["contract"])["repeat/same"]
    assert result.status == "fail" and result.unit == "eV/A"


def test_a_list_shared_with_all_of_ase_is_caught():
    class Leaky(toys.Sound):
        implemented_properties = BaseCalculator.implemented_properties

        def __init__(self) -> None:
            super().__init__()
            self.implemented_properties.extend(["energy", "free_energy", "forces", "stress"])

    before = list(BaseCalculator.implemented_properties)
    try:
        report = check(Leaky, only=["contract"])
    finally:
        BaseCalculator.implemented_properties[:] = before
    assert report["contract/properties"].status == "fail"


def test_diagnoses_are_named():
    assert "GPa" in check(toys.GigaPascal, only=["stress"])["stress/units"].message
    assert "0.0556" in check(toys.DiluteStress, only=["stress"])["stress/slab"].message
    assert "not divided" in check(toys.VirialForSlabs, only=["stress"])["stress/slab"].message
    assert "1.05 times" in check(toys.WrongForces, only=["forces"])["forces/bulk"].message
    assert "molecule" in check(toys.NoPartialPeriodicity, only=["cells"])["pbc/slab"].message
    assert "4.370" in check(toys.AbruptCutoff, only=["smooth"])["smooth/dimer"].message
    assert "info" in check(toys.Stale, only=["contract"])["cache/changes"].message


# --- refusals -----------------------------------------------------------------------------------------------
def test_clear_refusals_are_no_failures():
    report = check(toys.BulkOnly)
    assert report.ok, report
    refused = {result.name for result in report.results if result.status == "refused"}
    assert {"forces/slab", "forces/molecule", "pbc/slab", "isolated/free"} <= refused
    assert report["dimer/holes"].status == report["smooth/dimer"].status == "pass"  # in a periodic box


def test_a_calculator_without_stress_is_no_failure():
    report = check(toys.NoStress)
    assert report.ok, report
    assert report["stress/units"].status == report["types/stress"].status == "refused"


def test_an_unknown_element_may_be_refused_by_any_clear_error():
    assert check(toys.ValueErrorForElements).ok


def test_crashes_are_errors_and_the_suite_goes_on():
    class Crash(toys.Sound):
        def compute(self, atoms):
            if not atoms.pbc.any():
                raise np.linalg.LinAlgError("Singular matrix")
            return super().compute(atoms)

    report = check(Crash, only=["forces", "dimer"])
    assert report.failed == ("forces/molecule",)
    assert report["forces/molecule"].status == "error"
    assert "LinAlgError" in report["forces/molecule"].message and report["dimer/holes"].status == "pass"


def test_no_bulk_no_examination():
    with pytest.raises(InputError, match="name two elements"):
        check(EMT, elements=("Fe", "O"))
    with pytest.raises(InputError, match="choose among forces"):
        check(EMT, only=["force"])


# --- precision ----------------------------------------------------------------------------------------------
class SinglePrecision(toys.Scaled):
    """As a network in float32."""

    def change(self, results, atoms):
        results["energy"] = float(np.float32(results["energy"] - 3.0 * len(atoms)))
        results["free_energy"] = results["energy"]
        results["forces"] = results["forces"].astype(np.float32).astype(float)


def test_single_precision_is_told_from_the_noise():
    report = check(SinglePrecision, only=["forces", "stress", "invariance", "smooth"])
    assert report.info["precision"] == "float32"
    assert report.ok, report
    strict = check(SinglePrecision, only=["invariance"], dtype="float64")
    assert strict.info["precision"] == "float64"


def test_single_precision_hides_no_wrong_force():
    class Wrong(SinglePrecision):
        def change(self, results, atoms):
            super().change(results, atoms)
            results["forces"] = 1.05 * results["forces"]

    assert check(Wrong, only=["forces"]).failed == ("forces/bulk", "forces/slab", "forces/molecule")


# --- our own ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dao_calculator_keeps_the_contract(tiny_model, dtype):
    from crystalml.calculators.ase import DaoCalculator

    def make() -> DaoCalculator:
        return DaoCalculator(tiny_model(), device="cpu", dtype=dtype)

    report = check(make, only=["forces", "stress", "cells", "contract"])
    assert report.info["precision"] == dtype
    assert report.ok, report
    assert report["forces/slab"].status == report["pbc/slab"].status == "refused"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_potential_keeps_all_laws(dtype):
    from crystalml.calculators.ase import DaoCalculator
    from crystalml.models.model import CrystalModel
    from crystalml.recipes import dao_p

    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CrystalModel(dao_p("tiny").model)
    with torch.no_grad():  # heads that start at zero would keep many laws for free
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    report = check(DaoCalculator(model, device="cpu", dtype=dtype))
    assert report.ok, report
    assert report.counts == {"pass": len(report.results)}
    assert abs(float(report["cells/one-atom"].message.split()[0])) > 1e-3


CELL_DEPENDENT = {
    f"invariance/{law}" for law in ("cell-choice", "supercell", "left-handed", "reflection")
}  # a reflected cell is left-handed, and turned around before the network sees it


def test_dao_p_for_diffusion_sees_the_cell_as_given(tiny_model):
    """The published network: its energy knows the choice of cell. That is why cells are reduced first."""
    from crystalml.calculators.ase import DaoCalculator

    calc = DaoCalculator(tiny_model(), device="cpu", dtype="float64")
    report = check(calc, only=["invariance"])
    assert set(report.failed) == CELL_DEPENDENT, report


# --- reports ------------------------------------------------------------------------------------------------
def test_reports_are_json_markdown_and_text(tmp_path):
    seen = []
    report = check(toys.Hole, only=["dimer", "cells"], on_result=seen.append)
    assert tuple(seen) == report.results
    report.save(tmp_path / "new" / "report.json")
    data = json.loads((tmp_path / "new" / "report.json").read_text())
    assert data["calculator"] == "conformance_toys.Hole" and data["counts"]["fail"] == 1
    assert {"ase", "numpy"} <= set(data["versions"])
    holes = next(result for result in data["results"] if result["name"] == "dimer/holes")
    assert holes["details"]["pairs"]["O-O"]["hole"] > 1
    report.save(tmp_path / "report.md")
    assert "| dimer/holes | **fail** |" in (tmp_path / "report.md").read_text()
    assert "dimer/holes: fail" in str(report)
    assert report.table().row_count == len(report.results)
    with pytest.raises(InputError, match="json"):
        report.save(tmp_path / "report.txt")


def test_every_group_has_results():
    for name in CHECKS:
        assert check(toys.Sound, only=[name]).results


def test_testing_offers_it_too():
    from crystalml import testing

    assert testing.check_calculator is check_calculator


def test_the_suite_runs_in_anybodys_environment():
    """It loads ASE and NumPy, and of ours only the errors."""
    code = (
        "import sys, crystalml.conformance; print({'torch', 'pymatgen', 'vesin', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
