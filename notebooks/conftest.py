"""For the chapters' regression test by nbval."""

import os

import pytest

from mixshare.files import outputs_folder


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup():
    """Give each of pytest's workers an outputs folder; a shared run would print that it waits."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    with pytest.MonkeyPatch.context() as patch:
        if worker:
            patch.setenv("MIXSHARE_OUTPUTS", str(outputs_folder() / f"nbval-{worker}"))
        return (yield)
