"""The house keeps its shape: packages, sizes, the link, and documents whose links resolve."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import crystalml

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60
TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [
    path
    for folder in ("crystalml", "calculators", "examples", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if ROOT / "crystalml" / "calculators" not in path.parents  # reached as calculators/
]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_packages_are_the_folders() -> None:
    listed = TOOLS["setuptools"]["packages"]
    folders = {path.parent for path in (ROOT / "crystalml").rglob("*.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {"crystalml.calculators"}
    assert sorted(listed) == sorted(found)


def test_packages_have_an_init() -> None:
    folders = {
        path.parent for path in SOURCES if path.relative_to(ROOT).parts[0] in {"crystalml", "calculators"}
    }
    assert [name_of(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_link_points_to_the_calculators() -> None:
    link = ROOT / "crystalml" / "calculators"
    # A checkout without symbolic links holds a small text file in its place; the mapping in
    # pyproject.toml makes the installed package right all the same.
    target = link.readlink().as_posix() if link.is_symlink() else link.read_text().strip()
    assert target == "../calculators"


def test_installed_calculators_are_those_of_the_tree() -> None:
    import crystalml.calculators

    installed = Path(crystalml.calculators.__file__).resolve()
    assert installed.read_text() == (ROOT / "calculators" / "__init__.py").read_text()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions(ast.parse(text))}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_calculators_are_imported_by_their_installed_name(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        assert "calculators" not in {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_no_document_installs_a_stranger(path: Path) -> None:
    """`crystalml` on PyPI is another project's; ours is `crystalml-dao`."""
    assert re.findall(r"pip install [^\n&|;]*\bcrystalml\b(?![-.\w])", path.read_text()) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_resolve(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    assert [target for target in local if not (path.parent / target).exists()] == []


def test_design_shows_the_layers_that_are_enforced() -> None:
    layers = "\n".join(TOOLS["importlinter"]["contracts"][0]["layers"]).replace("crystalml.", "")
    assert f"```\n{layers}\n```" in (ROOT / "docs" / "design.md").read_text()


def test_every_module_has_its_layer() -> None:
    layered = re.findall(r"crystalml\.(\w+)", " ".join(TOOLS["importlinter"]["contracts"][0]["layers"]))
    modules = {path.stem for path in (ROOT / "crystalml").glob("*.py")} - {"__init__", "__main__"}
    packages = {path.parent.name for path in (ROOT / "crystalml").glob("*/__init__.py")}
    assert (modules | packages) - set(layered) == set()


def test_citation_has_the_version() -> None:
    assert f"\nversion: {crystalml.__version__}\n" in (ROOT / "CITATION.cff").read_text()
