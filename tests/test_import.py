"""Laws of `import crystalml`: quick, lazy, silent, and the same whatever was imported before."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import crystalml

HEAVY = ("torch", "numpy", "pymatgen", "ase", "matgl", "scipy", "pandas", "matplotlib", "huggingface_hub")

# Every file opened to write, folder made and socket used while the package is imported.
WATCH = """
import json, sys, time
seen = []
def hook(event, args):
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        seen.append([event, str(args[0])])
    elif event in {"os.mkdir", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"}:
        seen.append([event, str(args)])
sys.addaudithook(hook)
start = time.perf_counter()
import crystalml, crystalml.calculators
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules), "seen": seen}))
"""


def run_python(code: str, folder: Path) -> str:
    command = [sys.executable, "-B", "-c", code]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("import")
    return [json.loads(run_python(WATCH, folder)) for _ in range(3)]


@pytest.mark.parametrize("name", HEAVY)
def test_import_loads_nothing_heavy(reports: list[dict], name: str) -> None:
    assert name not in reports[0]["modules"]


def test_import_touches_neither_disk_nor_network(reports: list[dict]) -> None:
    assert [report["seen"] for report in reports] == [[], [], []]


def test_import_is_quick(reports: list[dict]) -> None:
    assert min(report["seconds"] for report in reports) < 0.3  # a few milliseconds on an idle machine


@pytest.mark.parametrize("name", crystalml.__all__)
def test_every_public_name_is_found(name: str) -> None:
    assert getattr(crystalml, name) is not None
    assert name in dir(crystalml)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        crystalml.no_such_name  # noqa: B018


@pytest.mark.parametrize("first", ["import crystalml.relax", "from crystalml.relax import relax", "pass"])
def test_relax_is_the_function_whatever_came_first(first: str, tmp_path: Path) -> None:
    check = "import crystalml; from crystalml import relax; print(callable(relax), relax is crystalml.relax)"
    assert run_python(f"{first}\n{check}", tmp_path).split() == ["True", "True"]


def test_importing_the_command_line_leaves_torch_alone(tmp_path: Path) -> None:
    code = "import sys, crystalml.cli; print('torch' in sys.modules)"
    assert run_python(code, tmp_path).strip() == "False"
