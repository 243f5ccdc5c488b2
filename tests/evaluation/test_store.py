"""The store: nothing is done twice, nothing is lost by a stop, other settings are other results."""

import pytest

from crystalml.evaluation.store import Store


def squares(log):
    def compute(items):
        for item in items:
            log.append(item)
            yield item**2

    return compute


def test_each_value_is_computed_once(tmp_path) -> None:
    log: list[int] = []
    store = Store(tmp_path)
    assert store.fill("square", [2, None, 3, 2], ["a", "", "b", "a"], squares(log)) == [4, None, 9, 4]
    assert Store(tmp_path).fill("square", [3, 5], ["b", "c"], squares(log)) == [9, 25]
    assert log == [2, 3, 5]


def test_a_stopped_run_goes_on(tmp_path) -> None:
    def breaks(items):
        yield items[0] ** 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).fill("square", [2, 3], ["a", "b"], breaks)
    log: list[int] = []
    assert Store(tmp_path).fill("square", [2, 3], ["a", "b"], squares(log)) == [4, 9]
    assert log == [3]


def test_kinds_are_kept_apart(tmp_path) -> None:
    log: list[int] = []
    store = Store(tmp_path)
    store.fill("energy model-1", [2], ["a"], squares(log))
    store.fill("energy model-2", [2], ["a"], squares(log))
    assert log == [2, 2]
    assert store.each("cube", [2, None], ["a", ""], cube) == [8, None]


def cube(x: int) -> int:
    return x**3


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    log: list[int] = []
    store = Store()
    store.fill("square", [2], ["a"], squares(log))
    assert store.fill("square", [2], ["a"], squares(log)) == [4] and log == [2]
    assert not list(tmp_path.iterdir())
