"""A whole evaluation of samples whose every answer is known, twice the same, stopped and gone on with."""

import json
import math

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystalml.errors import InputError
from crystalml.evaluation.run import GROUPS, evaluate
from crystalml.metrics.stability import HullTable

HULL = HullTable({"NaCl": -2.1, "MgO": -3.1, "CsBr": -2.0}, {"name": "toy hull"})
LIGHT = ("validity", "distribution", "match", "uniqueness", "novelty")  # no network, no CrystalNN


@pytest.fixture
def judge(tiny_potential, tmp_path):
    """evaluate with a tiny potential and a toy hull, without a progress bar."""

    def run(generated, reference=None, **settings):
        settings = {"energy_model": tiny_potential(), "embedder": tiny_potential(), "hull": HULL, **settings}
        return evaluate(generated, reference, progress=False, device="cpu", **settings)

    return run


def test_every_answer_of_a_known_case(judge, samples, salts) -> None:
    pytest.importorskip("smact", reason="valid compositions need the extra `metrics`")
    found = judge(samples, salts, metrics=LIGHT)
    value = {key: metric.value for key, metric in found.metrics.items()}
    assert value["valid_structure"] == 6 / 8  # all but the overlapping one and the missing one
    assert value["valid_composition"] == 6 / 8  # all readable ones but Na2Cl
    assert value["valid"] == 5 / 8
    assert value["unique"] == 6 / 8  # the supercell is no new one, the missing one no crystal
    assert value["novel"] == 4 / 8  # not salt, twice, nor magnesia (nor the missing one)
    assert value["match_rate_1"] == 2 / 5  # of five salts: NaCl and MgO
    assert value["match_rate_4"] == 2 / 5 and value["rmse_4"] < 0.05  # 20 shots are not there: 4 NaCl are
    assert found["match_rate_4"].count == 5 and found["valid"].count == 8
    assert found.settings["pairing"] == "by reduced formula" and found.settings["readable"] == 7
    low, high = found["unique"].interval
    assert low <= 6 / 8 <= high
    with pytest.raises(InputError, match="match_rate_1"):
        found["nonsense"]


def test_the_table_has_a_row_for_each(judge, samples, salts) -> None:
    found = judge(samples, salts, metrics=LIGHT)
    frame = found.to_dataframe()
    assert len(frame) == 8 and frame["unreadable"].iloc[7] == "missing"
    assert frame["group"].tolist() == [0, 0, 2, 3, 4, 5, 6, 7]
    assert frame["known_as"].tolist()[:3] == ["sample 0", "sample 0", "sample 2"]
    assert frame["matched"].notna().tolist() == [True, True, True, False, False, False, False, False]
    assert frame["spacegroup"].tolist()[:5] == [225, 225, 225, 221, 221]
    assert frame["density"].iloc[0] == pytest.approx(2.16, abs=0.02)


def test_a_set_against_itself(judge, salts) -> None:
    found = judge(salts * 2, salts * 2)
    value = {key: metric.value for key, metric in found.metrics.items()}
    for key in ("density_wasserstein", "volume_wasserstein", "energy_wasserstein", "spacegroup_distance"):
        assert value[key] == pytest.approx(0, abs=1e-9)
    assert value["frechet"] < 1e-6 and value["novel"] == 0 and value["unique"] == 0.5
    assert value["coverage_recall"] == value["coverage_precision"] == value["joint_recall"] == 1
    assert value["match_rate_1"] == 1 and value["rmse_1"] < 1e-6 and value["polymorphs"] == 1
    assert found["frechet"].name == "Frechet distance" and "custom features" in found["frechet"].note


def test_stability_and_sun_follow_from_energies_and_hull(judge, samples, salts, tiny_potential) -> None:
    found = judge(samples, known=salts, metrics=["uniqueness", "novelty", "stability"], stable=0.5)
    table = found.table
    assert table["energy_above_hull"][0] == pytest.approx(table["energy_per_atom"][0] + 2.1, abs=1e-6)
    above = table["energy_above_hull"]
    assert math.isnan(above[6]) and math.isnan(above[7])  # overlapping, missing: stable in no way
    stable = [not math.isnan(e) and e <= 0.5 for e in above]
    assert found["stable"].value == sum(stable) / 8
    expected = [
        stable[i] and table["novel"][i] and table["group"].index(table["group"][i]) == i for i in range(8)
    ]
    assert table["sun"] == expected and found["sun"].value == sum(expected) / 8
    assert found.settings["hull"] == "toy hull" and found.settings["energy_model"] == "custom"


def test_relaxed_samples_are_judged_as_they_end(judge, samples) -> None:
    found = judge(samples[:4], metrics=["stability"], relax_steps=3)
    start, end = (np.array(found.table[name]) for name in ("energy_per_atom", "relaxed_energy_per_atom"))
    assert (end <= start + 1e-6).all() and (end < start - 1e-4).any()
    assert found.table["energy_above_hull"][0] == pytest.approx(end[0] + 2.1, abs=1e-6)
    assert found.settings["relax_steps"] == 3


def test_targets_pair_samples_with_the_reference(judge, salts) -> None:
    """Named targets count alone: a perfect crystal drawn for another target is no match."""
    drawn = [salts[0].copy(), salts[0].copy(), salts[2].copy()]
    for structure, target in zip(drawn, ("sample 0", "sample 1", "sample 2"), strict=True):
        structure.properties["target"] = target
    found = judge(drawn, salts, metrics=["match"])
    assert found.settings["pairing"] == "by target id"
    assert found["match_rate_1"].value == 2 / 5
    assert found.settings["paired_draws"]
    drawn[0].properties["target"] = "nobody"
    with pytest.raises(InputError, match="'nobody'"):
        judge(drawn, salts, metrics=["match"])


