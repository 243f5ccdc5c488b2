"""Work over processes comes back complete and in order, whatever happens to the workers."""

import multiprocessing
import os
import threading
import time

import pytest

from crystalml.parallel import process_map, time_limit


def square(x: int) -> int:
    return x * x


def fragile(x: int) -> int:
    """Kills the worker it runs in, but not the main process."""
    if x == 2 and multiprocessing.parent_process() is not None:
        os._exit(1)
    return x


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order(processes: int) -> None:
    assert list(process_map(square, range(9), processes, chunk=2)) == [x * x for x in range(9)]


def test_a_dead_worker_costs_no_result() -> None:
    with pytest.warns(RuntimeWarning, match="a worker process died"):
        assert list(process_map(fragile, range(6), 2, chunk=1)) == list(range(6))


def test_time_limit_stops_and_cleans_up() -> None:
    with pytest.raises(TimeoutError, match=r"0\.05 s"), time_limit(0.05):
        time.sleep(5)
    with time_limit(0.05):
        pass
    time.sleep(0.06)  # an alarm left armed would go off here
    with time_limit(None):
        pass


def test_no_limit_outside_the_main_thread() -> None:
    """Signals reach the main thread only; elsewhere the body runs to its end."""
    done = []

    def body() -> None:
        with time_limit(0.01):
            time.sleep(0.03)
            done.append(True)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert done == [True]
