"""Figures as a paper prints them: what holds for every public function that draws one."""

import inspect
import re
from functools import cache
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
from mixshare.chapters import results
from mixshare.chapters.speed import KINDS, REST
from mixshare.chapters.studies import ADJUSTMENTS, ALIGNMENTS
from mixshare.chapters.trust import SEVERITIES
from mixshare.config import METHODS, RunConfig
from mixshare.figures import style
from mixshare.figures.names import change, title
from mixshare.figures.of_trust import POOLED_STYLES
from mixshare.files import project_root

PUBLIC = {name: each for name, each in vars(figures).items() if inspect.isfunction(each)}
DRAWING = {
    name: function
    for name, function in PUBLIC.items()
    if inspect.signature(function).return_annotation is Figure
}
SMALLEST_TEXT = 7  # points, as printed
RANDOM = np.random.default_rng(0)
READERS_OWN = {
    "text.usetex": True,
    "font.size": 30.0,
    "axes.titlesize": 30.0,
    "savefig.bbox": "tight",
    "savefig.facecolor": "red",
    "pdf.fonttype": 3,
    "lines.markeredgecolor": "green",
}


# What the figures are drawn from


def rand(*shape):
    return torch.from_numpy(RANDOM.random(shape)).float()


def runs_of(names):
    rows = [{"method": name, "seed": seed} for name in names for seed in (1, 2, 3)]
    accuracies, nlls = RANDOM.uniform(0.97, 1, len(rows)), RANDOM.random(len(rows))
    return pd.DataFrame(rows).assign(accuracy_ensemble=accuracies, nll=nlls)


INTERVALS = {
    "difference": 0.001,
    **{"seeds_low": -0.02, "seeds_high": 0.015},
    **{"images_low": -0.005, "images_high": 0.008},
}


POINTS = {name: 100 * value for name, value in INTERVALS.items()} | {"margin": 0.0}


def pairs_of(names, figure="accuracy_ensemble"):
    pairs = [
        {"method": "mixshare", "other": name, "figure": figure, **INTERVALS, "verdict": "higher"}
        for name in names
        if name != "mixshare"
    ]
    return pd.DataFrame(pairs, columns=["method", "other", "figure", *INTERVALS, "verdict"])


def mixing(members, rows=4):
    masks, features = rand(members, rows, 1, 16, 16), rand(rows, 4, 4)
    inputs, encoding = rand(members, rows, 1, 16, 16), rand(rows, 16, 16)
    kept = features * rand(members, rows, 4, 4)
    return inputs, masks / masks.sum(dim=0), encoding, features, kept


def history(epochs, evaluate_every=1):
    accuracies = ["test_accuracy_ensemble", "test_accuracy_individual"]
    names = ("loss", *accuracies, "kernel_cosine", "kernel_norm_ratio")
    table = pd.DataFrame({"epoch": range(epochs), **{n: RANDOM.random(epochs) for n in names}})
    table.loc[(table["epoch"] + 1) % evaluate_every > 0, accuracies] = np.nan
    return table


def answers(members, names, rows=8):
    images = (rand(rows, 16, 16, 3) * 255).to(torch.uint8)
    probabilities = rand(members + 1, rows, len(names)).softmax(dim=2)
    return images, probabilities, torch.arange(rows) % len(names), names


def along(lines, widths, seeds=3):
    rows = [{"width": w, "line": line} for line in lines for w in widths for _ in range(seeds)]
    figures = {"accuracy_ensemble": 0.97, "nll": RANDOM.random(len(rows))}
    names = ("accuracy_ensemble", "nll") if seeds > 1 else ()
    pairs = [pairs_of(lines, name).assign(width=width) for name in names for width in widths]
    pairs = pd.concat([pairs_of([]), *pairs], ignore_index=True)
    return pd.DataFrame(rows).assign(**figures), pairs.assign(line=pairs["other"]), "width"


def sharing(names):
    numbers = {"overlap": 0.6, "init_overlap": 0.8, "null_5": 0.3, "null_95": 0.5}
    rows = [
        {"method": name, "seed": seed, "block": block, **numbers}
        for name in names
        for seed in (1, 2, 3)
        for block in (1, 2, 3)
    ]
    return pd.DataFrame(rows)


