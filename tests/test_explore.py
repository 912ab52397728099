"""Pictures with controls: every state is what is drawn for its choice, live in JupyterLab too, and elsewhere the first one stands."""

import base64
import json

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch

import mixshare
from mixshare import chapters, controls, explore, features, figures, mixing, studies
from mixshare.data import load_data

DATA = load_data("digits-few")
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def mixed(finished):
    """Chapter 01's, of a smoke run."""
    return explore.mixed(finished("mixshare", 1), DATA)


@pytest.fixture(scope="module")
def compared(finished):
    """Chapter 03's, of two smoke runs, and what `studies.held` found for them."""
    pictured = [finished("mimo", 1), finished("mixshare", 1)]
    held = [studies.held(run, studies.inputs(DATA)[:40]) for run in pictured]
    return explore.importance(pictured, held, DATA), dict(
        zip(("MIMO", "MixShare"), held, strict=True)
    )


class TestAPictureWithControls:
    simple = controls.Explorer(
        lambda number, word: (
            figures.schedule([number, 2 * number, len(word)], 1),
            f"{number} {word} <b>",
        ),
        {"how many": range(2, 7, 2), "a word": ["one", "three"]},
        (4, "three"),
    )

    def test_offers_every_combination_of_its_controls_each_as_it_is_drawn(self):
        states = list(self.simple.states())
        assert [choice for choice, _, _ in states] == [
            (n, word) for n in (2, 4, 6) for word in ("one", "three")
        ]
        for choice, picture, told in states:
            assert (picture, told) == self.simple.state(
                choice
            ) and told == f"{choice[0]} {choice[1]} <b>"
        assert len({picture for _, picture, _ in states}) == 6

    def test_has_the_same_pictures_whatever_a_reader_has_set(self):
        plain = self.simple.state(self.simple.start)
        with plt.rc_context(
            {"savefig.bbox": "tight", "savefig.facecolor": "red", "font.size": 30.0}
        ):
            assert self.simple.state(self.simple.start) == plain

    def test_writes_the_pictures_of_a_page_and_starts_with_the_first(self, tmp_path):
        html = self.simple.page(tmp_path / "states", "../states", 'What "it" shows', "A caption")
        found = json.loads(html.split('<script type="application/json">')[1].split("</script>")[0])
        for choice, picture, told in self.simple.states():
            state = found[", ".join(map(str, choice))]
            assert (tmp_path / state["src"].removeprefix("../")).read_bytes() == picture
            assert state["told"] == told and state["alt"] == f'What "it" shows. {told}'
        assert (
            f'<img src="{found["4, three"]["src"]}" alt="What &quot;it&quot; shows. 4 three &lt;b&gt;">'
            in html
            and "<b>" not in html
        )
        assert (
            'min="2" max="6" step="2" value="4"' in html
            and "<option selected>three</option>" in html
            and "<form hidden" in html
        )

    def test_is_the_plain_picture_where_nobody_can_move_it(self, monkeypatch):
        monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
        bundle, _ = self.simple._repr_mimebundle_()
        assert set(bundle) == {"image/png", "text/plain"}
        assert base64.b64decode(bundle["image/png"]) == self.simple.state((4, "three"))[0]

    def test_has_widgets_in_jupyter_and_the_plain_picture_for_whoever_opens_the_notebook_without_a_kernel(
        self, monkeypatch
    ):
        monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
        plain = self.simple._repr_mimebundle_()[0]
        monkeypatch.setenv("JPY_SESSION_NAME", "chapter.ipynb")
        bundle, _ = self.simple._repr_mimebundle_()
        assert WIDGET in bundle and {name: bundle[name] for name in plain} == plain


