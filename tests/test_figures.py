"""Figures as a paper prints them: properties that hold for every public function that draws one, present and future."""

import inspect
import re
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from importlib import resources
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

from mixshare import figures
from mixshare.config import METHODS, title
from mixshare.figures import style
from mixshare.files import project_root
from mixshare.studies import ADJUSTMENTS, ALIGNMENTS
from mixshare.targets import DEFAULT_METHODS

DRAWING = {name: getattr(figures, name) for name in figures.__all__}
DRAWING = {
    name: function
    for name, function in DRAWING.items()
    if inspect.signature(function).return_annotation is Figure
}
LEAST = 7  # points, as printed
RANDOM = np.random.default_rng(0)
READERS_OWN = {
    "font.size": 30.0,
    "axes.titlesize": 30.0,
    "savefig.bbox": "tight",
    "savefig.facecolor": "red",
    "pdf.fonttype": 3,
    "lines.markeredgecolor": "green",
}


def rand(*shape):
    return torch.from_numpy(RANDOM.random(shape)).float()


def runs_of(names):
    return pd.DataFrame(
        [
            {
                "method": name,
                "seed": seed,
                "accuracy_ensemble": RANDOM.uniform(0.97, 1),
                "nll": RANDOM.random(),
            }
            for name in names
            for seed in (1, 2, 3)
        ]
    )


def pairs_of(names, figure="accuracy_ensemble"):
    spread = {"low": -0.02, "difference": 0.001, "high": 0.015}
    pairs = [
        {"method": "mixshare", "other": name, "figure": figure, **spread}
        for name in names
        if name != "mixshare"
    ]
    return pd.DataFrame(pairs, columns=["method", "other", "figure", *spread])


def mixing(members, rows=4):
    masks, features = rand(members, rows, 1, 16, 16), rand(rows, 4, 4)
    return (
        rand(members, rows, 1, 16, 16),
        masks / masks.sum(dim=0),
        rand(rows, 16, 16),
        features,
        features * rand(members, rows, 4, 4),
    )


def history(epochs):
    names = (
        "loss",
        "test_accuracy_ensemble",
        "test_accuracy_individual",
        "kernel_cosine",
        "kernel_norm_ratio",
    )
    return pd.DataFrame({"epoch": range(epochs), **{name: RANDOM.random(epochs) for name in names}})


def answers(members, names, rows=8):
    labels = torch.arange(rows) % len(names)
    return (
        (rand(rows, 16, 16, 3) * 255).to(torch.uint8),
        rand(members + 1, rows, len(names)).softmax(dim=2),
        labels,
        names,
    )


def along(lines, values, seeds=3):
    widths = [
        {"width": value, "line": line} for line in lines for value in values for _ in range(seeds)
    ]
    rows = pd.concat([runs_of(lines[:1]).iloc[:1]] * len(widths), ignore_index=True).assign(
        **pd.DataFrame(widths)
    )
    pairs = [
        pairs_of(lines, name).assign(width=value)
        for name in ("accuracy_ensemble", "nll")
        for value in values
    ]
    pairs = pd.concat(pairs, ignore_index=True)
    return rows, pairs.assign(line=pairs["other"])[: None if seeds > 1 else 0], "width"


def sharing(names):
    numbers = {
        "overlap_low": 0.5,
        "overlap": 0.6,
        "overlap_high": 0.7,
        "null_5": 0.3,
        "null_95": 0.5,
    }
    return pd.DataFrame(
        [
            {"method": name, "seed": seed, "block": block, **numbers}
            for name in names
            for seed in (1, 2, 3)
            for block in (1, 2, 3)
        ]
    )


def adjusted():
    sizes = {
        f"{start}{end}": value
        for start in ("", "nll_")
        for end, value in {"difference": -0.3, "low": -0.9, "high": 0.5}.items()
    }
    return pd.DataFrame([{"base": row.base, "change": row.change, **sizes} for row in ADJUSTMENTS])


