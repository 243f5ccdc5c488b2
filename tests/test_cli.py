"""The command line: fast help with examples everywhere, friendly errors, and the whole way through."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import pytest
import typer
from ase.build import fcc111
from ase.io import write
from pymatgen.core import Lattice, Structure
from rich.text import Text

import crystalml
from crystalml import cli
from crystalml.training.checkpoint import save_model

COMMANDS = [
    ["quickstart"], ["pack-moduli"], ["generate"], ["relax"], ["models"], ["pack"], ["train"], ["calibrate"],
    ["check-calculator"], ["featurize"], ["finetune"], ["predict"], ["pack-csd"], ["evaluate"], ["hull"],
    ["hull-table"], ["plot", "parity"], ["plot", "curves"], ["plot", "map"], ["benchmark", "matbench"],
    ["benchmark", "features"],
    ["benchmark", "csp"], ["benchmark", "energy"], ["benchmark", "speed"],
    ["benchmark", "prototypes"], ["benchmark", "forces"], ["benchmark", "uncertainty"],
    ["benchmark", "frechet"], ["benchmark", "crysdiff"], ["benchmark", "generators"],
    ["benchmark", "potential-speed"],
    ["benchmark", "relax"], ["benchmark", "hybrid"], ["benchmark", "solvers"], ["fit-ranker"],
    ["relax-data"], ["label-data"], ["benchmark", "ablation"], ["benchmark", "elastic"],
]  # fmt: skip


@pytest.fixture
def weights(tmp_path, tiny_model):
    path = tmp_path / "tiny.safetensors"
    save_model(tiny_model(), path, {"name": "tiny"})
    return path


@pytest.fixture
def salt(tmp_path):
    path = tmp_path / "in" / "salt.cif"
    path.parent.mkdir()
    Structure(Lattice.from_parameters(4, 4, 4, 60, 60, 60), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3]).to(
        str(path)
    )
    return path


# --- help -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_explains_and_has_examples(run, command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Examples" in result.output and f"crystalml {' '.join(command)}" in result.output


def test_the_list_above_is_complete():
    def names(app: typer.Typer) -> list[list[str]]:
        own = [[c.name or c.callback.__name__] for c in app.registered_commands]
        groups = [([g.name] if g.name else [], g.typer_instance) for g in app.registered_groups]
        return own + [prefix + rest for prefix, group in groups for rest in names(group)]

    assert sorted(names(cli.app)) == sorted(COMMANDS)


def test_options_lose_no_words_to_markup():
    """Brackets are markup to rich unless they are escaped: '[default: all]' would be shown as nothing."""

    def texts(command):
        for parameter in command.params:
            yield getattr(parameter, "help", None)
        for part in getattr(command, "commands", {}).values():
            yield from texts(part)

    found = [text for text in texts(typer.main.get_command(cli.app)) if text]
    assert any("default: all" in text for text in found)
    for text in found:
        assert Text.from_markup(text).plain == text.replace("\\[", "["), text


def test_seed_and_device_everywhere_they_mean_something(run):
    for command in COMMANDS:
        text = run(*command, "--help").output
        without = (["models"], ["pack"], ["check-calculator"], ["benchmark", "prototypes"], ["hull-table"])
        without += (["pack-csd"], ["fit-ranker"], ["plot", "parity"], ["plot", "curves"], ["plot", "map"])
        without += (["label-data"],)  # the calculator knows its own
        assert ("--device" in text) == (command not in without)
        seedless = (["models"], ["relax"], ["calibrate"], ["predict"], ["hull-table"], ["pack-csd"])
        seedless += (["plot", "parity"], ["plot", "curves"], ["fit-ranker"], ["relax-data"], ["pack-moduli"])
        assert ("--seed" in text) == (command not in seedless)


def test_help_is_fast_and_loads_no_torch():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from crystalml import cli\n"
        "assert CliRunner().invoke(cli.app, ['generate', '--help']).exit_code == 0\n"
        "print({'torch', 'pymatgen', 'ase', 'numpy'} & set(sys.modules))\n"
    )
    start = time.perf_counter()
    env = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "set()"
    assert time.perf_counter() - start < 5


def test_version_and_bare_call(run):
    assert crystalml.__version__ in run("--version").output
    assert "quickstart" in run().output


# --- errors -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generate", "NaCl", "-o", "x.foo"], "extxyz"),
        (["generate", "NaCl", "-o", "x.cif", "--model", "no-such-model"], "no-such-model"),
        (["generate", "NaCl", "-o", "x.cif", "-z", "1:x"], "1:x"),
        (["relax", "x.cif", "--model", "no-such-model"], "no-such-model"),
        (["relax", "x.cif", "-o", "x.foo"], "extxyz"),
        (["relax", "x.cif", "--optimizer", "bfgs"], "lbfgs, fire"),
        (["relax", "x.cif", "--format", "poscar"], "cif, extxyz"),
        (["models", "no-such-model"], "no-such-model"),
        (["train", "dao-g", "--data", "none.safetensors", "-o", "run"], "none.safetensors"),
        (["benchmark", "csp", "--test", "x.parquet", "--shots", "1,b"], "1,b"),
        (["benchmark", "csp", "--test", "x.parquet", "--order", "new"], "new"),
        (["evaluate", "none.cif"], "none.cif"),
        (["evaluate", "none.cif", "--shots", "1,b"], "1,b"),
        (["evaluate", "none.cif", "--cutoffs", "3"], "0.4,10"),
        (["evaluate", "none.cif", "--only", "beauty"], "beauty"),
        (["hull", "Li-Qq"], "Qq"),
        (["hull-table", "none", "-o", "hull.txt"], "hull.txt"),
    ],
)
def test_mistakes_are_one_friendly_line_and_exit_code_2(run, args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*args)
    assert result.exit_code == 2
    assert result.output.startswith("Error: ") and result.output.count("\n") == 1
    assert message in result.output
    assert not list(tmp_path.iterdir())


def test_bugs_keep_their_traceback(run, monkeypatch, weights, tmp_path):
    from crystalml.generate import StructureGenerator

    def broken(*args, **kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr(StructureGenerator, "sample", broken)
    with pytest.raises(ZeroDivisionError):
        run("generate", "NaCl", "-o", tmp_path / "x.cif", "--model", weights, "--device", "cpu")


def test_the_module_and_the_script_exit_alike():
    command = [sys.executable, "-m", "crystalml.cli", "generate", "NaCl", "-o", "x.foo"]
    env = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("Error: ")


# --- work -------------------------------------------------------------------------------------------------
def test_generate_writes_what_the_generator_draws(run, monkeypatch, weights, tmp_path, salt):
    from crystalml import guard, recipes

    noise = recipes.noise_for  # a short schedule: the published one has 1000 tables to fill
    monkeypatch.setattr(recipes, "noise_for", lambda model: type(noise(model)).diffcsp(8))
    crystal = Structure.from_file(salt)
    monkeypatch.setattr(guard, "to_valid_structure", lambda x: (crystal.copy(), ""))
    out = tmp_path / "out.jsonl"
    options = ["-n", 2, "-z", "1:2", "--steps", 3, "--seed", 4, "--device", "cpu", "--model", weights, "-q"]
    options += ["--strategy", "diffusion", "--no-distinct"]
    result = run("generate", "NaCl", "MgO", "-o", out, *options)
    assert result.exit_code == 0 and "8 of 8 structures" in result.output
    rows = [json.loads(line)["properties"] for line in out.read_text().splitlines()]
    assert [(row["formula_units"], row["index"]) for row in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)] * 2
    assert {row["seed"] for row in rows} == {4} and {row["model"] for row in rows} == {"tiny"}


def test_generate_says_when_fewer_come_back(run, monkeypatch, weights, tmp_path):
    from crystalml import guard, recipes

    noise = recipes.noise_for
    monkeypatch.setattr(recipes, "noise_for", lambda model: type(noise(model)).diffcsp(8))
    monkeypatch.setattr(guard, "to_valid_structure", lambda x: (None, "bad"))
    out = tmp_path / "out.cif"
    options = ["--steps", 2, "--model", weights, "--device", "cpu", "-q", "--strategy", "diffusion"]
    with pytest.warns(UserWarning, match="left out"):
        result = run("generate", "NaCl", "-o", out, *options)
    assert result.exit_code == 1 and "0 of 1" in result.output and "4 draws rejected" in result.output


def test_generate_keeps_a_group_and_a_cell(run, tmp_path, weights, salt):
    out = tmp_path / "out.jsonl"
    for group in (136, "P4_2/mnm"):
        line = ("generate", "TiO2", "--space-group", group, "--strategy", "prototype", "-o", out, "-q")
        assert run(*line).exit_code == 0
        (row,) = [json.loads(line)["properties"] for line in out.read_text().splitlines()]
        assert (row["space_group"], row["strategy"]) == (136, "prototype")
        out.unlink()
    wrong = run("generate", "NaCl", "--lattice", "4,4,4", "-o", out)
    assert wrong.exit_code == 2 and "six positive numbers" in wrong.output
    both = run("generate", "NaCl", "--fixed", salt, "--space-group", 225, "--model", weights, "-o", out)
    assert both.exit_code == 2 and "not two" in both.output


def test_relax_reports_bad_files_and_goes_on(run, weights, salt, tmp_path):
    (salt.parent / "bad.cif").write_text("no crystal")
    out = tmp_path / "relaxed.extxyz"
    options = ["--model", weights, "--device", "cpu"]
    result = run("relax", salt.parent, "-o", out, "--max-steps", 2, *options)
    assert result.exit_code == 1
    assert result.output.count("bad.cif: ") == 1 and "1 relaxed structures" in result.output and out.exists()
    clean = run("relax", salt, "-o", out, "--max-steps", 0, *options)
    assert clean.exit_code == 0 and "Fm-3m (225)" in clean.output


def test_relax_into_a_folder_goes_on(run, tiny_potential, salt, tmp_path):
    save_model(tiny_potential(), tmp_path / "p.safetensors", {"name": "tiny-p"})
    out = tmp_path / "out"
    command = ["relax", salt.parent, "-o", out, "--model", tmp_path / "p.safetensors", "--device", "cpu"]
    first = run(*command, "--max-steps", 3)
    assert first.exit_code == 0 and "salt.cif: " in first.output and (out / "salt.cif").exists()
    shutil.copy(salt, salt.with_name("more.cif"))
    again = run(*command, "--max-steps", 3)
    assert "more.cif: " in again.output and "salt.cif: " not in again.output
    assert "2 relaxed structures" in again.output and "1 of them from before" in again.output
    other = run(*command, "--max-steps", 4)
    assert other.exit_code == 2 and "max_steps = 3, not 4" in other.output
    quiet = run(*command[:3], tmp_path / "q", *command[4:], "--fix-symmetry", "--symmetrize", "-q")
    assert quiet.exit_code == 0 and "salt.cif: " not in quiet.output
    assert "Fm-3m" in (tmp_path / "q" / "salt.cif").read_text()


def test_relax_keeps_inputs_and_finished_work(run, weights, salt, tmp_path):
    options = ["--model", weights, "--device", "cpu", "--max-steps", 1, "-q"]
    before = salt.read_bytes()
    (tmp_path / "file").write_text("")
    for source, out in ((salt.parent, salt.parent), (salt, salt), (salt, tmp_path / "file")):
        result = run("relax", source, "-o", out, *options)
        assert result.exit_code == 2 and result.output.count("\n") == 1, result.output
    assert salt.read_bytes() == before and [path.name for path in salt.parent.iterdir()] == ["salt.cif"]
    write(salt.with_name("slab.extxyz"), fcc111("Al", (1, 1, 3), vacuum=6.0))
    mixed = run("relax", salt.parent, "-o", tmp_path / "all.cif", *options)
    assert mixed.exit_code == 1 and "1 relaxed structures written" in mixed.output
    assert "slab.extxyz: " in mixed.output and "only .extxyz" in mixed.output
    assert len(Structure.from_file(tmp_path / "all.cif")) == 2


def test_train_goes_on_and_can_be_told_not_to(run, tmp_path):
    import torch

    from crystalml.datasets.packed import PackedDataset

    data = PackedDataset(
        torch.tensor([11, 17] * 8, dtype=torch.int8),
        torch.rand(16, 3),
        4 * torch.eye(3).repeat(8, 1, 1),
        torch.full((8,), 2, dtype=torch.int16),
        {"energy": torch.zeros(8)},
    )
    data.save(tmp_path / "data.safetensors")
    out = tmp_path / "run"
    options = ["--data", tmp_path / "data.safetensors", "-o", out, "--size", "tiny", "--device", "cpu"]
    first = run("train", "dao-p-diffusion", *options, "--steps", 2)
    assert first.exit_code == 0 and "step 2" in first.output and (out / "model.safetensors").exists()
    assert crystalml.load_model(out / "model.safetensors").has_energy
    again = run("train", "dao-p-diffusion", *options, "--steps", 2)
    assert again.exit_code == 0
    refused = run("train", "dao-p-diffusion", *options, "--steps", 2, "--no-resume")
    assert refused.exit_code == 2 and "--no-resume" in refused.output
    assert run("train", "dao-x", *options, "--steps", 2).exit_code == 2
    assert run("train", "dao-p-diffusion", *options, "--steps", 2, "--size", "huge").exit_code == 2


def test_calibrate_writes_a_model_with_error_bars(run, tmp_path):
    import torch

    from crystalml.datasets.packed import PackedDataset
    from crystalml.models.heads import EnergyScale
    from crystalml.models.model import ModelConfig
    from crystalml.models.periodic import PeriodicConfig
    from crystalml.testing import rand_crystals

    x = rand_crystals(0, count=250, max_atoms=2)
    data = PackedDataset.from_arrays(
        *(value.numpy() for value in (x.numbers, x.frac, x.lattice, x.num_atoms)),
        {"energy": torch.randn(250, generator=torch.Generator().manual_seed(0)).numpy()},
    )
    data.save(tmp_path / "val.safetensors")
    encoder = PeriodicConfig(16, 1, 2, 4, 8, 8, 6, 5.0)
    model = ModelConfig(encoder, noise=False, energy=EnergyScale()).build()
    save_model(model, tmp_path / "p.safetensors", {"name": "p"})
    out = tmp_path / "calibrated.safetensors"
    options = ["--val", tmp_path / "val.safetensors", "--device", "cpu"]
    result = run("calibrate", tmp_path / "p.safetensors", *options, "-o", out)
    assert result.exit_code == 0 and "95 %" in result.output
    loaded = crystalml.load_model(out)
    assert loaded.error_bar is not None and loaded.card["name"] == "p"
    wrong = run("calibrate", tmp_path / "p.safetensors", *options, "-o", tmp_path / "x.pt")
    assert wrong.exit_code == 2 and not (tmp_path / "x.pt").exists()


def test_models_lists_and_shows_cards(run, monkeypatch, tmp_path, weights):
    from crystalml.weights import register, registry

    path = tmp_path / "shelf" / "registry.json"
    path.parent.mkdir()
    register(weights, "tiny-p", {"description": "For tests."}, registry=path)
    for name in ("list_models", "model_info"):
        whole = getattr(registry, name)
        monkeypatch.setattr(registry, name, lambda *a, whole=whole: whole(*a, path))
    assert "tiny-p" in run("models").output
    assert "For tests." in run("models", "tiny-p").output


def test_pack_reads_a_crysdb_folder(run, shared_data, tmp_path):
    pytest.importorskip("pyarrow")
    out = tmp_path / "val.safetensors"
    result = run("pack", shared_data, "-o", out, "--split", "val", "--max-atoms", 4)
    assert result.exit_code == 0 and "energy (" in result.output and out.exists()


# --- judging ----------------------------------------------------------------------------------------------
def test_evaluate_writes_the_verdict_and_goes_on(run, weights, salt, tmp_path):
    out = tmp_path / "verdict"
    options = [
        "--only",
        "validity,uniqueness,frechet,energy",
        "--energy-model",
        weights,
        "--embedder",
        weights,
    ]
    options += ["--device", "cpu", "-q", "-o", out]
    result = run("evaluate", salt, salt, "--reference", salt.parent, *options)
    assert result.exit_code == 0
    assert "2 samples against 1 crystals" in result.output and "tiny" in result.output
    content = json.loads((out / "metrics.json").read_text())
    metrics = content["metrics"]
    assert metrics["valid_structure"]["value"] == 1 and metrics["unique"]["value"] == 0.5
    assert "frechet" not in metrics and "2 crystals" in content["settings"]["frechet"]
    assert {"report.html", "samples.csv", "cache"} <= {path.name for path in out.iterdir()}
    assert run("evaluate", salt, "--reference", salt.parent, *options).exit_code == 0


def test_evaluate_takes_an_embedder_by_its_address(run, salt, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "class Volume:\n"
        "    name = 'volumes'\n"
        "    def transform(self, structures):\n"
        "        return np.array([[s.volume, s.density] for s in structures])\n"
    )
    address = f"{tmp_path / 'mine.py'}:Volume"
    options = ["--only", "frechet", "--embedder", address, "-q", "-o", tmp_path / "out"]
    other = salt.parent / "other.cif"
    other.write_text(salt.read_text().replace("2.8284", "2.9"))
    result = run("evaluate", salt, other, "--reference", salt.parent, *options)
    assert result.exit_code == 0 and "volumes" in result.output


def test_hull_samples_a_system(run, monkeypatch, weights, tmp_path):
    from crystalml import generate

    crystal = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0] * 3, [0.5] * 3])
    asked = []

    def sample(self, formula, n, **settings):
        asked.append((formula, n, settings["strategy"], settings["seed"]))
        return [crystal.copy()]

    monkeypatch.setattr(generate.StructureGenerator, "__init__", lambda self, **_: None)
    monkeypatch.setattr(generate.StructureGenerator, "sample", sample)
    out = tmp_path / "hull"
    options = [
        "--formulas",
        "NaCl",
        "-n",
        3,
        "--energy-model",
        weights,
        "--max-steps",
        1,
        "--device",
        "cpu",
        "-q",
    ]
    result = run("hull", "Na-Cl", "-o", out, "--seed", 5, *options)
    assert result.exit_code == 0 and "NaCl" in result.output and asked == [("NaCl", 3, "prototype", 5)]
    assert {"phases.csv", "phases.json", "hull.png", "structures.cif.zip"} <= {p.name for p in out.iterdir()}
    again = run("hull", "Na-Cl", "-o", out, "--seed", 5, *options)
    assert again.exit_code == 0 and len(asked) == 1  # from the journal
    assert run("hull", "Na-Cl", "-o", out, "--seed", 6, *options).exit_code == 2


def test_hull_table_of_a_corpus(run, monkeypatch, tmp_path):
    from crystalml.metrics import crysdb_hull
    from crystalml.metrics.stability import HullTable

    made = HullTable({"NaCl": -2.0}, {"name": "toy"})
    monkeypatch.setattr(crysdb_hull, "crysdb_hull", lambda folder, margin, processes: made)
    result = run("hull-table", tmp_path, "-o", tmp_path / "hull.json.xz")
    assert result.exit_code == 0 and "1 phases" in result.output
    assert HullTable.load(tmp_path / "hull.json.xz") == made
