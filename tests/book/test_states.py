"""Pictures with controls on a page: every state is drawn, from the run of the executed chapter."""

import json

import pytest
import states
from bs4 import BeautifulSoup

from mixshare import figures
from mixshare.chapters import chapter_path, explore
from mixshare.data import load_data

TRAINING = {"profile": "smoke", "method": "mixshare", "seed": 1, "overrides": {}}


def executed_with(**parameters) -> dict:
    """Return chapter 01 as if it had been executed with these parameters."""
    notebook = json.loads(chapter_path("01_training").read_text())
    notebook["metadata"]["papermill"] = {"parameters": parameters}
    return notebook


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return an explorer of a slider and a list, the folder of its pictures, and its HTML."""
    explorer = explore.Explorer(
        lambda number, word: (figures.schedule([number, 2 * number, len(word)], 1), f"{word} <b>"),
        {"how many": range(2, 7, 2), "a word": ["one", "three"]},
        (4, "three"),
    )
    folder = tmp_path_factory.mktemp("states", numbered=False)
    html = states.page_html(explorer, folder, 'What "it" shows', "A </script> caption")
    return explorer, folder, BeautifulSoup(html, "html.parser")


class TestAPageOfStates:
    def test_has_the_picture_and_the_sentence_of_every_choice(self, page):
        explorer, folder, html = page
        shown = json.loads(html.script.string)
        assert len(shown) == 6
        for choice, picture, sentence in explorer.states():
            state = shown[", ".join(map(str, choice))]
            assert (folder / state["src"].removeprefix("../states/")).read_bytes() == picture
            assert state["sentence"] == sentence
            assert state["alt"] == f'What "it" shows. {sentence}'

    def test_starts_with_the_first_choice_and_hides_the_controls_until_a_script_shows_them(
        self, page
    ):
        _, _, html = page
        first = json.loads(html.script.string)["4, three"]
        assert (html.img["src"], html.img["alt"]) == (first["src"], first["alt"])
        assert html.select_one("[aria-live]").text == first["sentence"] == "three <b>"
        assert html.figcaption.p.text == "A </script> caption"
        assert html.form.has_attr("hidden")

    def test_has_a_slider_for_numbers_and_a_list_for_words(self, page):
        _, _, html = page
        slider, words = html.select_one("input"), html.select_one("select")
        assert [slider[name] for name in ("min", "max", "step", "value")] == ["2", "6", "2", "4"]
        assert [option.text for option in words.select("option")] == ["one", "three"]
        assert [option.text for option in words.select("[selected]")] == ["three"]
        assert [label.text.split("\n")[0].strip() for label in html.select("label")] == [
            "how many  4",
            "a word",
        ]


class TestAnExecutedChapter:
    def test_has_the_parameters_that_it_was_executed_with(self):
        notebook = json.loads(chapter_path("01_training").read_text())
        assert states.executed_parameters(notebook) == TRAINING
        assert states.executed_parameters(executed_with(seed=3)) == TRAINING | {"seed": 3}

    def test_has_the_picture_of_its_run(self, copied):
        run = copied("mixshare", 1)
        remade = states.remake(executed_with())
        direct = explore.mixed(run, load_data("digits-few"))
        assert remade.state(remade.start) == direct.state(direct.start)

    def test_has_none_where_nothing_is_mixed_or_images_may_have_to_be_downloaded(
        self, copied, monkeypatch
    ):
        run = copied("single", 1)
        assert states.remake(executed_with(method="single")) is None
        monkeypatch.setattr(states.runs, "load", lambda config: run)
        monkeypatch.setattr(states, "load_data", lambda name: load_data("digits-few"))
        assert states.remake(executed_with(profile="paper")) is None

    def test_has_none_where_its_run_is_missing_or_it_had_other_parameters(self, copied):
        assert states.remake(executed_with()) is None
        copied("mixshare", 1)
        older = executed_with()
        for cell in older["cells"]:
            if "parameters" in cell["metadata"].get("tags", []):
                cell["source"] = [line for line in cell["source"] if "overrides" not in line]
        assert states.remake(older) is None