ALL, ENSEMBLE = list(METHODS), "deep ensemble of 2"
CIFAR = [
    "apple",
    "sweet_pepper",
    "aquarium_fish",
    "caterpillar",
    "pickup_truck",
    "willow_tree",
    "worm",
]
KINDS = [
    "convolutions, backward",
    "convolutions, forward",
    "batch norm",
    "ReLU",
    "optimizer",
    "the rest",
]
SIZES = {
    "width": (1, 2, 4),
    "members": (2, 4, 8),
    "batch_size": (32, 64, 128),
    "side": (16, 32, 64),
}
GROWN = pd.DataFrame(
    [
        {"what": what, "size": size, "seconds": size / 100}
        for what, sizes in SIZES.items()
        for size in sizes
    ]
)
SHARES = pd.DataFrame(
    RANDOM.dirichlet(np.ones(6), size=2), index=["paper", "digits"], columns=KINDS
)

# Each function's arguments, small and at their worst: the most methods, the longest names, the fewest rows.
EXAMPLES = {
    "mixing": [mixing(1), mixing(2), mixing(3, rows=1)],
    "schedule": [(np.geomspace(0.1, 0.0001, 400), 10), ([0.1, 0.1, 0.01, 0.01], 2)],
    "curves": [(history(2), "mimo"), (history(300), "mixshare+width=2")],
    "answers": [answers(2, CIFAR), answers(1, [str(n) for n in range(10)]), answers(3, CIFAR)],
    "results": [
        (runs_of([*ALL, ENSEMBLE]), pairs_of(ALL), "mixshare"),
        (runs_of(ALL[-1:]), pairs_of([]), "mixshare"),
        (runs_of([f"{name}+encoder_init=independent" for name in ALL]), pairs_of([]), "mixshare"),
        (
            runs_of([f"{name}+width={width}" for width in range(2, 12) for name in ALL]),
            pairs_of([f"{ALL[0]}+width=2"]),
            "mixshare",
        ),
    ],
    "along": [
        along([*ALL, ENSEMBLE], (1.0, 2.0, 4.0)),
        along(ALL[-2:], (0.0, 0.1, 0.3)),
        along(ALL, (1.0, 2.0), seeds=1),
    ],
    "overlaid": [
        (
            [
                [(f"{title(name)}, block {k}", rand(2, 16 * k)) for name in DEFAULT_METHODS]
                for k in (1, 2, 3)
            ],
            "importance",
            "feature maps, sorted",
        ),
        ([[("MixShare", rand(2, 16))]], "L1 norm of kernel", "16 channels, sorted"),
    ],
    "overlaps": [
        (sharing(ALL[1:]),),
        (sharing(["mixshare", *(f"mixshare+encoder_init={start}" for start in ALIGNMENTS[1:])]),),
        (sharing(["mimo"]),),
    ],
    "alignment": [
        ({start: [history(40), history(40)] for start in ALIGNMENTS},),
        ({"identical": [history(2)]},),
    ],
    "kernels": [
        ({start: [rand(16, 3, 3, 3) - 0.5, rand(16, 3, 3, 3) - 0.5] for start in ALIGNMENTS},),
        ({"half": [rand(16, 1, 3, 3)] * 4},),
    ],
    "adjustments": [(adjusted(),), (adjusted().iloc[:1],)],
    "time_spent": [(SHARES,), (SHARES.iloc[:1, :3],)],
    "growths": [(GROWN, {"width": 1.5, "members": 0.13, "batch_size": 0.82, "side": 1.98})],
}
CASES = [(name, number) for name in DRAWING for number in range(len(EXAMPLES.get(name, [])))]


@cache
def laid_out(case):
    """The figure of one case, drawn once for all tests, as it is printed."""
    name, number = case
    figure = DRAWING[name](*EXAMPLES[name][number])
    figure.draw_without_rendering()
    return figure


@pytest.fixture
def drawn(request):
    return laid_out(request.param)


def every_figure(test):
    return pytest.mark.parametrize(
        "drawn", CASES, ids=lambda case: f"{case[0]}-{case[1]}", indirect=True
    )(test)


def words(figure):
    """Every piece of text that is to be seen; a tick beyond its axis' ends is not."""
    beyond = set()
    for axes in figure.findobj(Axes):
        for axis, (low, high) in (
            (axes.xaxis, sorted(axes.get_xlim())),
            (axes.yaxis, sorted(axes.get_ylim())),
        ):
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low - 1e-9 <= tick.get_loc() <= high + 1e-9 or not axes.axison:
                    beyond |= {tick.label1, tick.label2}
    seen = [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in beyond
    ]
    return [text for text in seen if text.axes is None or text.axes.get_visible()]


