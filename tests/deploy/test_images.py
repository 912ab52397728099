"""Folders of pictures: every kind is read as people see it, or refused together with its like."""

import os
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.io import decode_image

from mixshare.data import load_data
from mixshare.deploy import images

LEVELS = np.add.outer(np.arange(48), np.arange(64)) * 2  # brighter to the lower right
GREY = Image.fromarray(LEVELS.astype(np.uint8))
RGB = Image.merge("RGB", (GREY, ImageOps.mirror(GREY), ImageOps.flip(GREY)))
OPACITY = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1)))
TURNED = Image.Exif()
TURNED[0x0112] = 6  # a quarter to the right
CLEAR = 20  # the level, or the entry of the palette, that is transparent
KINDS = {
    "16-bit.png": (Image.fromarray((LEVELS * 257).astype(np.uint16)), {}),
    "black-and-white.png": (GREY.convert("1"), {}),
    "cmyk.jpg": (RGB.convert("CMYK"), {"quality": 95}),
    "colour.png": (RGB, {}),
    "colour.jpg": (RGB, {"quality": 95}),
    "colour.webp": (RGB, {"lossless": True}),
    "grey.png": (GREY, {}),
    "grey.jpg": (GREY, {"quality": 95}),
    "grey-with-opacity.png": (Image.merge("LA", (GREY, OPACITY)), {}),
    "opacity.png": (Image.merge("RGBA", (*RGB.split(), OPACITY)), {}),
    "opacity.webp": (Image.merge("RGBA", (*RGB.split(), OPACITY)), {"lossless": True}),
    "palette.gif": (RGB.convert("P"), {}),
    "palette.png": (RGB.convert("P"), {}),
    "progressive.jpg": (RGB, {"quality": 95, "progressive": True}),
    "transparent-grey.png": (GREY, {"transparency": CLEAR}),
    "transparent-palette.gif": (RGB.quantize(64), {"transparency": CLEAR}),
    "transparent-palette.png": (RGB.quantize(64), {"transparency": CLEAR}),
    "turned.jpg": (RGB, {"quality": 95, "exif": TURNED}),
    "turned.png": (RGB, {"exif": TURNED}),
    "turned.webp": (RGB, {"lossless": True, "exif": TURNED}),
}


def as_seen(name, path) -> np.ndarray:
    """Return what people see of a picture on a white page: of JPEG, torchvision's; else drawn."""
    if name.endswith(".jpg"):
        return decode_image(path, "RGB", apply_exif_orientation=True).permute(1, 2, 0).numpy()
    drawn = GREY if name == "16-bit.png" else KINDS[name][0]
    levels = np.asarray(drawn.convert("RGBA")).astype(float)
    colours, opacity = levels[..., :3], levels[..., 3:] / 255
    page = colours * opacity + 255 * (1 - opacity)
    if name.startswith("transparent"):
        page[np.asarray(drawn) == CLEAR] = 255
        assert 10 < (page == 255).all(axis=2).sum() < 200
    return np.rot90(page, -1) if name.startswith("turned") else page


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_is_read_as_people_see_it(name, tmp_path):
    picture, options = KINDS[name]
    picture.save(tmp_path / name, **options)
    seen, read = as_seen(name, tmp_path / name), images.decode(tmp_path / name)
    assert read.dtype == torch.uint8 and read.permute(1, 2, 0).shape == seen.shape
    assert np.abs(read.permute(1, 2, 0).numpy() - seen.astype(int)).max() <= 3


@pytest.mark.parametrize("name", ["moving.gif", "moving.png", "moving.webp"])
def test_of_an_animation_the_first_frame_is_taken(name, tmp_path):
    first, *others = (RGB.rotate(angle).quantize(64).convert("RGB") for angle in (0, 90, 180))
    first.save(tmp_path / name, save_all=True, append_images=others, lossless=True)
    read = images.decode(tmp_path / name).permute(1, 2, 0).numpy()
    assert np.abs(read - np.asarray(first).astype(int)).max() <= 1


def test_pictures_are_brought_to_one_size_as_pillow_does(tmp_path):
    for number, size in enumerate([(64, 48), (20, 90), (33, 17)]):
        RGB.resize(size).save(tmp_path / f"{number}.png")
    paths = images.find_pictures(tmp_path)
    colour, grey = (images.read_pictures(paths, (16, 24, channels)) for channels in (3, 1))
    assert colour.shape == (3, 16, 24, 3) and grey.shape == (3, 16, 24, 1)
    for path, image, of_grey in zip(paths, colour.numpy(), grey.numpy(), strict=True):
        with Image.open(path) as picture:
            wanted = picture.resize((24, 16), Image.Resampling.BILINEAR)
            luminance = np.asarray(wanted.convert("L")).astype(int)
        assert np.abs(image - np.asarray(wanted).astype(int)).max() <= 2
        assert np.abs(of_grey[..., 0] - luminance).max() <= 3


