"""Pictures with controls: drawn anew for each choice, live in JupyterLab, plain elsewhere."""

import base64
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch

import mixshare
from mixshare import figures, mixing
from mixshare.chapters import chapter_path, explore, studies
from mixshare.data import load_data
from mixshare.runs import build_model

DATA = load_data("digits-few")
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def mixed(finished):
    """Chapter 01's explorer, of a smoke run."""
    return explore.mixed(finished("mixshare", 1), DATA)


def untrained(method: str, **overrides) -> SimpleNamespace:
    """Return what explorers read of a run, with weights as they start."""
    config = mixshare.RunConfig.preset("smoke", method, 1, **overrides)
    return SimpleNamespace(config=config, model=build_model(config, 1, 10).eval())


class TestAPictureWithControls:
    simple = explore.Explorer(
        lambda number, word: (
            figures.schedule([number, 2 * number, len(word)], 1),
            f"{number} {word} <b>",
        ),
        {"how many": range(2, 5, 2), "a word": ["one", "three"]},
        (4, "three"),
    )

    def test_offers_every_combination_of_its_controls_each_as_it_is_drawn(self):
        states = list(self.simple.states())
        choices = [(number, word) for number in (2, 4) for word in ("one", "three")]
        assert [choice for choice, _, _ in states] == choices
        for choice, picture, sentence in states:
            assert (picture, sentence) == self.simple.state(choice)
            assert sentence == f"{choice[0]} {choice[1]} <b>"
        assert len({picture for _, picture, _ in states}) == 4

    def test_has_the_same_pictures_whatever_a_reader_has_set(self):
        plain = self.simple.state(self.simple.start)
        own = {"savefig.bbox": "tight", "savefig.facecolor": "red", "font.size": 30.0}
        with plt.rc_context(own):
            assert self.simple.state(self.simple.start) == plain

    def test_is_the_plain_picture_outside_jupyter(self, monkeypatch):
        monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
        bundle, _ = self.simple._repr_mimebundle_()
        assert set(bundle) == {"image/png", "text/plain"}
        assert base64.b64decode(bundle["image/png"]) == self.simple.state((4, "three"))[0]

    def test_has_widgets_in_jupyter_and_the_plain_picture_for_a_reader_without_a_kernel(
        self, monkeypatch
    ):
        monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
        plain, _ = self.simple._repr_mimebundle_()
        monkeypatch.setenv("JPY_SESSION_NAME", "chapter.ipynb")
        bundle, _ = self.simple._repr_mimebundle_()
        assert WIDGET in bundle
        assert {name: bundle[name] for name in plain} == plain

    def test_is_shown_as_wide_as_its_figure(self):
        picture, _ = self.simple.state(self.simple.start)
        _, metadata = self.simple._repr_mimebundle_()
        inches = figures.style.WIDTHS["column"]
        assert int.from_bytes(picture[16:20]) == round(inches * explore.DPI)
        assert metadata["image/png"]["width"] == round(inches * 100)

    def test_is_committed_without_widgets(self):
        cells = nbformat.read(chapter_path("01_training"), as_version=4).cells
        (cell,) = [cell for cell in cells if "explore" in cell.metadata.get("tags", [])]
        assert [set(output.data) for output in cell.outputs] == [{"image/png", "text/plain"}]


