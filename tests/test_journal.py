"""A journal survives being killed, and is never mixed."""

import pytest

from crystalml.errors import InputError
from crystalml.journal import Journal, write_json


def test_rows_come_back_in_order(tmp_path):
    journal = Journal(tmp_path / "deep", "rows.jsonl")
    assert journal.open({"seed": 1}) == []
    journal.append([{"a": 1}, {"a": float("inf")}])
    journal.append([{"a": "line\nbreak"}])
    assert [row["a"] for row in journal.open({"seed": 1})] == [1, float("inf"), "line\nbreak"]


def test_a_row_cut_off_is_forgotten_and_the_next_starts_on_a_line_of_its_own(tmp_path):
    journal = Journal(tmp_path, "rows.jsonl")
    journal.open({})
    journal.append([{"a": 1}, {"a": 2}])
    journal.path.write_bytes(journal.path.read_bytes()[:-3])
    assert journal.open({}) == [{"a": 1}]
    journal.append([{"a": 3}])
    assert journal.open({}) == [{"a": 1}, {"a": 3}]


@pytest.mark.parametrize("other", [{"seed": 2}, {}, {"seed": 1, "more": 0}])
def test_other_settings_are_refused_by_name(tmp_path, other):
    Journal(tmp_path, "rows.jsonl").open({"seed": 1})
    with pytest.raises(InputError, match=r"seed = 1, not|more = None, not 0"):
        Journal(tmp_path, "rows.jsonl").open(other)


def test_a_file_is_no_folder_of_results(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/deeper"):
        with pytest.raises(InputError, match="is a file or lies in one"):
            Journal(tmp_path / place, "rows.jsonl").open({})


@pytest.mark.parametrize("content", ["[1]", "no JSON"])
def test_the_settings_of_others_are_refused_and_kept(tmp_path, content):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(InputError, match=r"settings\.json holds no settings"):
        Journal(tmp_path, "rows.jsonl").open({"seed": 1})
    assert (tmp_path / "settings.json").read_text() == content


def test_json_is_whole_or_absent(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert (tmp_path / "a.json").read_text() == '{\n "x": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