def adjusted(changes=ADJUSTMENTS):
    interval = {"difference": -0.3, "seeds_low": -0.9, "seeds_high": 0.5}
    numbers = interval | {"images_low": -0.5, "images_high": -0.1, "verdict": "not significant"}
    rows = [
        {"base": row.base, "change": change(row.name, row.base), "figure": figure, **numbers}
        for figure in ("accuracy_ensemble", "nll")
        for row in changes
    ]
    return pd.DataFrame(rows)


def drift(starts, seeds=3):
    names = ("kernel_cosine", "accuracy_ensemble", "agreement")
    rows = [
        {"start": start, **dict(zip(names, RANDOM.random(3), strict=True))}
        for start in starts * seeds
    ]
    return pd.DataFrame(rows)


def kernels(encoders, colours):
    return [rand(16, colours, 3, 3) - 0.5 for _ in range(encoders)]


def importances(rows):
    names = ("single", "mimo", "cut_mixmo", "mixshare")
    return [[(f"{title(name)}, block {k}", rand(2, 8 * k)) for name in names] for k in rows]


def bins(methods):
    rows = [
        {"method": name, "answer": answer, "confidence": confidence, "images": 10**k}
        for name in methods
        for answer in (POOLED_STYLES if name != "single" else ["mean of logits"])
        for k, confidence in enumerate((30.0, 60.0, 95.0))
    ]
    return pd.DataFrame(rows).assign(accuracy=RANDOM.uniform(0, 100, len(rows)))


def corrupted(methods):
    rows = [
        {"method": name, "seed": seed, "corruption": kind, "severity": severity}
        for name in methods
        for seed in (1, 2)
        for kind in SEVERITIES
        for severity in range(6)
    ]
    figures = {name: RANDOM.uniform(1, 100, len(rows)) for name in ("accuracy", "nll")}
    return pd.DataFrame(rows).assign(**figures)


BINS = {"confidence": "confidence, %", "accuracy": "right, %", "images": "images"}
CORRUPTED = {"severity": "severity", "accuracy": "ensemble\naccuracy, %", "nll": "NLL, nats"}
ALL, ENSEMBLE = list(METHODS), "deep ensemble of 2"
DIGITS = [str(digit) for digit in range(10)]
CIFAR = "apple sweet_pepper aquarium_fish caterpillar pickup_truck willow_tree worm".split()
RATES = np.geomspace(0.1, 0.0001, 400)
INDEPENDENT = [f"{name}+encoder_init=independent" for name in ALL]
WIDTHS = [f"{name}+width={width}" for width in range(2, 12) for name in ALL]
STARTS = ["mixshare", *(f"mixshare+encoder_init={start}" for start in ALIGNMENTS[1:])]
SHARES = pd.DataFrame(
    RANDOM.dirichlet(np.ones(6), size=2), index=["paper", "digits"], columns=[*KINDS, REST]
)

EVIDENCE = pd.DataFrame(
    [
        {"label": f"{title(name)} minus {title(other)}", "unit": "points", **POINTS, **row}
        for name, other, row in (
            ("mixshare", "single", {"verdict": "supports", "margin": 0.0}),
            ("mixshare", "mixshare+unmix_normalize=false", {"verdict": "x", "difference": 40.0}),
            ("mixshare", "mixshare+tied=true", {"verdict": "contradicts", "margin": 1.0}),
        )
    ]
)

