"""The time limit of synchronous connections."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cenote.postgres import watchdog
from cenote.postgres.watchdog import TimeLimit


class Driver:
    """A connection that counts its cancellations.

    Args:
        seconds: Time that a cancellation takes.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.user = 0
        self.cancelled: list[int] = []

    def cancel(self) -> None:
        time.sleep(self.seconds)
        self.cancelled.append(self.user)


def wait_for_the_end() -> None:
    """Wait until the watchdog's thread has ended."""
    ends = time.monotonic() + 5
    while watchdog._watchdog._runs:
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _own_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a new watchdog, whose thread no other test has started."""
    monkeypatch.setattr(watchdog, "_watchdog", watchdog._Watchdog())


def test_one_thread_watches_all() -> None:
    """Many limits share one thread, which ends when there is nothing left to watch."""
    driver = Driver()
    before = set(threading.enumerate())
    for _ in range(100):
        with TimeLimit(0.3, driver), TimeLimit(0.2, driver):
            assert len(set(threading.enumerate()) - before) == 1
    assert driver.cancelled == []
    wait_for_the_end()
    with TimeLimit(0.05, driver) as limit:
        time.sleep(0.2)
    assert limit.expired
    assert len(driver.cancelled) == 1


def test_an_earlier_deadline() -> None:
    """A limit that ends before the one that the thread waits for is kept."""
    first, second = Driver(), Driver()
    with TimeLimit(1.0, first) as long, TimeLimit(0.05, second) as short:
        time.sleep(0.2)
        assert (long.expired, short.expired) == (False, True)
    assert (first.cancelled, second.cancelled) == ([], [0])


def test_the_next_user_is_not_cancelled() -> None:
    """A block that ends while its connection is being cancelled waits for the cancellation."""
    driver = Driver(0.01)
    expired = 0
    for user in range(60):
        driver.user = user
        with TimeLimit(0.01, driver) as limit:
            time.sleep(0.008 + user % 6 / 1000)
        expired += limit.expired
    assert 0 < expired < 60
    assert len(driver.cancelled) == expired
    assert driver.cancelled == sorted(set(driver.cancelled))


def test_a_slow_cancellation_delays_no_other() -> None:
    """The limits of other connections hold while a server does not answer."""
    slow, others = Driver(0.5), [Driver() for _ in range(8)]

    def use(driver: Driver) -> float:
        start = time.monotonic()
        with TimeLimit(0.1, driver):
            while not driver.cancelled and driver is not slow:
                time.sleep(0.005)
            if driver is slow:
                time.sleep(0.2)
        return time.monotonic() - start

    with ThreadPoolExecutor(9) as threads:
        slowest, *times = threads.map(use, [slow, *others])
    assert slowest > 0.5
    assert max(times) < 0.4


def test_a_failing_cancellation() -> None:
    """An error of the cancellation is no error of the block, and the thread goes on."""

    class Broken(Driver):
        def cancel(self) -> None:
            super().cancel()
            raise OSError("the server is gone")

    for _ in range(2):
        broken = Broken()
        with TimeLimit(0.03, broken) as limit:
            time.sleep(0.15)
        assert limit.expired
        assert broken.cancelled == [0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process() -> None:
    """A process that was forked while the thread ran starts its own."""
    with TimeLimit(1.0, Driver()) as parents:
        child = os.fork()
        if child == 0:
            try:
                driver = Driver()
                with TimeLimit(0.05, driver):
                    time.sleep(0.3)
                os._exit(0 if driver.cancelled == [0] else 1)
            finally:
                os._exit(2)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert not parents.expired
