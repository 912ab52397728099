"""An exported network gives the run's very answers, elsewhere; its card says what it is."""

import json
import re
import subprocess
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml

from mixshare.batch import Normalise
from mixshare.data import load_data
from mixshare.deploy import export as deploy
from mixshare.files import project_root


@pytest.fixture(scope="module")
def run(finished):
    return finished()


@pytest.fixture(scope="module")
def data(run):
    return load_data(run.config.dataset)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Return `exported(kind)`: the path of a run's network, exported once."""
    folder = tmp_path_factory.mktemp("exported")

    def get(kind):
        path = folder / kind / f"digits{deploy.FORMATS[kind][0]}"
        if not path.exists():
            deploy.export(run, kind, path)
        return path

    return get


def logits_of_the_ensemble(run, data):
    """Return the mean of the members' logits on the test images, from the unfolded network."""
    inputs = Normalise(data).inputs(data.test_images)
    with torch.no_grad():
        return run.model(inputs.expand(run.model.members, -1, -1, -1, -1)).mean(dim=0).numpy()


def loaded(path):
    """Return an exported network as a function, read as its users do."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        return lambda pixels: session.run(["logits"], {"images": pixels})[0]
    with warnings.catch_warnings(action="ignore"):
        network = torch.export.load(path).module()
    return lambda pixels: network(torch.from_numpy(pixels)).detach().numpy()


@pytest.mark.parametrize("kind", deploy.FORMATS)
def test_its_logits_are_the_ensembles_for_any_number_of_images(exported, run, data, kind):
    network, wanted = loaded(exported(kind)), logits_of_the_ensemble(run, data)
    pixels = np.ascontiguousarray(data.test_images.permute(0, 3, 1, 2).numpy())
    assert np.ptp(wanted) > 1
    for start, end in ((0, 1), (1, 4), (4, 100)):
        np.testing.assert_allclose(network(pixels[start:end]), wanted[start:end], atol=1e-5)


@pytest.mark.parametrize("kind", deploy.FORMATS)
def test_its_accuracy_on_all_test_images_is_the_runs(exported, run, data, kind):
    pixels = np.ascontiguousarray(data.test_images.permute(0, 3, 1, 2).numpy())
    answers = loaded(exported(kind))(pixels).argmax(axis=1)
    accuracy = (answers == data.test_labels.numpy()).mean()
    assert accuracy == run.metrics["accuracy_ensemble"]
    card = exported(kind).with_name("README.md").read_text()
    assert f"{exported(kind).name}: accuracy {accuracy:.2%}, the run's {accuracy:.2%}; 100" in card


def test_the_comparison_tells_of_a_network_that_answers_otherwise(run, data):
    wrong = np.full((100, 10), 0.0)
    wrong[:, 3] = 1  # it says 3 to everything
    batches = iter(np.split(wrong, 1))
    text = deploy.compare(run, data, lambda pixels: next(batches)[: len(pixels)], "x.onnx")
    accuracy = (data.test_labels == 3).double().mean()
    same = (run.scores["answer"][0] == 3).sum()
    assert f"accuracy {accuracy:.2%}, the run's" in text and f"; {same} of all 100" in text


@pytest.mark.parametrize("method, overrides", [("single", {}), ("mimo", {"members": 3})])
def test_any_number_of_members_is_folded(finished, data, tmp_path, method, overrides):
    run = finished(method, **overrides)
    path, _ = deploy.export(run, "onnx", tmp_path / "x.onnx")
    pixels = np.ascontiguousarray(data.test_images.permute(0, 3, 1, 2).numpy())
    wanted = logits_of_the_ensemble(run, data)
    np.testing.assert_allclose(loaded(path)(pixels), wanted, atol=1e-5)
    kernels = [w for w in onnx.load(path).graph.initializer if list(w.dims) == [16, 1, 3, 3]]
    assert len(kernels) == 1  # one encoder


def test_an_onnx_model_is_valid_and_says_how_to_use_it(exported, run, data):
    model = onnx.load(exported("onnx"))
    onnx.checker.check_model(model, full_check=True)
    (pixels,), (logits,) = model.graph.input, model.graph.output
    assert (pixels.name, logits.name) == ("images", "logits")
    assert pixels.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    sizes = [size.dim_value for size in pixels.type.tensor_type.shape.dim]
    assert sizes == [0, 1, 16, 16]  # 0: any
    held = {each.key: json.loads(each.value) for each in model.metadata_props}
    assert held["classes"] == list(data.class_names)
    assert held["config"] == run.config.to_dict() and held["data_digest"] == data.digest
    assert "(N, 1, 16, 16), grey" in held["input"] and "resize" in held["preprocessing"]


ELSEWHERE = """
import json, sys, warnings
sys.modules["mixshare"] = None  # not on that machine
import torch
warnings.simplefilter("ignore")
extra = {"metadata.json": ""}
network = torch.export.load(sys.argv[1], extra_files=extra).module()
pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
logits = network(pixels)
print(json.dumps([logits[0].tolist(), json.loads(extra["metadata.json"])["classes"]]))
"""


def test_torchs_archive_runs_without_this_package(exported, data):
    command = [sys.executable, "-c", ELSEWHERE, exported("torch")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    logits, classes = json.loads(done.stdout)
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    (wanted,) = loaded(exported("onnx"))(pixels)
    np.testing.assert_allclose(logits, wanted, atol=1e-4)
    assert classes == list(data.class_names)


@pytest.mark.parametrize("kind", deploy.FORMATS)
def test_no_file_names_a_folder_of_this_machine(exported, kind):
    for path in exported(kind).parent.iterdir():
        assert str(project_root()).encode() not in path.read_bytes(), path.name


def test_a_card_has_the_form_of_the_hub_and_the_runs_figures(exported, run, data):
    _, head, body = exported("onnx").with_name("README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields["pipeline_tag"] == "image-classification" and "accuracy" in fields["metrics"]
    assert fields["license"] and fields["tags"] and fields["datasets"] == ["digits-few"]
    (model,) = fields["model-index"]
    (result,) = model["results"]
    assert result["dataset"]["name"] == "digits-few"
    figures = {each["type"]: each["value"] for each in result["metrics"]}
    metrics = run.metrics
    assert figures["accuracy"] == metrics["accuracy_ensemble"]
    assert (figures["nll"], figures["ece"]) == (metrics["nll"], metrics["ece"])
    assert data.digest in body and run.config.digest in body and "## Limits" in body
    blocks = re.findall(r"```json\n(.*?)```", body, re.S)
    assert [json.loads(block) for block in blocks] == [
        list(data.class_names),
        run.config.to_dict(),
    ]
    assert "{" not in re.sub(r"```.*?```", "", body, flags=re.S)  # every field is filled in


def test_the_intervals_of_a_card_are_wilsons_and_students(exported, run):
    card = exported("onnx").with_name("README.md").read_text()
    n, share = 100, run.metrics["accuracy_ensemble"]
    z = 1.959963985
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    assert f"| {middle - half:.2%} to {middle + half:.2%} (Wilson)" in card
    nll = run.scores["nll"][0].astype(float)
    half = 1.984217 * nll.std(ddof=1) / n**0.5  # t with 99 degrees of freedom
    low, high = re.search(r"\| (\S+) to (\S+) \(t\)", card).groups()
    assert [float(low), float(high)] == pytest.approx(
        [nll.mean() - half, nll.mean() + half], abs=2e-4
    )


def test_by_default_it_is_written_among_the_outputs(copied, mixshare_command, outputs):
    run = copied()
    first, comparison = mixshare_command("export", run.folder, "--format", "torch")
    path = outputs / "exported" / "smoke" / "mixshare" / "seed-1" / "model.pt2"
    assert f"{path.stat().st_size:,} bytes" in first and "accuracy" in comparison
    assert sorted(each.name for each in path.parent.iterdir()) == ["README.md", "model.pt2"]


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    finished, refused, tmp_path, monkeypatch
):
    folder = finished().folder
    assert "possible are onnx, torch" in refused("export", folder, "--format", "tflite")
    assert "a name in .onnx" in refused("export", folder, "--out", tmp_path / "model.pt2")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    message = refused("export", folder, "--out", tmp_path / "x.onnx")
    assert "onnxscript" in message and "pip install 'mixshare[deploy]'" in message
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "onnxruntime" in refused("export", folder, "--out", tmp_path / "x.onnx")
    monkeypatch.undo()
    (tmp_path / "README.md").write_text("# My project\n")
    assert "README.md is not of mixshare" in refused("export", folder, "--out", tmp_path / "x.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["README.md"]


def test_sizes_count_what_folding_saves(run, exported):
    table = deploy.sizes(run, rounds=3).set_index("network")
    encoder = 16 * 1 * 9
    classifier = 64 * 10 + 10
    saved = table.loc["as trained", "bytes"] - table.loc["folded", "bytes"]
    assert saved == 4 * (encoder + classifier)
    assert abs(table.loc["ONNX", "bytes"] - exported("onnx").stat().st_size) < 100
    times = [table[f"milliseconds{end}"] for end in ("_low", "", "_high")]
    assert (times[0] > 0).all() and all(
        (a <= b).all() for a, b in zip(times, times[1:], strict=False)
    )


def test_without_the_extra_sizes_are_those_of_torch(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert deploy.sizes(run, rounds=1)["network"].tolist() == ["as trained", "folded"]