def is_number(label):
    return re.fullmatch(r"[-−]?[\d.,]+|\$.*\$", label.get_text().strip())


def lightness(colour):
    """CIE L* of a colour, 0 to 100: what is left of it in grey print."""
    luminance = linear(colour) @ (0.2126, 0.7152, 0.0722)
    return 116 * np.cbrt(luminance) - 16 if luminance > 0.008856 else 903.3 * luminance


def linear(colour):
    values = np.array(to_rgb(colour))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


# Machado, Oliveira and Fernandes, IEEE TVCG 15 (6), 2009, table 1, severity 1.0; on linear RGB.
EYES = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


def seen_by(eyes, colour):
    values = np.clip(EYES[eyes] @ linear(colour), 0, 1)
    return tuple(np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055))


def shape(artist):
    """What tells a line or a bar from another without colour."""
    if hasattr(artist, "get_marker"):
        dashes = artist.get_linestyle() if artist.get_linestyle() not in ("None", "none") else ""
        return (
            artist.get_marker(),
            dashes,
            artist._unscaled_dash_pattern if dashes == "--" else None,
        )
    return artist.get_hatch() if hasattr(artist, "get_hatch") else None


def fill(artist):
    return (
        artist.get_color()
        if hasattr(artist, "get_color")
        else tuple(np.atleast_2d(artist.get_facecolor())[0][:3])
    )


def handles(figure):
    """What each legend shows, in its order."""
    return [legend.legend_handles for legend in figure.findobj(Legend)]


class TestEveryFigure:
    def test_has_an_example_here(self):
        assert len(DRAWING) >= 13 and [name for name in DRAWING if not EXAMPLES.get(name)] == []
        assert set(EXAMPLES) <= set(DRAWING)

    @every_figure
    def test_is_as_wide_as_a_column_or_a_page(self, drawn):
        assert drawn.get_figwidth() in style.WIDTHS.values() and 0.5 < drawn.get_figheight() < 9.3

    @every_figure
    def test_has_no_text_too_small_to_read_in_print(self, drawn):
        assert min(text.get_fontsize() for text in words(drawn)) >= LEAST

    @every_figure
    def test_has_no_size_of_text_that_the_style_sheet_does_not_set(self, drawn):
        with plt.style.context(style.SHEET):
            named = {
                plt.rcParams[name]
                for name in plt.rcParams
                if name.endswith(("labelsize", "titlesize", "fontsize", "font.size"))
            }
        assert {text.get_fontsize() for text in words(drawn)} <= named

    @every_figure
    def test_cuts_no_text_off_at_its_edge(self, drawn):
        left, bottom, right, top = drawn.bbox.extents
        for text in words(drawn):
            box = text.get_window_extent()
            assert (
                left - 0.5 <= box.x0
                and box.x1 <= right + 0.5
                and bottom - 0.5 <= box.y0
                and box.y1 <= top + 0.5
            ), text.get_text()

    @every_figure
    def test_writes_no_text_over_another(self, drawn):
        boxes = [(text.get_text(), text.get_window_extent()) for text in words(drawn)]
        for (one, a), (other, b) in combinations(boxes, 2):
            across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert across < 0.5 or down < 0.5, (one, other)

    @every_figure
    def test_keeps_its_legend_off_the_data(self, drawn):
        panels = [axes.get_window_extent() for axes in drawn.axes]
        for legend in drawn.findobj(Legend):
            assert not any(legend.get_window_extent().overlaps(panel) for panel in panels)

    @every_figure
    def test_says_what_every_axis_with_numbers_shows(self, drawn):
        """On the axis itself, or on another that shares it."""
        for axes in (axes for axes in drawn.findobj(Axes) if axes.axison):
            for name, shared in (("x", axes.get_shared_x_axes()), ("y", axes.get_shared_y_axes())):
                axis = getattr(axes, f"{name}axis")
                numbers = [
                    label
                    for label in axis.get_ticklabels()
                    if label.get_visible() and is_number(label)
                ]
                told = [getattr(each, f"get_{name}label")() for each in shared.get_siblings(axes)]
                assert not numbers or any(told), (name, axes.get_title())

    @every_figure
    def test_tells_what_its_legend_names_apart_in_grey_and_by_every_eye(self, drawn):
        for entries in handles(drawn):
            for one, other in combinations(entries, 2):
                for eyes in EYES:
                    apart = abs(
                        lightness(seen_by(eyes, fill(one))) - lightness(seen_by(eyes, fill(other)))
                    )
                    assert shape(one) != shape(other) or apart > 15, (
                        one.get_label(),
                        other.get_label(),
                        eyes,
                        apart,
                    )

    @every_figure
    def test_tells_lines_of_two_colours_in_a_panel_apart_by_marker_or_dashes(self, drawn):
        for axes in drawn.axes:
            lines = {
                (fill(line), shape(line))
                for line in axes.lines
                if line.get_marker() not in ("None", "none", "|")
            }
            for (colour, form), (other, another) in combinations(lines, 2):
                assert colour == other or form != another

    @every_figure
    def test_is_all_there_without_pyplot_showing_it_again(self, drawn):
        assert drawn.axes and plt.get_fignums() == []


