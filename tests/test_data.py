"""The embedded digits, and the real CIFAR-100 where it is there."""

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from mixshare.data import load_data


def pairs(images, labels):
    """A split as a multiset, without its order."""
    return Counter(
        (np.asarray(image).tobytes(), int(label))
        for image, label in zip(images, labels, strict=True)
    )


def enlarged_digits():
    """8x8 images of 17 levels to 16x16 of 256: each new pixel is 3/4 of the old one it lies in and 1/4 of the neighbour, along both axes."""
    old = np.pad(load_digits().images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = np.stack(
        [0.25 * old[:, :-2] + 0.75 * old[:, 1:-1], 0.75 * old[:, 1:-1] + 0.25 * old[:, 2:]], axis=2
    ).reshape(-1, 16, 10)
    both = np.stack(
        [
            0.25 * rows[:, :, :-2] + 0.75 * rows[:, :, 1:-1],
            0.75 * rows[:, :, 1:-1] + 0.25 * rows[:, :, 2:],
        ],
        axis=3,
    ).reshape(-1, 16, 16)
    return pairs(np.round(both * 255 / 16).astype(np.uint8), load_digits().target)


@pytest.mark.parametrize(
    ("name", "train", "test", "known"),
    [("digits", 1297, 500, "7c7aeb070c414dd913f8a887e3867bbbbba55e34687992131e24482ba06591df"),
     ("digits-few", 300, 100, "6e7ca52c5e414f095bf4bc670de750b1d216e417f2a056ad36f2f8f08573125d")],
)  # fmt: skip
def test_digits_are_uint8_images_of_16_by_16_grey_pixels_and_always_the_same(
    name, train, test, known
):
    found = load_data(name)
    assert [
        len(x)
        for x in (found.train_images, found.train_labels, found.test_images, found.test_labels)
    ] == [train, train, test, test]
    assert (
        found.shape == (16, 16, 1)
        and found.train_images.dtype == found.test_images.dtype == torch.uint8
    )
    assert found.train_labels.dtype == found.test_labels.dtype == torch.int64
    assert (found.digest, found.class_names) == (known, tuple("0123456789"))


@pytest.mark.parametrize("name", ["digits", "digits-few"])
def test_each_digit_keeps_its_share_within_one_image_in_both_splits(name):
    found, shares = load_data(name), np.bincount(load_digits().target) / 1797
    for labels in (found.train_labels, found.test_labels):
        assert abs(torch.bincount(labels).numpy() - len(labels) * shares).max() < 1


@pytest.mark.parametrize(("name", "share"), [("digits", 1797), ("digits-few", 400)])
def test_digits_are_scikit_learns_enlarged_bilinearly_and_none_is_in_both_splits(name, share):
    found, all_of_them = load_data(name), enlarged_digits()
    loaded = pairs(found.train_images, found.train_labels) + pairs(
        found.test_images, found.test_labels
    )
    assert all_of_them.total() == 1797 and loaded.total() == share and loaded <= all_of_them


@pytest.fixture(scope="module")
def cifar100():
    return load_data("cifar100")


@pytest.mark.cifar100
def test_cifar100_has_500_train_and_100_test_images_of_each_of_100_classes(cifar100):
    assert (
        cifar100.shape == (32, 32, 3)
        and len(set(cifar100.class_names)) == 100
        and cifar100.class_names[0] == "apple"
    )
    assert torch.bincount(cifar100.train_labels).tolist() == [500] * 100
    assert torch.bincount(cifar100.test_labels).tolist() == [100] * 100
    assert len(cifar100.train_images) == 50_000 and len(cifar100.test_images) == 10_000


@pytest.mark.cifar100
def test_cifar100_has_the_known_digest_in_any_order_of_rows(cifar100, tmp_path, monkeypatch):
    order = np.random.default_rng(0).permutation(50_000)
    np.savez(
        tmp_path / "cifar100.npz", train_images=cifar100.train_images.numpy()[order], train_labels=cifar100.train_labels.numpy()[order],
        test_images=cifar100.test_images.numpy()[::-1], test_labels=cifar100.test_labels.numpy()[::-1], class_names=np.array(cifar100.class_names),
    )  # fmt: skip
    monkeypatch.setenv("MIXSHARE_DATA", str(tmp_path))
    assert (
        load_data("cifar100").digest
        == cifar100.digest
        == "aff8ff203bf3035f987cbe860eca3a5b5151dd2112394645a45b0bd45b7ebc98"
    )


@pytest.mark.cifar100
def test_cifar100_has_the_mean_and_deviation_that_everybody_knows(cifar100):
    mean, deviation = cifar100.statistics
    np.testing.assert_allclose(mean, (0.50707516, 0.48654887, 0.44091784), atol=1e-7)
    np.testing.assert_allclose(deviation, (0.26733429, 0.25643846, 0.27615047), atol=1e-7)
