"""The time limit of synchronous connections."""

from __future__ import annotations

import os
import socket
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
        self.is_closed = False

    def cancel_safe(self, *, timeout: float) -> None:
        time.sleep(self.seconds)
        self.cancelled.append(self.user)

    def close(self) -> None:
        self.is_closed = True


class Connected(Driver):
    """A connection whose server answers no statement, and accepts or drops cancellations."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.client, self._server = socket.socketpair()

    def cancel_safe(self, *, timeout: float) -> None:
        self.user += 1
        if self.seconds > timeout:
            time.sleep(timeout)
            raise TimeoutError
        super().cancel_safe(timeout=timeout)

    def fileno(self) -> int:
        return self.client.fileno()

    def wait(self) -> bytes:
        return self.client.recv(1)

    def close(self) -> None:
        super().close()
        self.client.close()
        self._server.close()


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
        def cancel_safe(self, *, timeout: float) -> None:
            super().cancel_safe(timeout=timeout)
            raise OSError("the server is gone")

    for _ in range(2):
        broken = Broken()
        with TimeLimit(0.03, broken) as limit:
            time.sleep(0.15)
        assert limit.expired
        assert broken.cancelled == [0]


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_a_silent_server(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """A connection that does not answer is given up, whether or not the cancellation succeeds."""
    monkeypatch.setattr(watchdog, "CANCEL_SECONDS", 0.7)
    driver = Connected(seconds)
    start = time.monotonic()
    with TimeLimit(0.1, driver) as limit:
        assert driver.wait() == b""  # the socket is shut down
        assert 0.7 < time.monotonic() - start < 5
    assert limit.disconnected
    assert driver.is_closed
    assert driver.user == (1 if seconds else 2)


def test_no_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the block that must not be cancelled can only lose its connection."""
    monkeypatch.setattr(watchdog, "CANCEL_SECONDS", 0.3)
    driver = Connected(0.0)
    with TimeLimit(0.1, driver) as limit:
        limit.stop_cancelling()
        assert driver.wait() == b""
    assert driver.cancelled == []
    with TimeLimit(0.1, Driver()) as limit:
        limit.stop_cancelling()
        time.sleep(0.2)
    assert not limit.disconnected


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


def test_a_process_without_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no thread can be started, the limit is repeated later."""
    driver = Driver()
    start = threading.Thread.start
    refused: list[str] = []

    def start_later(thread: threading.Thread) -> None:
        if thread.name == "cenote-cancel" and not refused:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_later)
    with TimeLimit(0.05, driver) as limit:
        time.sleep(1.0)
    assert refused
    assert limit.expired
    assert driver.cancelled