# Each function's arguments, small and at their extremes: the most methods, the longest names, the
# fewest rows.
EXAMPLES = {
    "mixing": [mixing(1), mixing(2), mixing(3, rows=1)],
    "schedule": [(RATES, 10), ([0.1, 0.1, 0.01, 0.01], 2)],
    "curves": [
        (history(2), "mimo"),
        (history(300), "mixshare+width=2"),
        (history(300, evaluate_every=10), "mixshare"),
    ],
    "answers": [answers(2, CIFAR), answers(1, DIGITS), answers(3, CIFAR)],
    "results": [
        (runs_of([*ALL, ENSEMBLE]), pairs_of(ALL), "mixshare"),
        (runs_of(ALL[-1:]), pairs_of([]), "mixshare"),
        (runs_of(INDEPENDENT), pairs_of([]), "mixshare"),
        (runs_of(WIDTHS), pairs_of(WIDTHS[:1]), "mixshare"),
        (
            runs_of([*ALL, f"{ENSEMBLE}+batch_repetition=2"]),
            pairs_of(ALL).assign(method="mixshare+width=0.5"),
            "mixshare",
        ),
    ],
    "along": [
        along([*ALL, ENSEMBLE], (1.0, 2.0, 4.0)),
        along(ALL[-2:], (0.0, 0.1, 0.3)),
        along(ALL, (1.0, 2.0), seeds=1),
    ],
    "overlaid": [
        (importances((1, 2, 3)), "importance", "feature maps, sorted"),
        ([[("MixShare", rand(2, 16))]], "L1 norm of kernel", "output channels, sorted"),
    ],
    "overlaps": [(sharing(ALL[1:]),), (sharing(STARTS),), (sharing(["mimo"]),)],
    "alignment": [
        ({start: [history(40), history(40)] for start in ALIGNMENTS},),
        ({"identical": [history(2)]},),
    ],
    "kernels": [({start: kernels(2, 3) for start in ALIGNMENTS},), ({"half": kernels(4, 1)},)],
    "drift": [(drift(list(ALIGNMENTS)),), (drift(["identical"], seeds=1),)],
    "adjustments": [(adjusted(),), (adjusted(ADJUSTMENTS[:1]),)],
    "time_spent": [(SHARES,), (SHARES.iloc[:1, :3],)],
    "architecture": [
        *((RunConfig.preset("paper", name),) for name in ALL),
        (RunConfig.preset("digits", "mixshare", members=3),),
        (RunConfig.preset("paper", "cut_mixmo", members=16, width=10),),
        (RunConfig.preset("digits", "mixshare", tied=True),),
    ],
    "claims": [(EVIDENCE,), (EVIDENCE[:1],), (EVIDENCE[:0],)],
    "panels": [
        (bins(ALL), "method", "answer", BINS, True),
        (bins(["mimo"]), "method", "answer", BINS, True),
        (corrupted(ALL), "corruption", "method", CORRUPTED),
        (corrupted(["single"]), "corruption", "method", CORRUPTED),
    ],
}


@cache
def every_figure() -> dict[str, Figure]:
    """Draw each example once for all tests, laid out as it is printed."""
    drawn = {}
    for name, examples in EXAMPLES.items():
        for number, arguments in enumerate(examples):
            figure = drawn[f"{name} {number}"] = DRAWING[name](*arguments)
            figure.draw_without_rendering()
    return drawn


# What a reader sees of a figure


def texts(figure):
    """Return every text that can be seen; a tick beyond its axis' ends can't."""
    beyond = set()
    for axes in figure.findobj(Axes):
        limits = (axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))
        for axis, (low, high) in limits:
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low - 1e-9 <= tick.get_loc() <= high + 1e-9 or not axes.axison:
                    beyond |= {tick.label1, tick.label2}
    written = [text for text in figure.findobj(Text) if text.get_visible()]
    written = [text for text in written if text.get_text().strip() and text not in beyond]
    return [text for text in written if text.axes is None or text.axes.get_visible()]


def is_number(label):
    return re.fullmatch(r"[-−]?[\d.,]+|\$.*\$", label.get_text().strip())


def lightness(colour):
    """Return CIE L* of a colour, 0 to 100: what is left of it in grey print."""
    luminance = linear(colour) @ (0.2126, 0.7152, 0.0722)
    return 116 * np.cbrt(luminance) - 16 if luminance > 0.008856 else 903.3 * luminance


def linear(colour):
    values = np.array(to_rgb(colour))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


# Machado, Oliveira and Fernandes, IEEE TVCG 15 (6), 2009, table 1, severity 1.0; on linear RGB.
# fmt: off
VISION = {
    "all cones": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868],
                            [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968],
                              [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779],
                            [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]]),
}
# fmt: on


def seen_with(vision, colour):
    values = np.clip(VISION[vision] @ linear(colour), 0, 1)
    return tuple(np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055))


