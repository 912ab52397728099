"""For the chapters' regression test by nbval."""

import os

import pytest

from mixshare.files import outputs_folder


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup():
    """Give each of pytest's workers an outputs folder, apart from those of batches too.

    A run that another process trains would print that it waits.
    """
    folder = f"nbval-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXSHARE_OUTPUTS", str(outputs_folder() / folder))
        return (yield)
