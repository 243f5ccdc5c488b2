"""Every example runs as it stands; those that need shipped weights get untrained ones until there are any."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crystalml.training.checkpoint import save_model
from crystalml.weights import list_models

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
EXTRAS = ("matcalc", "torch_dftd")
SHIPPED = {"dao-g", "dao-p-diffusion", "dao-p"} <= {info.name for info in list_models()}


def test_examples_are_short():
    assert len(EXAMPLES) >= 3
    assert [path.name for path in EXAMPLES if len(path.read_text().splitlines()) > 80] == []


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example, tmp_path, tiny_model):
    for module in EXTRAS:
        if f"\nfrom {module}" in example.read_text():
            pytest.importorskip(module, reason="needs pip install 'crystalml-dao[properties]'")
    weights = tmp_path / "tiny.safetensors"
    save_model(tiny_model(), weights, {"name": "tiny"})
    arguments = [] if SHIPPED else [str(weights)] * (2 if "energy model" in example.read_text() else 1)
    folder = tmp_path / "empty"
    folder.mkdir()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(example), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=env, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert list(folder.iterdir()) == [], "examples leave nothing behind"
