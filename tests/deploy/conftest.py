"""Fixtures for deployment: folders of pictures, a run trained on one, and the console script."""

import numpy as np
import pytest
from PIL import Image

from mixshare.deploy import cli

CLASSES = {"ants": 0, "bees, and wasps": 150, "Ca\u0308fer": 75}  # name: brightness; one is NFD


def make_photos(folder, classes=CLASSES, count=12, side=24):
    """Save pictures of noise, each class of its own brightness."""
    random = np.random.default_rng(0)
    for name, brightness in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (side, side + 8, 3)) // 4 + brightness
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:02}.png")
    return folder


@pytest.fixture
def photos(tmp_path):
    """Return a folder of 36 pictures in three classes."""
    return make_photos(tmp_path / "photos")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Return a data folder for this test alone."""
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def mixshare_command(capsys):
    """Return `mixshare_command(*words)`: the console script's lines; it must succeed."""

    def run(*words):
        capsys.readouterr()
        status = cli.main([str(word) for word in words])
        printed, errors = capsys.readouterr()
        assert status == 0, errors
        return printed.splitlines()

    return run


@pytest.fixture
def refused(capsys, in_a_line):
    """Return `refused(*words)`: the message, checked to be one line, of a command that fails."""

    def run(*words):
        capsys.readouterr()
        assert cli.main([str(word) for word in words]) == 1
        printed, errors = capsys.readouterr()
        assert printed == "" and errors.startswith("mixshare: ") and errors.endswith("\n")
        return in_a_line(Exception(errors.removesuffix("\n")))

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Return `trained(monkeypatch)`: folders of pictures, data and a run on them, made once."""
    base = tmp_path_factory.mktemp("trained")

    def get(monkeypatch):
        monkeypatch.setenv("MIXSHARE_DATA", str(base / "data"))
        monkeypatch.setenv("MIXSHARE_OUTPUTS", str(base / "outputs"))
        words = ["--images", str(base / "photos"), "--size", "16", "--epochs", "4"]
        if not (base / "photos").exists():
            make_photos(base / "photos")
            assert cli.main(["train", *words]) == 0
        (folder,) = (base / "outputs" / "digits").glob("*/seed-1")
        return base / "photos", base / "data", folder

    return get