class TestMixingByHand:
    @pytest.mark.parametrize("members", [2, 3, 5])
    @pytest.mark.parametrize("place", [*explore.PLACES, explore.NOWHERE])
    def test_masks_are_a_partition_in_which_input_1_has_at_most_what_is_asked_for(
        self, members, place
    ):
        config, shares = mixshare.RunConfig.preset("smoke", "mixshare", members=members), []
        for percent in range(10, 100, 20):
            masks = explore.hand_masks(config, percent / 100, place, 16, 16)
            assert masks.shape == (members, 1, 1, 16, 16) and torch.allclose(
                masks.sum(dim=0), torch.ones(1)
            )
            shares.append(mixing.mask_ratios(masks)[0].item())
            assert (
                shares[-1] == pytest.approx(percent / 100)
                if place == explore.NOWHERE
                else shares[-1] <= percent / 100
            )
        assert shares == sorted(shares) and 0 < shares[0] < shares[-1]

    def test_a_box_is_the_one_of_cutmix_clipped_at_the_border(self):
        masks = explore.hand_masks(mixshare.RunConfig.preset("smoke"), 0.5, "top left", 16, 16)
        assert (
            masks[0, 0, 0].nonzero().max() == 8 and masks[0].sum() == 9 * 9
        )  # from row 4, half of floor(16 * sqrt(0.5)) each way

    @pytest.mark.parametrize(
        ("method", "boxes"),
        [
            ("mixshare", [*explore.PLACES]),
            ("cut_mixmo", [*explore.PLACES, explore.NOWHERE]),
            ("mimo", [explore.NOWHERE]),
        ],
    )
    def test_a_method_offers_the_masks_that_it_knows(self, finished, method, boxes):
        found = explore.mixed(finished(method, 1), DATA)
        assert found.controls["its box"] == boxes and found.start == (50, boxes[0])
        assert len(found.state(found.start)[0]) > 1000

    def test_says_what_the_network_answers(self, finished, mixed):
        run = finished("mixshare", 1)
        rows = [int((DATA.test_labels == label).nonzero()[0]) for label in (0, 1)]
        masks = explore.hand_masks(run.config, 0.3, "middle", 16, 16)
        with torch.no_grad():
            answers = run.model.cpu()(
                studies.inputs(DATA)[rows].cpu()[:, None], masks, unmix=True
            ).softmax(dim=2)[:, 0]
        _, told = mixed.state((30, "middle"))
        for m, (probabilities, share) in enumerate(
            zip(answers, mixing.mask_ratios(masks)[:, 0]), start=1
        ):
            answer = f"{int(probabilities.argmax())} ({probabilities.max():.2f})"
            assert (
                f"Input {m} (class {m - 1}) has {share:.2f} of the picture; classifier {m} answers {answer}."
                in told
            )

    def test_every_state_has_a_picture_of_its_own(self, mixed):
        assert len({picture for _, picture, _ in mixed.states()}) == 5 * len(explore.PLACES)

    def test_works_for_more_members_than_two(self, finished):
        run = finished("mixshare", 1, members=3)
        _, told = explore.mixed(run, DATA).state((50, "middle"))
        assert told.count("classifier") == 3 and "Input 3 (class 2) has" in told


class TestImportancesChosen:
    def test_the_number_is_the_overlap_of_what_is_chosen(self, compared):
        found, held = compared
        for method, block, at in (("MIMO", 2, 0), ("MixShare", 3, 5)):
            chosen = (
                held[method][block - 1].mean(dim=1)
                if not at
                else held[method][block - 1][:, at - 1]
            )
            label = found.controls["fixed input"][at]
            _, told = found.state((method, block, label))
            assert told.startswith(
                f"{method} after block {block}, held at {label}: overlap {features.overlap(*chosen):.2f}, by chance"
            )
            assert (
                features.verdict(features.overlap(*chosen).item(), *features.chance(*chosen))
                in told
            )

    def test_a_fixed_input_is_named_by_what_it_shows(self, compared):
        names = compared[0].controls["fixed input"]
        assert (
            len(names) == 1 + studies.FIXED
            and names[3] == f"image 3 (class {DATA.class_names[int(DATA.test_labels[2])]})"
        )

    def test_held_at_every_image_is_the_importance_of_appendix_d(self, finished):
        run, images = finished("mimo", 1), studies.inputs(DATA)[:40]
        for block, alone in enumerate(studies.held(run, images)):
            assert alone.shape[:2] == (2, studies.FIXED)
            assert torch.allclose(
                alone[1, 3], features.block_importance(run.model, images, images[3], 1)[block]
            )

    def test_all_choices_of_a_block_have_one_scale(self, compared):
        found, _ = compared
        choices = [
            (method, 2, at)
            for method in ("MIMO", "MixShare")
            for at in found.controls["fixed input"]
        ]
        assert len({found.draw(*choice)[0].axes[0].get_ylim() for choice in choices}) == 1