class TestMixingByHand:
    @pytest.mark.parametrize("members", [2, 3, 5])
    def test_masks_are_a_partition_that_gives_input_1_the_share_asked_for(self, members):
        config = mixshare.RunConfig.preset("smoke", "mixshare", members=members)
        for box in (*explore.BOX_CENTRES, explore.NO_BOX):
            shares = []
            for percent in range(10, 100, 20):
                masks = explore.manual_masks(config, percent / 100, box, 16, 16)
                assert masks.shape == (members, 1, 1, 16, 16)
                assert torch.allclose(masks.sum(dim=0), torch.ones(1))
                shares.append(mixing.mask_ratios(masks)[0].item())
                near = 1e-6 if box == explore.NO_BOX else 1 / 16  # half a pixel on two sides
                assert shares[-1] == pytest.approx(percent / 100, abs=near)
            assert shares == sorted(shares) and 0 < shares[0] < shares[-1]

    def test_long_names_of_classes_are_not_cut_off(self):
        data = replace(DATA, class_names=("aquarium_fish", "pickup_truck") * 5)
        figure, sentence = explore.mixed(untrained("mixshare"), data).draw(50, "middle")
        figure.draw_without_rendering()
        assert "aquarium fish" in sentence
        for panel in figure.axes:
            for text in (panel.title, panel.xaxis.label):
                box = text.get_window_extent()
                assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, text.get_text()
                assert box.y0 >= 0 and box.y1 <= figure.bbox.y1, text.get_text()

    @pytest.mark.parametrize("box", explore.BOX_CENTRES)
    def test_a_box_lies_wholly_in_the_image(self, box):
        masks = explore.manual_masks(mixshare.RunConfig.preset("smoke"), 0.5, box, 16, 16)
        rows, columns = masks[0, 0, 0].nonzero().T
        sides = [int(places.max() - places.min()) + 1 for places in (rows, columns)]
        assert sides == [11, 11] and masks[0].sum() == 11 * 11  # 16 times the root of a half
        first = {"top left": (0, 0), "middle": (2, 2), "bottom right": (5, 5)}
        corner = int(rows.min()), int(columns.min())
        assert first.get(box, corner) == corner

    def test_a_method_offers_the_masks_that_it_is_trained_with(self):
        boxes = [*explore.BOX_CENTRES]
        offered = {"mixshare": boxes, "cut_mixmo": [*boxes, explore.NO_BOX]}
        for method, options in (offered | {"mimo": [explore.NO_BOX]}).items():
            explorer = explore.mixed(untrained(method), DATA)
            assert explorer.controls["its box"] == options
            assert explorer.start == (50, options[0])
            _, sentence = explorer.draw(*explorer.start)
            assert sentence.startswith("Asked for: 50 % for input 1. Input 1 (class 0)")

    def test_the_sentence_has_the_networks_answers(self, finished, mixed):
        run = finished("mixshare", 1)
        rows = [int((DATA.test_labels == label).nonzero()[0]) for label in (0, 1)]
        inputs = studies.test_inputs(DATA)[rows].cpu()[:, None]
        masks = explore.manual_masks(run.config, 0.3, "middle", 16, 16)
        with torch.no_grad():
            answers = run.model.cpu()(inputs, masks, unmix=True).softmax(dim=2)[:, 0]
        _, sentence = mixed.draw(30, "middle")
        for m, ratio in enumerate(mixing.mask_ratios(masks)[:, 0]):
            answer = f"{int(answers[m].argmax())} ({answers[m].max():.2f})"
            assert (
                f"Input {m + 1} (class {m}) has {ratio:.2f} of the picture; "
                f"classifier {m + 1} answers {answer}." in sentence
            )

    def test_every_state_has_a_picture_of_its_own(self, mixed):
        few = explore.Explorer(
            mixed.draw,
            {"share of input 1, %": range(10, 100, 40), "its box": ["middle", "top right"]},
            (50, "middle"),
        )
        assert len({picture for _, picture, _ in few.states()}) == 3 * 2

    def test_works_for_more_members_than_two(self):
        _, sentence = explore.mixed(untrained("mixshare", members=3), DATA).draw(50, "middle")
        assert sentence.count("classifier") == 3 and "Input 3 (class 2) has" in sentence


CELL = """\
import mixshare
from mixshare import data
from mixshare.chapters import explore

run = mixshare.load(mixshare.RunConfig.preset("smoke", "mixshare", 1))
explore.mixed(run, data.load_data("digits-few"))"""


@pytest.fixture
def lab(finished, tmp_path, jupyter_lab):
    """Address of a JupyterLab of this test alone, with a notebook of one cell open."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["kernelspec"] = kernel
    nbformat.write(notebook, tmp_path / "one.ipynb")
    outputs = str(finished("mixshare", 1).folder.parents[2])
    with jupyter_lab(tmp_path, tmp_path, MIXSHARE_OUTPUTS=outputs) as (_, server):
        yield f"{server['url']}lab/tree/one.ipynb?token={server['token']}&reset"


@pytest.mark.browser
@pytest.mark.slow
def test_in_jupyterlab_a_moved_slider_and_another_word_draw_the_picture_anew(
    browser, lab, mixed, tmp_path
):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(120_000)  # where the machine is busy with other things
    page.goto(lab)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # the kernel has started
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    shown = page.locator(".jp-OutputArea figure")
    steps = (
        (lambda: None, (50, "top left")),
        (lambda: page.get_by_role("slider").press("ArrowRight"), (70, "top left")),
        (lambda: page.get_by_label("its box").select_option("middle"), (70, "middle")),
    )
    try:
        for act, choice in steps:
            act()
            picture, sentence = mixed.state(choice)
            shown.filter(has_text=sentence).last.wait_for()
            image = shown.last.locator("img")
            source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
            assert image.get_attribute("src") == source, choice
            assert image.get_attribute("alt") == sentence
    finally:
        page.screenshot(path=tmp_path / "seen.png")
        page.close()
