"""One environment, described in three places that must agree, and the one that tests run in."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = (ROOT / "requirements.lock").read_text().splitlines()
LOCK = {canonicalize_name(r.name): r for r in map(Requirement, LINES)}
EXTRAS = PROJECT["optional-dependencies"]
GROUPS = (PROJECT["dependencies"], EXTRAS["book"], EXTRAS["notebooks"], EXTRAS["test"])
WANTED = [Requirement(line) for group in GROUPS for line in group]
REMEDY = (
    "torch and torchvision are not of one build; install both from the same source, as `make env` "
    "does from requirements.lock"
)


def pinned(name):
    return str(LOCK[canonicalize_name(name)].specifier).removeprefix("==")


def test_torchvision_fits_to_torch():
    try:
        import torch
        import torchvision

        images = torchvision.datasets.FakeData(
            size=3,
            image_size=(3, 8, 8),
            num_classes=4,
            transform=torchvision.transforms.functional.to_tensor,
        )
        shapes = [tuple(images[k][0].shape) for k in range(len(images))]
        boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 6, 6]])
        kept = torchvision.ops.nms(boxes, torch.tensor([1.0, 2, 3]), 0.5)
    # Such as "operator torchvision::nms does not exist".
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.fail(f"{REMEDY} ({error})")
    assert shapes == [(3, 8, 8)] * 3 and kept.tolist() == [2, 1]


class TestLock:
    def test_each_line_is_one_exact_version_with_at_most_a_marker(self):
        form = re.compile(r"[a-z0-9][a-z0-9._-]*==[0-9][a-z0-9.]*( ; .+)?")
        for line in LINES:
            assert form.fullmatch(line) and "://" not in line and "@" not in line, line
        assert len(LOCK) == len(LINES) > 50, "a package is named twice"

    def test_it_holds_what_the_project_asks_for_on_every_system(self):
        for wanted in WANTED:
            name = canonicalize_name(wanted.name)
            assert name in LOCK, f"{wanted} is not in requirements.lock"
            assert wanted.specifier.contains(pinned(name), prereleases=True), wanted
            assert LOCK[name].marker is None, f"{wanted} is needed on every system"

    def test_torch_and_torchvision_are_pinned_exactly_in_both_places(self):
        for name, version in (("torch", "2.11.0"), ("torchvision", "0.26.0")):
            assert pinned(name) == version
            assert [str(r.specifier) for r in WANTED if r.name == name] == [f"=={version}"]

    def test_it_is_what_is_installed(self):
        here = [name for name, r in LOCK.items() if not r.marker or r.marker.evaluate()]
        installed = {
            canonicalize_name(each.name): each.version.split("+")[0]  # without a build's mark: +cpu
            for each in metadata.distributions()
        }
        versions = {name: (installed.get(name), pinned(name)) for name in here}
        wrong = {name: pair for name, pair in versions.items() if pair[0] != pair[1]}
        assert len(here) > 50 and not wrong, (
            f"installed and locked versions differ, `make env` brings them together: {wrong}"
        )

    def test_packages_of_a_gpu_are_asked_for_on_linux_alone(self):
        prefixes = ("nvidia-", "cuda-", "triton")
        gpu = [requirement for name, requirement in LOCK.items() if name.startswith(prefixes)]
        for system in ("linux", "darwin", "win32"):
            here = default_environment() | {"sys_platform": system}
            wanted = [r.name for r in gpu if not r.marker or r.marker.evaluate(here)]
            assert bool(wanted) == (system == "linux"), system


class TestConda:
    content = yaml.safe_load((ROOT / "environment.yml").read_text())

    def test_its_users_get_a_python_that_the_project_admits_and_pip(self):
        *packages, pip = self.content["dependencies"]
        versions = dict(each.partition("=")[::2] for each in packages)
        assert set(versions) == {"python", "pip"}, "all else comes from the lock"
        assert SpecifierSet(PROJECT["requires-python"]).contains(versions["python"])
        assert list(pip) == ["pip"] and "pip" in packages
        assert self.content["name"] == PROJECT["name"]
        assert self.content["channels"] == ["conda-forge"]

    def test_its_users_get_the_lock_and_this_project_in_lines_that_pip_can_read(self):
        lines = self.content["dependencies"][-1]["pip"]
        # pip refuses `--no-deps` in a file, and conda hands it one
        assert sorted(lines) == ["-e .", "-r requirements.lock"]


def test_this_python_is_one_that_the_project_admits():
    version = ".".join(map(str, sys.version_info[:3]))
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="not what `make env` makes")
def test_a_folder_of_the_packages_name_such_as_a_clone_does_not_hide_it_from_python(tmp_path):
    (tmp_path / "mixshare").mkdir()
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", "import mixshare; print(mixshare.RunConfig.__name__)"]
    done = subprocess.run(command, cwd=tmp_path, env=plain, capture_output=True, text=True)
    assert done.stdout == "RunConfig\n", done.stderr