def form(artist):
    """Return what distinguishes a line or a bar without colour."""
    if hasattr(artist, "get_marker"):
        dashes = artist.get_linestyle() if artist.get_linestyle() not in ("None", "none") else ""
        pattern = artist._unscaled_dash_pattern if dashes == "--" else None
        return artist.get_marker(), dashes, pattern
    return artist.get_hatch() if hasattr(artist, "get_hatch") else None


def colour_of(artist):
    if hasattr(artist, "get_color"):
        return artist.get_color()
    return tuple(np.atleast_2d(artist.get_facecolor())[0][:3])


def marked_lines(axes):
    return [line for line in axes.lines if line.get_marker() not in ("None", "none", "|")]


class TestEveryFigure:
    def test_has_an_example_here(self):
        assert len(DRAWING) >= 14 and set(EXAMPLES) == set(DRAWING)

    def test_is_as_wide_as_a_column_or_a_page(self):
        for case, figure in every_figure().items():
            assert figure.get_figwidth() in style.WIDTHS.values(), case
            assert 0.5 < figure.get_figheight() < 9.3, case

    def test_has_no_text_too_small_to_read_in_print(self):
        for case, figure in every_figure().items():
            assert min(text.get_fontsize() for text in texts(figure)) >= SMALLEST_TEXT, case

    def test_has_no_size_of_text_that_the_style_sheet_does_not_set(self):
        endings = ("labelsize", "titlesize", "fontsize", "font.size")
        with plt.style.context(style.STYLE_SHEET):
            named = {plt.rcParams[name] for name in plt.rcParams if name.endswith(endings)}
        for case, figure in every_figure().items():
            assert {text.get_fontsize() for text in texts(figure)} <= named, case

    def test_cuts_no_text_off_at_its_edge(self):
        for case, figure in every_figure().items():
            left, bottom, right, top = figure.bbox.extents
            for text in texts(figure):
                box = text.get_window_extent()
                inside_x = left - 0.5 <= box.x0 and box.x1 <= right + 0.5
                inside_y = bottom - 0.5 <= box.y0 and box.y1 <= top + 0.5
                assert inside_x and inside_y, (case, text.get_text())

    def test_writes_no_text_over_another(self):
        for case, figure in every_figure().items():
            boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
            for (first, a), (second, b) in combinations(boxes, 2):
                across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
                assert across < 0.5 or down < 0.5, (case, first, second)

    def test_keeps_its_legend_off_the_data(self):
        for case, figure in every_figure().items():
            panels = [axes.get_window_extent() for axes in figure.axes]
            for legend in figure.findobj(Legend):
                box = legend.get_window_extent()
                assert not any(box.overlaps(panel) for panel in panels), case

    def test_labels_every_axis_with_numbers(self):
        """On the axis itself, or on another that shares it."""
        for case, figure in every_figure().items():
            for axes in (axes for axes in figure.findobj(Axes) if axes.axison):
                shared = {"x": axes.get_shared_x_axes(), "y": axes.get_shared_y_axes()}
                for name, group in shared.items():
                    ticks = getattr(axes, f"{name}axis").get_ticklabels()
                    numbers = [tick for tick in ticks if tick.get_visible() and is_number(tick)]
                    siblings = group.get_siblings(axes)
                    labels = [getattr(each, f"get_{name}label")() for each in siblings]
                    assert not numbers or any(labels), (case, name, axes.get_title())

    def test_has_legend_entries_that_differ_in_grey_and_for_every_colour_vision(self):
        for case, figure in every_figure().items():
            for legend in figure.findobj(Legend):
                for a, b in combinations(legend.legend_handles, 2):
                    labels = case, a.get_label(), b.get_label()
                    assert form(a) != form(b) or least_difference(a, b) > 15, labels

    def test_has_lines_of_two_colours_in_a_panel_that_differ_by_marker_or_dashes(self):
        for case, figure in every_figure().items():
            for axes in figure.axes:
                lines = {(colour_of(line), form(line)) for line in marked_lines(axes)}
                for (colour, shape), (other, another) in combinations(lines, 2):
                    assert colour == other or shape != another, case

    def test_is_complete_without_pyplot_showing_it_again(self):
        assert all(figure.axes for figure in every_figure().values())
        assert plt.get_fignums() == []


