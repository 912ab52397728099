"""The built-in digits, and the real CIFAR-100 where it is available."""

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from mixshare import files
from mixshare.data import KNOWN_DIGESTS, current_digest, load_data

SIZES = {"digits": (1297, 500), "digits-few": (300, 100)}
DIGESTS = {
    "digits": "7c7aeb070c414dd913f8a887e3867bbbbba55e34687992131e24482ba06591df",
    "digits-few": "6e7ca52c5e414f095bf4bc670de750b1d216e417f2a056ad36f2f8f08573125d",
}


def pairs(images, labels):
    """Return a split as a multiset, without its order."""
    rows = zip(images, labels, strict=True)
    return Counter((np.asarray(image).tobytes(), int(label)) for image, label in rows)


def doubled(levels):
    """Double the middle axis bilinearly: 3/4 of the old pixel, 1/4 of its neighbour."""
    before, own, after = levels[:, :-2], levels[:, 1:-1], levels[:, 2:]
    halves = np.stack([0.25 * before + 0.75 * own, 0.75 * own + 0.25 * after], axis=2)
    return halves.reshape(len(levels), -1, levels.shape[2])


def enlarged_digits():
    """Return all 8x8 digits of 17 levels as 16x16 pixels of 256, computed by hand."""
    digits = load_digits()
    levels = np.pad(digits.images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    tall = doubled(levels).transpose(0, 2, 1)
    images = doubled(tall).transpose(0, 2, 1)
    return pairs(np.round(images * 255 / 16).astype(np.uint8), digits.target)


@pytest.mark.parametrize("name", SIZES)
def test_digits_are_uint8_images_of_16_by_16_grey_pixels_and_always_the_same(name):
    data, (train, test) = load_data(name), SIZES[name]
    assert (len(data.train_images), len(data.train_labels)) == (train, train)
    assert (len(data.test_images), len(data.test_labels)) == (test, test)
    assert data.shape == (16, 16, 1)
    assert data.train_images.dtype == data.test_images.dtype == torch.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    assert (data.digest, data.class_names) == (DIGESTS[name], tuple("0123456789"))


@pytest.mark.parametrize("name", SIZES)
def test_each_digit_keeps_its_share_within_one_image_in_both_splits(name):
    data, shares = load_data(name), np.bincount(load_digits().target) / 1797
    for labels in (data.train_labels, data.test_labels):
        assert abs(torch.bincount(labels).numpy() - len(labels) * shares).max() < 1


@pytest.mark.parametrize("name", SIZES)
def test_digits_are_scikit_learns_enlarged_bilinearly_and_none_is_in_both_splits(name):
    data, enlarged = load_data(name), enlarged_digits()
    train = pairs(data.train_images, data.train_labels)
    loaded = train + pairs(data.test_images, data.test_labels)
    assert enlarged.total() == 1797 and loaded.total() == sum(SIZES[name]) and loaded <= enlarged


@pytest.fixture(scope="module")
def cifar100():
    return load_data("cifar100")


@pytest.mark.cifar100
def test_cifar100_has_500_train_and_100_test_images_of_each_of_100_classes(cifar100):
    assert cifar100.shape == (32, 32, 3)
    assert len(set(cifar100.class_names)) == 100 and cifar100.class_names[0] == "apple"
    assert torch.bincount(cifar100.train_labels).tolist() == [500] * 100
    assert torch.bincount(cifar100.test_labels).tolist() == [100] * 100
    assert len(cifar100.train_images) == 50_000 and len(cifar100.test_images) == 10_000


@pytest.mark.cifar100
def test_cifar100_has_the_known_digest_in_any_order_of_rows(cifar100, tmp_path, monkeypatch):
    order = np.random.default_rng(0).permutation(50_000)
    np.savez(
        tmp_path / "cifar100.npz",
        train_images=cifar100.train_images.numpy()[order],
        train_labels=cifar100.train_labels.numpy()[order],
        test_images=cifar100.test_images.numpy()[::-1],
        test_labels=cifar100.test_labels.numpy()[::-1],
        class_names=np.array(cifar100.class_names),
    )
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path))
    known = "aff8ff203bf3035f987cbe860eca3a5b5151dd2112394645a45b0bd45b7ebc98"
    assert load_data("cifar100").digest == cifar100.digest == KNOWN_DIGESTS["cifar100"] == known


@pytest.mark.cifar100
def test_cifar100_has_the_well_known_mean_and_deviation(cifar100):
    mean, deviation = cifar100.statistics
    np.testing.assert_allclose(mean, (0.50707516, 0.48654887, 0.44091784), atol=1e-7)
    np.testing.assert_allclose(deviation, (0.26733429, 0.25643846, 0.27615047), atol=1e-7)


# ---- CIFAR-100 in small


@pytest.fixture(scope="module")
def small():
    return load_data("cifar100-16px")


@pytest.fixture(scope="module")
def archive():
    """Return CIFAR-100's archive as NumPy reads it."""
    with np.load(files.data_folder() / "cifar100.npz") as stored:
        return dict(stored)


def area_averaged(images):
    """Average 2x2 pixels in whole numbers, a half upwards: (N, 32, 32, 3) to (N, 16, 16, 3)."""
    sums = images.astype(np.int64).reshape(-1, 16, 2, 16, 2, 3).sum(axis=(2, 4))
    return ((sums + 2) // 4).astype(np.uint8)


def first_of_each_class(images, labels, count=60):
    """Return the rows whose image and label, as bytes, have their class's first SHA-256s."""
    hashes = []
    for image, label in zip(images, labels, strict=True):
        content = image.tobytes() + int(label).to_bytes(8, "little")
        hashes.append(hashlib.sha256(content).hexdigest())
    rows = []
    for k in range(100):
        of_class = np.flatnonzero(labels == k)
        rows += sorted(of_class, key=hashes.__getitem__)[:count]
    return np.array(rows)


@pytest.mark.cifar100
def test_cifar100_in_small_has_60_train_images_a_class_and_all_test_images_of_16_pixels(small):
    assert small.shape == (16, 16, 3) and len(small.class_names) == 100
    assert torch.bincount(small.train_labels).tolist() == [60] * 100
    assert torch.bincount(small.test_labels).tolist() == [100] * 100
    known = "8b50fdaf96571456f3ce3ffb46e5aeba214b3ce0a93437c0f05cb16b6bea3ec6"
    assert small.digest == KNOWN_DIGESTS["cifar100-16px"] == current_digest("cifar100-16px")
    assert small.digest == known and small.name == "cifar100-16px"


@pytest.mark.cifar100
def test_cifar100_in_small_averages_areas_of_the_first_originals_of_each_class(
    small, cifar100, archive
):
    images, labels = archive["train_images"], archive["train_labels"]
    rows = first_of_each_class(images, labels)
    expected = pairs(area_averaged(images[rows]), labels[rows])
    assert pairs(small.train_images, small.train_labels) == expected
    expected = pairs(area_averaged(archive["test_images"]), archive["test_labels"])
    assert pairs(small.test_images, small.test_labels) == expected
    assert small.class_names == cifar100.class_names


@pytest.mark.cifar100
def test_cifar100_in_small_does_not_depend_on_the_order_of_the_archives_rows(
    small, archive, tmp_path, monkeypatch
):
    order = np.random.default_rng(0).permutation(50_000)
    shuffled = {name: archive[name][order] for name in ("train_images", "train_labels")}
    np.savez(tmp_path / "cifar100.npz", **archive | shuffled)
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path))
    again = load_data("cifar100-16px")
    assert torch.equal(again.train_images, small.train_images)
    assert torch.equal(again.train_labels, small.train_labels)