def test_files_that_cannot_be_read_are_refused_together_before_anything_is_written(
    photos, data, outputs, refused
):
    whole = (photos / "ants" / "00.png").read_bytes()
    odd = {"empty.png": b"", "half.png": whole[: len(whole) // 2], "notes.txt": b"no picture"}
    for name, content in odd.items():
        (photos / "ants" / name).write_bytes(content)
    RGB.save(photos / "ants" / "z.bmp")
    RGB.save(photos / "ants" / "z.tiff")
    os.mkfifo(photos / "ants" / "pipe.png")
    (photos / "ants" / "nowhere.png").symlink_to("missing.png")
    message = refused("train", "--images", photos, "--size", 16)
    assert "7 of 43 files" in message and message.endswith("PNG, JPEG, GIF, WEBP")
    unreadable = [*odd, "z.bmp", "z.tiff", "pipe.png", "nowhere.png"]
    assert len(unreadable) == 7 and all(name in message for name in unreadable)
    assert not data.exists() and not outputs.exists()


def test_hidden_files_and_those_of_file_managers_are_no_pictures(photos):
    before = images.find_pictures(photos)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "ants/._00.png", ".cache/00.png"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"x")
    assert images.find_pictures(photos) == before and len(before) == 36
    assert list(images.find_classes(photos)) == sorted(path.name for path in photos.glob("[!.T]*/"))


@given(
    sizes=st.lists(st.integers(2, 400), min_size=2, max_size=20),
    share=st.floats(0, 1, exclude_min=True, exclude_max=True),
)
def test_each_class_is_split_alike_and_always_the_same(sizes, share):
    test = images.choose_test(sizes, share)
    assert np.array_equal(test, images.choose_test(sizes, share))
    for size, part in zip(sizes, np.split(test, np.cumsum(sizes)[:-1]), strict=True):
        assert len(part) == size and 1 <= part.sum() <= size - 1
        assert abs(part.sum() - share * size) <= 0.5 or part.sum() in (1, size - 1)


def test_the_archive_holds_each_picture_once_under_its_class(photos, data):
    classes = images.find_classes(photos)
    test = images.choose_test([12, 12, 12], 0.25)
    images.write_archive("mine", images.make_archive(classes, 16, test))
    made = load_data("mine")
    assert made.shape == (16, 16, 3) and made.class_names == tuple(sorted(classes))
    assert (len(made.train_images), len(made.test_images)) == (27, 9)
    rows = zip(
        torch.cat([made.train_images, made.test_images]),
        torch.cat([made.train_labels, made.test_labels]).tolist(),
        strict=True,
    )
    held = {(image.numpy().tobytes(), made.class_names[label]) for image, label in rows}
    read = {
        (images.read_pictures([path], made.shape).numpy().tobytes(), name)
        for name, paths in classes.items()
        for path in paths
    }
    assert held == read and len(read) == 36


@given(st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=4, unique=True))
def test_class_names_may_be_any_unicode(tmp_path_factory, names):
    names = [name for name in names if not set("/\0") & set(name) and not name.startswith(".")]
    names = [name for name in names if name not in ("Thumbs.db", "desktop.ini")]
    names += ["Cafe\u0301", unicodedata.normalize("NFC", "Cafe\u0301"), "日本", "👩‍👩‍👧"]
    names = sorted({name for name in names if len(name.encode(errors="replace")) < 200})
    folder = tmp_path_factory.mktemp("photos")
    for name in names:
        (folder / name).mkdir()
        for number in range(2):
            Image.new("RGB", (4, 4), (number, 9, 9)).save(folder / name / f"{number}.png")
    classes = images.find_classes(folder)
    content = images.make_archive(classes, 4, images.choose_test([2] * len(classes), 0.5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXSHARE_DATA", str(folder / ".data"))
        images.write_archive("mine", content)
        assert load_data("mine").class_names == tuple(names)


def test_too_few_classes_or_pictures_are_refused_in_a_line(
    photos, data, outputs, refused, tmp_path
):
    train = ("train", "--size", 16, "--images")
    assert "two or more" in refused(*train, photos / "ants")
    assert "two or more" in refused(*train, tmp_path / "nowhere")
    assert "two or more" in refused(*train, photos / "ants" / "00.png")
    (photos / "alone").mkdir()
    assert "alone (0)" in refused(*train, photos)
    (photos / "alone" / "one.png").write_bytes((photos / "ants" / "00.png").read_bytes())
    assert "alone (1)" in refused(*train, photos)
    (photos / "alone").rename(photos / os.fsdecode(b"\xff"))
    (photos / os.fsdecode(b"\xff") / "two.png").symlink_to(photos / "ants" / "00.png")
    assert "Unicode" in refused(*train, photos)
    assert not data.exists() and not outputs.exists()


def test_an_archive_is_named_after_its_folder_and_never_takes_anothers_name(tmp_path, refused):
    assert images.archive_name(tmp_path / "My photos (2024)", None) == "My-photos-2024"
    assert images.archive_name(tmp_path / "фото", None) == "pictures"
    assert images.archive_name(tmp_path / "x", "birds") == "birds"
    for name in ("digits", "digits-few", "cifar100", "cifar100-16px"):
        assert "--name" in refused("train", "--images", tmp_path / name)
    assert "not paths" in refused("train", "--images", tmp_path, "--name", "../x")


def test_an_archive_of_other_pictures_is_not_overwritten(photos, data, outputs, refused):
    images.write_archive("mine", b"content")
    images.write_archive("mine", b"content")
    with pytest.raises(OSError, match="other pictures.*--name"):
        images.write_archive("mine", b"others")
    words = ("train", "--images", photos, "--size", 16, "--name", "mine")
    assert "other pictures" in refused(*words)
    assert (data / "mine.npz").read_bytes() == b"content" and not outputs.exists()