def least_difference(a, b):
    """Return the smallest difference in lightness over all kinds of colour vision."""
    return min(
        abs(lightness(seen_with(vision, colour_of(a))) - lightness(seen_with(vision, colour_of(b))))
        for vision in VISION
    )


class TestStyles:
    def test_every_method_has_a_colour_a_marker_and_dashes_of_its_own(self):
        assert list(style.METHOD_STYLES) == list(METHODS)
        methods = [*style.METHOD_STYLES.values(), style.OTHER_STYLE]
        for styles in (methods, style.ENCODER_STYLES.values()):
            for part in ("color", "marker", "linestyle"):
                assert len({str(each[part]) for each in styles}) == len(styles), part

    def test_an_ablation_has_the_style_of_the_method_that_it_starts_from(self):
        assert style.style_of("mimo+width=2") == style.METHOD_STYLES["mimo"]
        assert style.style_of(ENSEMBLE) == style.OTHER_STYLE

    def test_no_colour_stands_for_a_method_and_for_something_else(self):
        methods = {each["color"] for each in style.METHOD_STYLES.values()}
        encoders = dict(style.ENCODER_STYLES)
        assert encoders.pop("identical") == style.METHOD_STYLES["mixshare"]
        others = {style.OTHER_STYLE["color"], style.SHARED_COLOR, *style.MEMBER_COLORS}
        assert not methods & (others | {each["color"] for each in encoders.values()})

    def test_the_encoders_have_a_style_for_each_start_of_the_study(self):
        assert list(style.ENCODER_STYLES) == list(ALIGNMENTS)

    def test_a_method_has_one_style_in_every_figure(self):
        for name, wanted in style.METHOD_STYLES.items():
            for figure in (
                figures.results(runs_of([name]), pairs_of([]), "mixshare"),
                figures.along(*along([name, "mixshare"], (1.0, 2.0))),
                figures.overlaps(sharing([name])),
                figures.adjustments(adjusted().assign(base=name)),
            ):
                lines = [line for axes in figure.axes for line in marked_lines(axes)]
                drawn = {(colour_of(line), line.get_marker()) for line in lines}
                assert (wanted["color"], wanted["marker"]) in drawn, name
                assert len({colour for colour, _ in drawn}) <= 2, name

    def test_bars_over_one_another_have_three_tones_in_grey_and_for_every_colour_vision(self):
        first, second = style.MEMBER_COLORS
        for vision in VISION:
            dark, both, light = (
                lightness(seen_with(vision, colour))
                for colour in (first, style.SHARED_COLOR, second)
            )
            assert dark + 15 < both < light - 15 < 85, vision


def test_bars_have_a_third_colour_as_far_as_both_members_use_a_map():
    values = torch.tensor([[3.0, 1.0, 2.0], [1.0, 3.0, 2.0]])
    (panel,) = figures.overlaid([[("a", values)]], "importance", "maps").axes
    heights = {steps.get_label(): steps.get_data().values.tolist() for steps in panel.patches}
    assert heights["subnetwork 1"] == [3, 2, 1] and heights["subnetwork 2"] == [1, 2, 3]
    assert list(heights)[-1] == "both" and heights["both"] == [1, 2, 1]  # on top


def test_kernels_are_drawn_channel_by_channel_with_a_gap_between():
    one, other = rand(16, 3, 3, 3), rand(16, 3, 3, 3)
    panel = figures.kernels({"half": [one, other]}).axes[0]
    picture = np.ma.filled(panel.images[0].get_array(), np.nan)
    assert picture.shape == (7, 63)
    np.testing.assert_array_equal(picture[:3, 4:7], one[1].mean(dim=0))
    np.testing.assert_array_equal(picture[4:, 60:], other[15].mean(dim=0))
    assert np.isnan(picture[3]).all() and np.isnan(picture[:, 3::4]).all()


def test_without_pairs_the_accuracies_fill_the_figure():
    assert len(figures.results(runs_of(ALL), pairs_of([]), "mixshare").axes) == 1
    assert len(figures.results(runs_of(ALL), pairs_of(ALL), "mixshare").axes) == 2