class TestLooks:
    def test_every_method_has_a_colour_a_marker_and_dashes_of_its_own(self):
        assert list(style.LOOKS) == list(METHODS)
        for looks in ([*style.LOOKS.values(), style.OTHER], style.STARTS.values()):
            for part in ("color", "marker", "linestyle"):
                assert len({str(look[part]) for look in looks}) == len(looks), part

    def test_an_ablation_looks_like_the_method_that_it_starts_from(self):
        assert (
            style.look("mimo+width=2") == style.LOOKS["mimo"]
            and style.look(ENSEMBLE) == style.OTHER
        )

    def test_no_colour_stands_for_a_method_and_for_something_else(self):
        methods = {look["color"] for look in style.LOOKS.values()}
        others = {
            style.OTHER["color"],
            style.BOTH,
            *style.MEMBERS,
            *(look["color"] for name, look in style.STARTS.items() if name != "identical"),
        }
        assert not methods & others and style.STARTS["identical"] == style.LOOKS["mixshare"]

    def test_the_encoders_starts_are_those_of_the_study(self):
        assert list(style.STARTS) == list(ALIGNMENTS)

    @pytest.mark.parametrize("name", ["single", "mimo", "linear_mixmo", "cut_mixmo", "mixshare"])
    def test_a_method_looks_the_same_in_every_figure(self, name):
        drawn = {
            figures.results(runs_of([name]), pairs_of([]), "mixshare"),
            figures.along(*along([name, "mixshare"], (1.0, 2.0))),
            figures.overlaps(sharing([name])),
            figures.adjustments(adjusted().assign(base=name)),
        }
        for figure in drawn:
            shown = {
                (fill(line), line.get_marker())
                for axes in figure.axes
                for line in axes.lines
                if line.get_marker() not in ("None", "none", "|")
            }
            assert (style.LOOKS[name]["color"], style.LOOKS[name]["marker"]) in shown and len(
                {colour for colour, _ in shown}
            ) <= 2

    @pytest.mark.parametrize("eyes", EYES)
    def test_bars_over_one_another_are_three_tones_in_grey_and_to_every_eye(self, eyes):
        dark, both, light = (
            lightness(seen_by(eyes, colour))
            for colour in (style.MEMBERS[0], style.BOTH, style.MEMBERS[1])
        )
        assert dark + 15 < both < light - 15 < 85


def test_bars_show_both_where_both_members_lean_on_a_map():
    values = torch.tensor([[3.0, 1.0, 2.0], [1.0, 3.0, 2.0]])
    (panel,) = figures.overlaid([[("a", values)]], "importance", "maps").axes
    heights = np.array([bar.get_height() for bar in panel.patches]).reshape(2, 3)
    assert heights.tolist() == [[3, 2, 1], [1, 2, 3]]
    (both,) = panel.collections
    outline = both.get_paths()[0].vertices
    assert {(x, y) for x, y in outline.tolist()} >= {
        (-0.5, 1),
        (0.5, 1),
        (0.5, 2),
        (1.5, 2),
        (1.5, 1),
        (2.5, 1),
    }


