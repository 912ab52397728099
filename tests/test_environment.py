"""One environment, described in three places that must not drift apart, and the one that these tests run in."""

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

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = (ROOT / "requirements.lock").read_text().splitlines()
LOCK = {canonicalize_name(r.name): r for r in (Requirement(line) for line in LINES)}
EXTRAS = PROJECT["optional-dependencies"]
WANTED = [
    Requirement(r)
    for group in (PROJECT["dependencies"], EXTRAS["book"], EXTRAS["notebooks"], EXTRAS["test"])
    for r in group
]  # `peer` is not locked
REMEDY = "torch and torchvision are not of one build; install both from the same source, as `make env` does from requirements.lock"


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
        shapes = [tuple(image.shape) for image, _ in (images[k] for k in range(len(images)))]
        kept = torchvision.ops.nms(
            torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 6, 6]]),
            torch.tensor([1.0, 2, 3]),
            0.5,
        )
    except (
        ImportError,
        RuntimeError,
        AttributeError,
    ) as error:  # for one: "operator torchvision::nms does not exist"
        pytest.fail(f"{REMEDY} ({error})")
    assert shapes == [(3, 8, 8)] * 3 and kept.tolist() == [2, 1]


def test_each_line_of_the_lock_is_one_exact_version_with_at_most_a_marker():
    form = re.compile(r"[a-z0-9][a-z0-9._-]*==[0-9][a-z0-9.]*( ; .+)?")
    assert [
        line for line in LINES if not form.fullmatch(line) or "://" in line or "@" in line
    ] == []
    assert len(LOCK) == len(LINES) > 50, "a package is named twice"


@pytest.mark.parametrize("requirement", WANTED, ids=str)
def test_the_lock_holds_what_the_project_asks_for(requirement):
    assert canonicalize_name(requirement.name) in LOCK, f"{requirement} is not in requirements.lock"
    assert requirement.specifier.contains(pinned(requirement.name), prereleases=True)
    assert LOCK[canonicalize_name(requirement.name)].marker is None, (
        "what the project asks for is needed on every system"
    )


@pytest.mark.parametrize(("name", "version"), [("torch", "2.11.0"), ("torchvision", "0.26.0")])
def test_torch_and_torchvision_are_pinned_exactly_in_both_places(name, version):
    assert pinned(name) == version and [str(r.specifier) for r in WANTED if r.name == name] == [
        f"=={version}"
    ]


def test_what_is_installed_is_what_the_lock_says():
    here = [
        name
        for name, requirement in LOCK.items()
        if not requirement.marker or requirement.marker.evaluate()
    ]
    installed = {
        canonicalize_name(each.name): each.version.split("+")[0]
        for each in metadata.distributions()
    }  # without a build's mark: +cpu
    wrong = {
        name: (installed.get(name), pinned(name))
        for name in here
        if installed.get(name) != pinned(name)
    }
    assert len(here) > 50 and not wrong, (
        f"installed and locked versions differ, `make env` brings them together: {wrong}"
    )


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_packages_of_a_gpu_are_asked_for_on_linux_alone(system):
    here = default_environment() | {"sys_platform": system}
    gpu = [
        name
        for name, r in LOCK.items()
        if name.startswith(("nvidia-", "cuda-", "triton"))
        and (not r.marker or r.marker.evaluate(here))
    ]
    assert bool(gpu) == (system == "linux")


CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())


def test_conda_users_get_a_python_that_the_project_admits_and_pip():
    *packages, pip = CONDA["dependencies"]
    python = {name: version for name, _, version in (each.partition("=") for each in packages)}[
        "python"
    ]
    assert (
        SpecifierSet(PROJECT["requires-python"]).contains(python)
        and "pip" in packages
        and list(pip) == ["pip"]
    )
    assert CONDA["name"] == PROJECT["name"] and CONDA["channels"] == ["conda-forge"]
    assert {each.partition("=")[0] for each in packages} == {"python", "pip"}, (
        "all else comes from the lock"
    )


def test_conda_users_get_the_packages_of_the_lock_and_this_project_in_lines_that_pip_can_read():
    lines = CONDA["dependencies"][-1]["pip"]
    assert (
        "-r requirements.lock" in lines and "-e ." in lines
    )  # pip refuses `--no-deps` in a file, and conda hands it one
    assert all(re.fullmatch(r"-r requirements\.lock|-e \.", line) for line in lines)


def test_this_python_is_one_that_the_project_admits():
    assert SpecifierSet(PROJECT["requires-python"]).contains(
        ".".join(map(str, sys.version_info[:3]))
    )


@pytest.mark.skipif(
    Path(sys.prefix) != ROOT / ".venv", reason="not the environment that `make env` makes"
)
def test_a_folder_of_the_packages_name_such_as_a_clone_does_not_hide_it_from_python_started_beside_it(
    tmp_path,
):
    (tmp_path / "mixshare").mkdir()
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", "import mixshare; print(mixshare.train.__name__)"]
    done = subprocess.run(command, cwd=tmp_path, env=plain, capture_output=True, text=True)
    assert done.stdout == "train\n", done.stderr