def test_adjustments_of_one_base_are_drawn_together():
    mixed = adjusted().sample(frac=1, random_state=0)
    near, left, _, right = figures.adjustments(mixed).axes
    colours = [line.get_color() for line in marked_lines(left)]
    changes = [label.get_text().replace("\n", " ") for label in near.get_yticklabels()]
    assert sorted(changes) == sorted(mixed["change"].unique()) and len(colours) == len(changes)
    assert sum(a != b for a, b in zip(colours, colours[1:], strict=False)) == 1
    assert len(marked_lines(right)) == len(changes) == len(mixed) / 2


def test_a_row_of_the_adjustments_has_one_place_in_all_panels():
    mixed = adjusted().sample(frac=1, random_state=0)
    numbers = {change: number for number, change in enumerate(mixed["change"].unique())}
    mixed["difference"] = mixed["change"].map(numbers)
    near, left, _, right = figures.adjustments(mixed).axes
    labels = [label.get_text().replace("\n", " ") for label in near.get_yticklabels()]
    for panel, scale in ((left, 100), (right, 1)):
        for line in marked_lines(panel):
            y, middle = line.get_ydata()[1], line.get_xdata()[1]
            assert numbers[labels[int(y)]] == pytest.approx(middle / scale)


def drawn_intervals(panel, vertical=False):
    """Return the ends of each line of three points: low, middle, high, by what its marker is."""
    data = [line.get_ydata() if vertical else line.get_xdata() for line in panel.lines]
    kinds = ["thin" if line.get_marker() == "none" else "marked" for line in panel.lines]
    return {(kind, *each) for kind, each in zip(kinds, data, strict=True) if len(each) == 3}


@pytest.mark.parametrize("name", ["results", "along", "adjustments"])
def test_a_difference_is_drawn_with_its_interval_over_seeds_and_over_images_beside(name):
    numbers = INTERVALS.values()
    middle, seeds_low, seeds_high, images_low, images_high = (round(100 * n, 9) for n in numbers)
    if name == "results":
        panel = figures.results(runs_of(["mimo", "mixshare"]), pairs_of(["mimo"]), "mixshare").axes[
            1
        ]
    elif name == "along":
        panel = figures.along(*along(["mimo", "mixshare"], (1.0, 2.0))).axes[1]
    else:
        panel = figures.adjustments(adjusted(ADJUSTMENTS[:1]).assign(**INTERVALS)).axes[0]
    ends = drawn_intervals(panel, vertical=name == "along")
    assert {(kind, *np.round(each, 9)) for kind, *each in ends} == {
        ("marked", seeds_low, middle, seeds_high),
        ("thin", images_low, middle, images_high),
    }


def test_a_comparisons_two_intervals_do_not_cover_each_other():
    panel = figures.results(runs_of(ALL), pairs_of(ALL), "mixshare").axes[1]
    heights = [line.get_ydata()[0] for line in panel.lines if len(line.get_ydata()) == 3]
    assert len(heights) == len(set(heights)) == 2 * (len(ALL) - 1)


def test_the_drift_has_a_marker_a_run_with_percent_over_the_cosine():
    table = drift(list(ALIGNMENTS))
    for panel, name in zip(
        figures.drift(table).axes, ("accuracy_ensemble", "agreement"), strict=True
    ):
        points = {
            (line.get_color(), x, y)
            for line in panel.lines
            for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
        }
        assert points == {
            (style.ENCODER_STYLES[row["start"]]["color"], row["kernel_cosine"], 100 * row[name])
            for row in table.to_dict("records")
        }


def test_an_accuracy_that_is_not_evaluated_in_every_epoch_is_a_line_without_gaps():
    losses, accuracies = figures.curves(history(300, evaluate_every=10), "mixshare").axes
    assert len(losses.lines[0].get_xdata()) == 300
    for line in accuracies.lines:
        assert list(line.get_xdata()) == list(range(10, 301, 10))
        assert np.isfinite(line.get_ydata()).all()


