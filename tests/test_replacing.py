"""Files that are there whole or not at all."""

from contextlib import suppress
from pathlib import Path

from crystalml.replacing import replacing


def test_the_new_file_takes_the_old_ones_place_and_leaves_nothing_beside(tmp_path: Path) -> None:
    target = tmp_path / "new" / "table.cif.zip"
    for text in ("one", "two"):
        with replacing(target) as file:
            assert file.parent == target.parent and file.suffix == ".zip"
            file.write_text(text)
        assert target.read_text() == text
    assert list(target.parent.iterdir()) == [target]


def test_an_error_leaves_the_old_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with suppress(ZeroDivisionError), replacing(target) as file:
        file.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_others_may_read_it(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as file:
        file.write_text("")
        file.chmod(0o600)  # as libraries do
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