class TestFromAnExecutedChapter:
    def test_the_parameters_are_those_that_it_was_executed_with(self):
        notebook = json.loads(chapters.chapter_path("01_training").read_text())
        assert chapters.given(notebook) == {
            "profile": "smoke",
            "method": "mixshare",
            "seed": 1,
            "overrides": {},
        }
        notebook["metadata"]["papermill"] = {"parameters": {"seed": 3}}
        assert chapters.given(notebook)["seed"] == 3

    def test_its_picture_is_made_again_from_its_run(self, copied, mixed):
        copied("mixshare", 1)
        found = explore.CHAPTERS["01_training"](
            {"profile": "smoke", "method": "mixshare", "seed": 1, "overrides": {}}
        )
        assert found.state(found.start) == mixed.state(mixed.start)

    def test_there_is_none_where_nothing_is_mixed_or_where_the_data_may_not_be_there(self):
        assert (
            explore.of_training(
                {"profile": "smoke", "method": "single", "seed": 1, "overrides": {}}
            )
            is None
        )
        assert (
            explore.of_training(
                {"profile": "paper", "method": "mixshare", "seed": 1, "overrides": {}}
            )
            is None
        )
        given = {"profile": "cifar100-lite", "methods": ["mixshare"], "seed": 1, "most_images": 10}
        assert explore.of_features(given) is None

    @pytest.mark.parametrize("name", explore.CHAPTERS)
    def test_it_is_committed_with_the_plain_picture_alone(self, name):
        cells = nbformat.read(chapters.chapter_path(name), as_version=4).cells
        (cell,) = [cell for cell in cells if "explore" in cell.metadata.get("tags", [])]
        assert [set(output.data) for output in cell.outputs] == [{"image/png", "text/plain"}]


CELL = """\
import mixshare
from mixshare import data, explore
explore.mixed(mixshare.load(mixshare.RunConfig.preset("smoke", "mixshare", 1)), data.load_data("digits-few"))"""


@pytest.fixture
def lab(finished, tmp_path, jupyter_lab):
    """The address of a JupyterLab of this test alone, with a notebook of one cell open."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(notebook, tmp_path / "one.ipynb")
    with jupyter_lab(
        tmp_path, tmp_path, MIXSHARE_OUTPUTS=str(finished("mixshare", 1).folder.parents[2])
    ) as (_, told):
        yield f"{told['url']}lab/tree/one.ipynb?token={told['token']}&reset"


@pytest.mark.browser
def test_in_jupyterlab_a_moved_slider_and_another_word_draw_the_picture_anew(
    browser, lab, mixed, tmp_path
):
    opened = browser.new_page(viewport={"width": 1280, "height": 800})
    opened.set_default_timeout(120_000)  # where the machine is busy with other things
    opened.goto(lab)
    opened.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # the kernel is there
    opened.get_by_role("menuitem", name="Run", exact=True).click()
    opened.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    shown = opened.locator(".jp-OutputArea figure")
    try:
        for act, choice in (
            (lambda: None, (50, "top left")),
            (lambda: opened.get_by_role("slider").press("ArrowRight"), (70, "top left")),
            (lambda: opened.get_by_label("its box").select_option("middle"), (70, "middle")),
        ):
            act()
            wanted, sentence = mixed.state(choice)
            shown.filter(has_text=sentence).last.wait_for()
            assert (
                shown.last.locator("img").get_attribute("src")
                == f"data:image/png;base64,{base64.b64encode(wanted).decode()}"
            ), choice
            assert shown.last.locator("img").get_attribute("alt") == sentence
    finally:
        opened.screenshot(path=tmp_path / "seen.png")
        opened.close()