def test_a_reference_goes_by_ids_of_its_own(judge, salts) -> None:
    reference = [s.copy() for s in salts]
    for k, structure in enumerate(reference):
        structure.properties["material_id"] = f"mp-{k}"
    drawn = [reference[0].copy(), reference[2].copy()]
    assert judge(drawn, reference, metrics=["match"]).settings["pairing"] == "by target id"
    for structure in drawn:
        structure.properties = {"material_id": "another set's"}
    with pytest.warns(UserWarning, match='names its target, the first "another set\'s"'):
        assert judge(drawn, reference, metrics=["match"]).settings["pairing"] == "by reduced formula"


def test_novelty_is_against_the_crystals_given_not_their_names(judge, salts, tmp_path) -> None:
    other = Structure(Lattice.cubic(3.4), ["Na", "Cl"], [[0] * 3, [0.5] * 3])  # that of CsCl
    found = [
        judge(salts[:1], known=[known], metrics=["novelty"], out=tmp_path)["novel"].value
        for known in (other, salts[0])
    ]
    assert found == [1.0, 0.0]


def test_answers_to_the_reference_are_told_from_draws_of_their_own(judge, samples, salts) -> None:
    from crystalml.evaluation.matching import partners
    from crystalml.evaluation.samples import read_crystals

    reference = read_crystals(salts)
    assert partners(read_crystals([*salts[::-1], None]), reference).tolist() == [4, 3, 2, 1, 0, -1]
    assert partners(read_crystals([salts[0], salts[0]]), reference) is None  # one NaCl only
    assert partners(read_crystals(salts[:1]), reference) is None  # four targets without a sample
    assert partners(read_crystals(samples), reference) is None
    moved = [s.copy() for s in salts]
    for salt in moved:
        salt.scale_lattice(1.1 * salt.volume)
    found = judge([*moved, None], salts, metrics=["distribution"])
    low, high = found["volume_wasserstein"].interval
    assert found.settings["paired_draws"] and low <= found["volume_wasserstein"].value <= high


def test_a_stopped_evaluation_goes_on_and_says_the_same(judge, samples, salts, tmp_path, monkeypatch) -> None:
    whole = judge(samples, salts, metrics=LIGHT)
    first = judge(samples[:4], salts, metrics=LIGHT, out=tmp_path)
    from crystalml.evaluation import facts, run

    seen = []
    monkeypatch.setattr(run, "basic", lambda s: seen.append(s) or facts.basic(s))
    again = judge(samples, salts, metrics=LIGHT, out=tmp_path)
    assert len(seen) == 3  # the three readable ones that were not there before
    assert again.metrics == whole.metrics and first["unique"].count == 4
    assert again.table == whole.table


def test_only_what_is_asked_for_and_can_be_done(judge, samples) -> None:
    alone = judge(samples, metrics=["validity", "uniqueness"])
    assert set(alone.metrics) <= {"valid_structure", "valid_composition", "valid", "unique"}
    assert not {"energy_model", "embedder"} & set(alone.settings)
    everything = judge(samples)  # without reference or known crystals
    assert "stable" in everything.metrics and not {"frechet", "novel", "sun"} & set(everything.metrics)
    assert set(GROUPS) >= set(everything.settings["metrics"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": ["beauty"]}, "beauty"),
        ({"processes": 0}, "processes"),
        ({"shots": (0,)}, "shots"),
        ({"relax_steps": -1}, "relax_steps"),
    ],
)
def test_bad_requests_are_refused(judge, samples, salts, settings, message) -> None:
    with pytest.raises(InputError, match=message):
        judge(samples, salts, **settings)


def test_bad_input_is_refused(judge, salts) -> None:
    with pytest.raises(InputError, match="none of the 2 samples"):
        judge([None, None], salts)
    with pytest.raises(InputError, match="reference cannot be read"):
        judge(salts, [salts[0], None])


def test_what_is_saved_can_be_read_again(judge, samples, salts, tmp_path) -> None:
    pandas = pytest.importorskip("pandas")
    found = judge(samples, salts, metrics=LIGHT, out=tmp_path)
    paths = {path.name: path for path in found.save(tmp_path)}
    content = json.loads(paths["metrics.json"].read_text())
    assert content["metrics"]["unique"]["value"] == 0.75 and content["settings"]["samples"] == 8
    frame = pandas.read_csv(paths["samples.csv"])
    assert len(frame) == 8 and list(frame["name"]) == found.table["name"]
    with pytest.raises(InputError, match="parquet"):
        found.save_table(tmp_path / "table.xls")


def test_the_page_stands_alone(judge, samples, salts, tmp_path) -> None:
    """One file, no script, nothing fetched, all figures and crystals in it, names escaped."""
    from html.parser import HTMLParser

    samples[0].properties["note"] = "<script>alert(1)</script>"
    found = judge(samples, salts, metrics=[*LIGHT, "stability"])
    found.table["name"][0] = "<script>alert(1)</script>"
    found.save(tmp_path)
    text = (tmp_path / "report.html").read_text()

    class Reader(HTMLParser):
        tags: list[str] = []  # noqa: RUF012
        addresses: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)
            self.addresses += [v for k, v in attrs if k in ("src", "href") and not v.startswith("#")]

    Reader().feed(text)
    assert "script" not in Reader.tags and "&lt;script&gt;" in text
    assert Reader.addresses and all(address.startswith("data:") for address in Reader.addresses)
    assert Reader.tags.count("svg") >= 4 and Reader.tags.count("img") >= 3
    for metric in found.metrics.values():
        assert metric.name in text