class TestSaving:
    @pytest.fixture
    def figure(self):
        return figures.curves(history(5), "mixshare")

    def test_the_ending_of_the_name_decides_what_is_written(self, figure, tmp_path):
        figures.save(figure, tmp_path / "new" / "a.png")
        figures.save(figure, str(tmp_path / "a.pdf"))
        assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")

    def test_another_ending_is_refused_in_a_line_that_says_what_is_possible(
        self, figure, tmp_path, in_a_line
    ):
        for name in ("a.svg", "a", "a.PDF.txt"):
            with pytest.raises(ValueError, match="names that end in .png, .pdf") as caught:
                figures.save(figure, tmp_path / name)
            assert name in in_a_line(caught.value) and not list(tmp_path.iterdir())

    @pytest.mark.parametrize("kind", ["png", "pdf"])
    def test_the_bytes_are_the_same_at_another_time_and_name_no_version(
        self, kind, figure, tmp_path, monkeypatch
    ):
        contents = []
        for second in ("0", "1700000000"):
            monkeypatch.setenv("SOURCE_DATE_EPOCH", second)  # what Matplotlib takes for the time
            figures.save(figure, tmp_path / f"a.{kind}")
            contents.append((tmp_path / f"a.{kind}").read_bytes())
        assert contents[0] == contents[1]
        assert b"Date" not in contents[0] and b"atplotlib" not in contents[0]

    def test_a_pdf_is_as_wide_as_the_column_and_holds_its_fonts_as_truetype(self, tmp_path):
        figures.save(figures.schedule([0.1, 0.01], 1), tmp_path / "a.pdf")
        content = (tmp_path / "a.pdf").read_bytes()
        width = float(re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", content)[1])
        assert width == pytest.approx(72 * style.WIDTHS["column"])
        assert b"/FontFile2" in content and b"/Type3" not in content

    @pytest.mark.parametrize("kind", ["png", "pdf"])
    def test_a_readers_own_settings_change_nothing(self, kind, tmp_path):
        contents, losses = [], history(5)
        for settings in ({}, READERS_OWN):
            with plt.rc_context(settings):
                figures.save(figures.curves(losses, "mimo"), tmp_path / f"a.{kind}")
                assert {name: plt.rcParams[name] for name in settings} == settings  # as before
            contents.append((tmp_path / f"a.{kind}").read_bytes())
        assert contents[0] == contents[1]

    def test_a_figure_whose_drawing_fails_does_not_stay_open(self):
        before = plt.get_fignums()
        with pytest.raises(ZeroDivisionError), style.new_figure(1, 1, "column", 1.0):
            _ = 1 / 0
        assert plt.get_fignums() == before


class TestStyleSheet:
    def test_matplotlib_finds_it_by_name(self):
        with plt.style.context("mixshare.mixshare"):
            assert plt.rcParams["pdf.fonttype"] == 42
            assert plt.rcParams["figure.constrained_layout.use"]

    def test_no_code_sets_a_size_of_text_besides_it(self):
        pattern = r"fontsize|font\.size|labelsize|titlesize|rcParams|rc_context"
        for path in (project_root() / "mixshare" / "figures").glob("*.py"):
            assert not re.search(pattern, path.read_text()), path.name


def test_a_grid_of_one_method_is_drawn_along_its_field_without_differences(finished):
    runs_ = [finished("single", seed) for seed in (1, 2)]
    rows, nothing = results.per_run(runs_), results.paired(runs_, "single")
    assert nothing.empty
    along_field = (
        results.along(rows, runs_, "epochs"),
        results.along(nothing, runs_, "epochs", "other"),
    )
    assert len(figures.along(*along_field, "epochs").axes) == 2


def words_of(config) -> str:
    figure = figures.architecture(config)
    return " ".join(text.get_text().replace("\n", " ") for text in figure.findobj(Text))


class TestArchitecture:
    def test_its_labels_follow_the_configuration(self):
        mixshare = words_of(RunConfig.preset("digits", "mixshare"))
        for words in ("cutmix in all", "average over region 2", "identical", "64 maps", "$x_{2}$"):
            assert words in mixshare
        cut = words_of(RunConfig.preset("paper", "cut_mixmo"))
        assert "cutmix in 50 %" in cut and "independent" in cut and "128 maps" in cut
        assert "region" not in cut and "region" not in words_of(RunConfig.preset("paper", "mimo"))

    def test_a_network_with_one_member_mixes_nothing_and_folds_into_itself(self):
        single = words_of(RunConfig.preset("digits", "single"))
        assert not re.search(r"[Mm]ix|region|independent|Sigma|mean|_\{", single)

    def test_a_tied_network_has_one_encoder_and_one_classifier(self):
        tied = words_of(RunConfig.preset("digits", "mixshare", tied=True))
        assert "$c_" not in tied and "$d_" not in tied and "$x_{2}$" in tied

    def test_of_many_members_the_first_and_the_last_are_drawn(self):
        many = words_of(RunConfig.preset("digits", "mixshare", members=5))
        assert "$c_{5}$" in many and "⋮" in many and "$c_{3}$" not in many


def test_runs_of_equal_accuracy_do_not_hide_one_another():
    rows = runs_of(["mimo"]).assign(accuracy_ensemble=0.99)
    panel = figures.results(rows, pairs_of([]), "mixshare").axes[0]
    (dots,) = [
        line for line in panel.lines if line.get_marker() == style.style_of("mimo")["marker"]
    ]
    assert len(set(dots.get_ydata())) == 3


def test_an_error_of_zero_lies_on_the_lower_edge():
    table = history(4).assign(test_accuracy_ensemble=[0.5, 0.9, 1.0, 1.0])
    panel = figures.curves(table.assign(test_accuracy_individual=0.5), "mixshare").axes[1]
    assert panel.get_yscale() == "log"
    line = next(line for line in panel.lines if line.get_label() == "ensemble")
    assert line.get_ydata()[:2] == pytest.approx([50, 10])
    assert (line.get_ydata()[2:] == panel.get_ylim()[0]).all()


def test_one_member_has_one_line_and_no_legend():
    table = history(4)
    table["test_accuracy_individual"] = table["test_accuracy_ensemble"]
    figure = figures.curves(table, "single")
    assert len(figure.axes[1].lines) == 1 and not figure.findobj(Legend)


def test_of_a_hundred_classes_the_five_likeliest_are_named_and_the_true_one_is_among_them():
    names = [f"class_{k}" for k in range(100)]
    images, *_ = answers(2, CIFAR)
    probabilities = torch.full((3, 8, 100), 0.001)
    probabilities[:, :, 10:15] = 0.1 + 0.01 * torch.arange(5)
    figure = figures.answers(images, probabilities, torch.tensor([12] * 4 + [50] * 4), names)
    panels = [axes for axes in figure.axes if axes.axison]
    shown = [[label.get_text() for label in axes.get_yticklabels()] for axes in panels]
    spaced = [name.replace("_", " ") for name in names]
    assert shown[0] == [spaced[k] for k in (14, 13, 12, 11, 10)]
    assert shown[4] == [spaced[k] for k in (14, 13, 12, 11, 50)]


def test_small_changes_can_be_told_from_zero_and_large_ones_are_pointed_at():
    table = adjusted().assign(difference=0.001, **dict.fromkeys(list(INTERVALS)[1:], 0.001))
    table.loc[table.index[0], "difference"] = -0.5
    near, whole, *_ = figures.adjustments(table).axes
    low, high = near.get_xlim()
    (arrow,) = [line for line in near.lines if line.get_marker() == "<"]
    assert low < arrow.get_xdata()[0] < 0.8 * low
    middles = [line.get_xdata()[1] for line in marked_lines(whole)]
    small = [middle for middle in middles if middle > 0]
    assert len(small) == len(middles) - 1 and all(0.02 * high < each < high for each in small)
    assert min(middles) == -50 > whole.get_xlim()[0]


def test_a_difference_that_is_not_significant_has_a_hollow_marker():
    verdicts = {"mimo": "higher", "single": "not significant after Holm", "cut_mixmo": "lower"}
    pairs = pairs_of(ALL)
    pairs = pairs[pairs["other"].isin(verdicts)]
    pairs = pairs.assign(verdict=pairs["other"].map(verdicts))
    left, right = figures.results(runs_of(["mixshare", *verdicts]), pairs, "mixshare").axes
    faces = [line.get_markerfacecolor() == "white" for line in marked_lines(right)]
    assert sorted(faces) == [False, False, True]
    assert "hollow: not significant" in right.get_xlabel()
