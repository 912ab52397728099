"""Fixtures for tests of a run on disk."""

import time
from contextlib import contextmanager

import filelock._api
import filelock._soft
import pytest


class Clock:
    """What filelock uses of `time`: a sleep takes no time, but the clock goes on by as much."""

    def __init__(self):
        self.now = 0.0
        self.when_asleep = lambda: None

    def monotonic(self) -> float:
        """Return the seconds."""
        return self.now

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        """Go on by so many seconds, and call `when_asleep`."""
        self.now += seconds
        self.when_asleep()

    def __getattr__(self, name: str):
        return getattr(time, name)


@pytest.fixture(scope="session")
def virtual_clock():
    """Return `virtual_clock()`, a context in which this process waits for leases in no time.

    It yields a Clock, which starts at 0.
    """

    @contextmanager
    def use():
        clock = Clock()
        with pytest.MonkeyPatch.context() as patch:
            for module in (filelock._api, filelock._soft):
                patch.setattr(module, "time", clock)
            yield clock

    return use