def test_without_pairs_the_accuracies_fill_the_figure():
    assert len(figures.results(runs_of(ALL), pairs_of([]), "mixshare").axes) == 1
    assert len(figures.results(runs_of(ALL), pairs_of(ALL), "mixshare").axes) == 2


class TestSaving:
    @pytest.fixture
    def figure(self):
        return figures.curves(history(5), "mixshare")

    def test_the_ending_of_the_name_decides_what_is_written(self, figure, tmp_path):
        figures.save(figure, tmp_path / "new" / "a.png")
        figures.save(figure, str(tmp_path / "a.pdf"))
        assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG") and (
            tmp_path / "a.pdf"
        ).read_bytes().startswith(b"%PDF")

    @pytest.mark.parametrize("name", ["a.svg", "a", "a.PDF.txt"])
    def test_another_ending_is_a_line_that_says_what_is_possible(
        self, name, figure, tmp_path, in_a_line
    ):
        with pytest.raises(ValueError, match="possible are names that end in .png, .pdf") as caught:
            figures.save(figure, tmp_path / name)
        assert name in in_a_line(caught.value) and not list(tmp_path.iterdir())

    @pytest.mark.parametrize("kind", ["png", "pdf"])
    def test_the_bytes_are_the_same_at_another_time_and_name_no_version(
        self, kind, figure, tmp_path, monkeypatch
    ):
        for number, second in enumerate(("0", "1700000000")):
            monkeypatch.setenv("SOURCE_DATE_EPOCH", second)  # what Matplotlib takes for the time
            figures.save(figure, tmp_path / f"{number}.{kind}")
        content = (tmp_path / f"0.{kind}").read_bytes()
        assert (
            content == (tmp_path / f"1.{kind}").read_bytes()
            and b"Date" not in content
            and b"atplotlib" not in content
        )

    def test_a_pdf_is_as_wide_as_the_column_and_holds_its_fonts_as_truetype(self, tmp_path):
        figures.save(figures.schedule([0.1, 0.01], 1), tmp_path / "a.pdf")
        content = (tmp_path / "a.pdf").read_bytes()
        width = float(re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", content)[1])
        assert width == pytest.approx(72 * style.WIDTHS["column"])
        assert b"/FontFile2" in content and b"/Type3" not in content

    @pytest.mark.parametrize("kind", ["png", "pdf"])
    def test_a_readers_own_settings_change_nothing(self, kind, tmp_path):
        losses = history(5)
        for number, settings in enumerate(({}, READERS_OWN)):
            with plt.rc_context(settings):
                figures.save(figures.curves(losses, "mimo"), tmp_path / f"{number}.{kind}")
                assert {
                    name: plt.rcParams[name] for name in settings
                } == settings  # they count again
        assert (tmp_path / f"0.{kind}").read_bytes() == (tmp_path / f"1.{kind}").read_bytes()

    def test_a_figure_whose_drawing_fails_does_not_stay_open(self):
        before = plt.get_fignums()
        with pytest.raises(ZeroDivisionError), style.drawing(1, 1, "column", 1.0):
            1 / 0
        assert plt.get_fignums() == before


class TestStyleSheet:
    def test_it_lies_in_the_package_and_matplotlib_finds_it_by_name(self):
        assert resources.files("mixshare").joinpath("mixshare.mplstyle").is_file()
        with plt.style.context("mixshare.mixshare"):
            assert (
                plt.rcParams["pdf.fonttype"] == 42 and plt.rcParams["figure.constrained_layout.use"]
            )

    def test_no_code_sets_a_size_of_text_beside_it(self):
        for path in (project_root() / "mixshare" / "figures").glob("*.py"):
            assert not re.search(
                r"fontsize|font\.size|labelsize|titlesize|rcParams|rc_context", path.read_text()
            ), path.name

    def test_it_is_in_what_is_installed(self, tmp_path):
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(project_root() / name, tmp_path / name)
        shutil.copytree(
            project_root() / "mixshare",
            tmp_path / "mixshare",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        build = "import setuptools.build_meta as b; print(b.build_wheel('dist'))"
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", build],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
        (wheel,) = (tmp_path / "dist").glob("*.whl")
        assert {
            "mixshare/mixshare.mplstyle",
            "mixshare/figures/__init__.py",
            "mixshare/figures/style.py",
        } <= set(zipfile.ZipFile(wheel).namelist())
