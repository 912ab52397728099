"""The book, built once from the published digits: what stands in it, and every page looked at in headless Chromium, from the disk."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from PIL import Image

import mixshare
from mixshare import book, explore, results
from mixshare.chapters import given
from mixshare.errors import FileProblem
from mixshare.files import project_root, published_folder

DIGITS = published_folder() / "digits"
CHAPTERS = [
    f"chapters/{stem}.html"
    for stem in sorted(
        {"01_training", *(path.stem for path in (DIGITS / "chapters").glob("*.ipynb"))}
    )
]
RUNS = [
    f"runs/{path.parent.relative_to(DIGITS)}.html"
    for path in sorted(DIGITS.glob("*/seed-*/01_training.ipynb"))
]
EXPLORED = ["chapters/01_training.html", "chapters/03_subnetwork_features.html"]
RUNS.remove("runs/mixshare/seed-1.html")  # it is chapter 01
PAGES = ["index.html", *CHAPTERS, "runs.html", *RUNS, "decisions.html", "api.html", "search.html"]
# Tables are shown as pandas wrote them, with empty corners. All else that axe-core knows is looked for.
KNOWN = {"empty-table-header": {"enabled": False}}
EVERYTHING, CONTRAST = {"rules": KNOWN}, {"runOnly": ["color-contrast"]}
ALL_BUT_CONTRAST = {"rules": KNOWN | {"color-contrast": {"enabled": False}}}


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """The command that built the book, and the folder that it lies in."""
    outputs = tmp_path_factory.mktemp("outputs")
    command = [sys.executable, "-m", "mixshare", "book", "digits"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"MIXSHARE_OUTPUTS": str(outputs)}
    )
    return done, outputs / "digits" / "book"


@pytest.fixture(scope="session")
def built(build):
    done, folder = build
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def soup(built):
    """`soup(page)`: a page, parsed."""
    return cache(
        lambda page: BeautifulSoup((built / page).read_text(encoding="utf-8"), "html.parser")
    )


def steps(slider) -> list[str]:
    """What a slider can be moved to."""
    return [
        str(value)
        for value in range(int(slider["min"]), int(slider["max"]) + 1, int(slider["step"]))
    ]


def text_of(node) -> str:
    return re.sub(r"\s+", " ", node.get_text(" ", strip=True)).replace("’", "'")


def bare(text: str) -> str:
    """Letters and signs alone: without spaces, marks of code, and the shape of quotes."""
    return re.sub(r"[\s`]", "", text).translate(str.maketrans("’“”", '\'""'))


class TestTheBook:
    def test_is_built_without_a_warning_and_nothing_is_left_beside_it(self, build, built):
        done, _ = build
        told = rf"rendering the executed chapters of digits.*\n{len(PAGES)} pages; open .*index\.html\n"
        assert done.stderr == "" and re.fullmatch(told, done.stdout)
        assert [path.name for path in built.parent.iterdir()] == ["book"] and [
            p.name for p in built.parents[1].iterdir()
        ] == ["digits"]

    def test_has_a_page_for_every_chapter_and_run(self, built):
        found = {path.relative_to(built).as_posix() for path in built.rglob("*.html")}
        assert {name for name in found if not name.startswith("_static/")} == set(PAGES)

    def test_leads_from_page_to_page_in_the_chapters_order(self, soup):
        order = ["index.html", *CHAPTERS, "runs.html"]
        for page, following in zip(order, order[1:]):
            assert (
                soup(page).select_one("a.right-next")["href"].split("/")[-1]
                == following.split("/")[-1]
            )
            assert (
                soup(following).select_one("a.left-prev")["href"].split("/")[-1]
                == page.split("/")[-1]
            )

    def test_opens_with_the_table_of_the_published_results(self, soup):
        table = results.read_summary(published_folder() / "digits" / "studies" / "results.csv")
        rows = [
            [text_of(cell) for cell in row.select("td")]
            for row in soup("index.html").select("article table tbody tr")
        ]
        assert [row[0] for row in rows] == [
            "Single network",
            "MIMO",
            "Cut-MixMo",
            "MixShare",
            "deep ensemble of 2",
        ]
        assert [row[1].split(" ± ")[0] for row in rows] == [
            f"{100 * value:.2f}" for value in table["accuracy_ensemble_mean"]
        ]
        assert [row[-1] for row in rows] == [str(n) for n in table["n"]]

    def test_has_one_title_and_the_parts_of_the_template_on_its_first_page(self, soup):
        written = re.findall(r"(?m)^(#+) (.*)$", (project_root() / "docs" / "index.md").read_text())
        shown = [
            (f"h{len(signs)}", title.replace("$profile", "digits")) for signs, title in written
        ]
        headings = [
            (node.name, node.find(string=True))
            for node in soup("index.html").article.select("h1, h2, h3, h4")
        ]
        assert headings == shown and [level for level, _ in shown].count("h1") == 1

    def test_says_on_its_first_page_how_sure_we_are(self, soup):
        text = text_of(soup("index.html").article)
        assert "MIMO : separated in 9 of 9" in text and "MixShare : shared in 9 of 9" in text
        assert (
            "MixShare 1, 2, 3." in text
            and "threads: 1" in text
            and "1,297 training images" in text
            and "40 epochs" in text
        )
        assert (
            "MixShare minus MIMO, ensemble accuracy: +0.27 percentage points; the 95 % t interval over 3 seeds, -0.49 to +1.03"
            in text
        )
        assert text.count("can't tell the two apart") == 3

    def test_has_the_decisions_of_the_readme(self, soup):
        part = (
            (project_root() / "README.md")
            .read_text()
            .split("## What we had to decide")[1]
            .split("\n## ")[0]
        )
        rows = [line for line in part.splitlines() if line.startswith("| ")][1:]
        page = soup("decisions.html").article
        assert [bare(row.get_text()) for row in page.select("tbody tr")] == [
            bare(row.replace("|", "")) for row in rows
        ] and len(rows) > 15
        assert bare(page.p.get_text()) == bare(part.strip().split("\n")[0])

    @pytest.mark.parametrize(
        "name",
        [*mixshare.__all__, "mixing.unmix", "mixing.cutmix_masks", "features.block_importance"],
    )
    def test_documents_the_public_names(self, soup, name):
        described = soup("api.html").find(id=f"mixshare.{name}").find_next_sibling("dd")
        assert len(text_of(described)) > 30

    def test_says_what_every_field_of_a_run_is(self, soup):
        for field in mixshare.RunConfig.__dataclass_fields__:
            assert text_of(
                soup("api.html").find(id=f"mixshare.RunConfig.{field}").find_next_sibling("dd")
            ), field

    @pytest.mark.parametrize("page", [*CHAPTERS, *RUNS])
    def test_shows_what_a_chapter_printed_as_it_was_printed(self, soup, page):
        name = (
            "mixshare/seed-1/01_training" if "01_training" in page else page.removesuffix(".html")
        )
        path = (
            f"{name.removeprefix('runs/')}/01_training.ipynb"
            if name.startswith("runs/")
            else f"{name}.ipynb"
        )
        cells = json.loads((published_folder() / "digits" / path).read_text())["cells"]
        moved = (
            {"explore"} if page in EXPLORED else set()
        )  # there all its states stand instead, which are looked at below
        plain = [cell for cell in cells if not moved & set(cell["metadata"].get("tags", []))]
        outputs = [output for cell in plain for output in cell.get("outputs", [])]
        shown = [block.get_text() for block in soup(page).select(".cell_output pre")]
        printed = [
            output.get("text") or output["data"]["text/plain"]
            for output in outputs
            if len(output.get("data", {})) < 2
        ]
        assert [text.rstrip("\n") for text in shown] == [
            "".join(text).rstrip("\n") for text in printed
        ] and len(shown) > 4
        assert len(soup(page).select("table.dataframe")) == sum(
            "text/html" in output.get("data", {}) for output in outputs
        )
        pictures = soup(page).select("article figure img")
        assert len(pictures) - len(soup(page).select(".explore img")) == sum(
            "image/png" in output.get("data", {}) for output in outputs
        )

    @pytest.mark.parametrize("page", ["index.html", *CHAPTERS, *RUNS])
    def test_describes_every_figure_in_words_of_its_own(self, soup, page):
        figures = soup(page).select("article figure")
        assert len(figures) == len(soup(page).select("article img")) > 0
        for figure in figures:
            alt, caption = figure.img["alt"], text_of(figure.figcaption)
            assert (
                len(alt) > 50
                and len(caption) > 50
                and alt != caption
                and not alt.startswith("Figure in the part")
            )

    @pytest.mark.parametrize("page", EXPLORED)
    def test_has_every_state_of_a_picture_with_controls_and_shows_the_first_without_scripts(
        self, soup, built, page
    ):
        (explorer,) = soup(page).select("article .explore")
        states = json.loads(explorer.script.string)
        lists = [
            [option.text for option in control.select("option")] or steps(control)
            for control in explorer.select("select, input")
        ]
        assert list(states) == [", ".join(choice) for choice in itertools.product(*lists)]
        files = [(built / page).parent / state["src"] for state in states.values()]
        assert len({path.read_bytes() for path in files}) == len(states) > 20
        assert (
            len({state["told"] for state in states.values()})
            == len({state["alt"] for state in states.values()})
            == len(states)
        )
        first = ", ".join(
            control.get("value") or control.select_one("[selected]").text
            for control in explorer.select("select, input")
        )
        assert (
            explorer.img["src"] == states[first]["src"]
            and explorer.img["alt"] == states[first]["alt"]
        )
        assert text_of(explorer.select_one("[aria-live]")) == states[first][
            "told"
        ] and explorer.form.has_attr("hidden")

    def test_writes_formulas_in_mathml(self, soup):
        for page in (CHAPTERS[0], CHAPTERS[2]):
            cells = json.loads(
                (project_root() / "notebooks" / f"{Path(page).stem}.ipynb").read_text()
            )["cells"]
            text = "".join(
                "".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"
            )
            assert (
                len(soup(page).select("article math"))
                == len(re.findall(r"\$\$?.+?\$\$?", text, re.S))
                > 3
            )
            assert "$" not in text_of(soup(page).article) and "\\" not in soup(page).article.p.text
        assert "ℳ" in soup(CHAPTERS[2]).math.find_parent("section").text

    @pytest.mark.parametrize("page", PAGES)
    def test_asks_the_network_for_nothing(self, soup, page):
        loaded = [
            node.get("src") or node.get("href")
            for node in soup(page).select("script[src], img, iframe, link:not([rel=canonical])")
        ]
        assert len(loaded) > 5 and not [url for url in loaded if "//" in url]


class TestPuttingPagesTogether:
    def test_a_readers_own_chapter_goes_before_the_published_one(self, outputs):
        own = outputs / "digits" / "chapters" / "05_results.ipynb"
        own.parent.mkdir(parents=True)
        shutil.copyfile(published_folder() / "digits" / "chapters" / "05_results.ipynb", own)
        own.with_name("04_adjustments.partial.ipynb").write_text("not whole")
        found = book.executed("digits")
        assert found["chapters/05_results.ipynb"] == own and not [
            name for name in found if "partial" in name
        ]
        assert found["chapters/03_subnetwork_features.ipynb"].is_relative_to(published_folder())
        assert "your own" in book.page(own) and "as published" in book.page(
            found["chapters/03_subnetwork_features.ipynb"]
        )

    def test_another_profile_is_told_as_it_is(self, outputs, tmp_path):
        book.assemble("cifar100-lite", tmp_path)
        text = (tmp_path / "index.md").read_text()
        assert (
            "step by step: cifar100-lite" in text
            and "50,000 training images of `cifar100`, WRN-16-1, 5 epochs" in text
        )
        assert (
            "MixShare minus Cut-MixMo, ensemble accuracy: +14.76 percentage points; the 95 % t interval over 3 seeds"
            in text
        )
        assert "chapters/02" not in text
        assert (
            "(grid photographs-width)"
            in (tmp_path / "chapters" / "05_results-photographs-width.ipynb").read_text()
        )
        assert (
            "This is MixShare, seed 1" in (tmp_path / "chapters" / "01_training.ipynb").read_text()
        )
        assert not list((tmp_path / "states").iterdir())  # they would take its photographs

    def test_a_page_has_the_name_of_its_run_as_tables_have_it_and_what_is_no_run_has_none(
        self, outputs, tmp_path
    ):
        published = published_folder() / "cifar100-lite" / "mixshare" / "seed-1"
        for place in (
            "mixshare+width=2/seed-3",
            "mixshare/seed-1.old-1",
            "backup/seed-1",
            "mixshare/seed-last",
        ):
            shutil.copytree(published, outputs / "cifar100-lite" / place)
        book.assemble("cifar100-lite", tmp_path)
        cells = json.loads((tmp_path / "runs" / "mixshare+width=2" / "seed-3.ipynb").read_text())[
            "cells"
        ]
        assert cells[0]["source"].startswith("# MixShare, width 2, seed 3\n\n*Executed, your own;")
        assert (
            "[MixShare, width 2, seed 3](runs/mixshare+width=2/seed-3.ipynb)"
            in (tmp_path / "runs.md").read_text()
        )
        found = {
            path.relative_to(tmp_path / "runs").as_posix()
            for path in (tmp_path / "runs").glob("*/*")
        }
        assert "mixshare+width=2/seed-3.ipynb" in found and not [
            name for name in found if re.search("old|backup|last", name)
        ]

    @pytest.mark.parametrize("whose", ["as published", "your own"])
    def test_the_machines_are_those_that_made_the_table(self, whose, outputs, tmp_path):
        own = outputs / "digits" / "mixshare" / "seed-1" / "metrics.json"
        own.parent.mkdir(parents=True)
        metrics = json.loads((DIGITS / "mixshare" / "seed-1" / "metrics.json").read_text())
        own.write_text(
            json.dumps(
                metrics | {"provenance": metrics["provenance"] | {"system": "Another system"}}
            )
        )
        if whose == "your own":  # of one run; the others are published ones
            shutil.copytree(DIGITS / "studies", outputs / "digits" / "studies")
        text = book.first_page(
            "digits", DIGITS if whose == "as published" else outputs / "digits", tmp_path, []
        )
        assert (
            f"Results: {whose}." in text
            and ("Another system" in text) == (whose == "your own")
            and ", Linux, " in text
        )

    def test_an_older_copy_of_a_chapter_that_had_other_parameters_keeps_its_own_picture(
        self, outputs, tmp_path
    ):
        notebook = json.loads((DIGITS / "chapters" / "03_subnetwork_features.ipynb").read_text())
        for cell in notebook["cells"]:
            if "parameters" in cell["metadata"].get("tags", []):
                cell["source"] = [line for line in cell["source"] if "most_images" not in line]
        assert "most_images" not in given(notebook)
        assert (
            book.with_states("03_subnetwork_features", notebook, tmp_path / "states")
            == notebook["cells"]
        )

    def test_a_picture_with_controls_stands_where_it_does_in_the_chapter_in_an_older_copy_too(
        self, copied, tmp_path, monkeypatch
    ):
        copied("mixshare", 1)
        monkeypatch.setattr(explore, "PLACES", {"middle": (0.5, 0.5)})  # so that it takes moments
        whole = json.loads((project_root() / "notebooks" / "01_training.ipynb").read_text())
        (place,) = [
            number
            for number, cell in enumerate(whole["cells"])
            if "explore" in cell["metadata"].get("tags", [])
        ]
        older = whole | {"cells": whole["cells"][: place - 1] + whole["cells"][place + 1 :]}
        other = whole | {
            "cells": [
                cell | {"source": f"As it was: {cell['source']}"} if n == place - 1 else cell
                for n, cell in enumerate(whole["cells"])
            ]
        }
        for name, notebook in (("whole", whole), ("older", older), ("other", other)):
            cells = book.with_states("01_training", notebook, tmp_path / "states" / name)
            assert [cell["source"] for cell in cells] == [cell["source"] for cell in whole["cells"]]
            (output,) = cells[place]["outputs"]
            assert (
                'class="explore"' in output["data"]["text/html"]
                and f'src="../states/{name}/' in output["data"]["text/html"]
            )
            assert len({cell["id"] for cell in cells}) == len(cells)

    def test_a_picture_with_controls_stays_as_it_was_executed_where_its_run_is_not_there(
        self, outputs, tmp_path
    ):
        notebook = json.loads((project_root() / "notebooks" / "01_training.ipynb").read_text())
        assert (
            book.with_states("01_training", notebook, tmp_path / "states") == notebook["cells"]
            and not (tmp_path / "states").exists()
        )

    def test_a_figure_that_no_chapter_knows_is_described_by_the_part_that_it_stands_in(
        self, tmp_path
    ):
        notebook = json.loads(
            (published_folder() / "digits" / "chapters" / "05_results.ipynb").read_text()
        )
        for cell in notebook["cells"]:
            if "figures.results(" in "".join(cell["source"]):
                cell["source"] = "another()"
        (tmp_path / "05_results.ipynb").write_text(json.dumps(notebook))
        (cell,) = [
            cell
            for cell in json.loads(book.page(tmp_path / "05_results.ipynb"))["cells"]
            if "another()" in cell["source"]
        ]
        assert cell["metadata"]["mystnb"]["figure"]["caption"] == "Differences, seed by seed"

    def test_a_profile_without_results_is_a_line_that_says_what_to_type(self, outputs, in_a_line):
        with pytest.raises(FileProblem, match="make reproduce PROFILE=paper") as caught:
            book.build("paper")
        assert in_a_line(caught.value) and not list(outputs.iterdir())
        with pytest.raises(ValueError, match="did you mean digits"):
            book.build("digit")


@pytest.fixture
def tab(browser, built):
    """`tab(page, width, scheme)`: a page of the book, open; what the browser complains about and what it asks for is in `.complaints`."""
    context = browser.new_context()

    def start(page: str, width: int = 1440, scheme: str = "light"):
        opened = context.new_page()
        opened.set_viewport_size({"width": width, "height": 900})
        opened.emulate_media(color_scheme=scheme)
        opened.complaints = []
        complain = opened.complaints.append
        opened.on(
            "console",
            lambda message: (
                complain(message.text) if message.type in ("error", "warning") else None
            ),
        )
        opened.on("pageerror", lambda error: complain(str(error)))
        opened.on("requestfailed", lambda asked: complain(f"failed: {asked.url}"))
        opened.on(
            "request",
            lambda asked: (
                None
                if asked.url.startswith(("file:", "data:"))
                else complain(f"asks for {asked.url}")
            ),
        )
        opened.goto(f"{built.as_uri()}/{page}")
        opened.add_style_tag(
            content="* { transition: none !important; }"
        )  # colours as they are, not on their way
        return opened

    yield start
    context.close()


def broken(tab, soup, built) -> list[str]:
    """Links of the page that lead to no file of the book, or to no anchor of it."""
    found = []
    for url in sorted(
        set(tab.eval_on_selector_all("a[href]", "links => links.map(link => link.href)"))
    ):
        parts = urllib.parse.urlsplit(url)
        path = Path(urllib.parse.unquote(parts.path))
        if parts.scheme == "file":
            there = path.is_file() and path.is_relative_to(built)
            anchor = urllib.parse.unquote(parts.fragment)
            if not there or (
                anchor and not soup(path.relative_to(built).as_posix()).find(id=anchor)
            ):
                found.append(url)
        elif parts.scheme != "https":
            found.append(url)
    return found


def blank(tab) -> list[str]:
    """Images that were not loaded, or are of one colour."""
    images = tab.eval_on_selector_all(
        "img", "images => images.map(image => [image.src, image.naturalWidth])"
    )
    files = {url: Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)) for url, _ in images}
    return [
        url
        for url, width in images
        if not width or len(set(Image.open(files[url]).convert("L").getextrema())) == 1
    ]


def violations(tab, options) -> list[str]:
    """What axe-core finds, a line each."""
    from axe_playwright_python.sync_playwright import Axe

    rows_alike = {
        "exclude": [
            ["table.dataframe tbody tr:nth-child(n+3)"],
            ["dl.attribute + dl.attribute + dl.attribute"],
        ]
    }
    found = (
        Axe()
        .run(tab, rows_alike, options | {"preload": False, "resultTypes": ["violations"]})
        .response["violations"]
    )
    return [
        f"{each['id']}: {each['help']}: {each['nodes'][0]['target']}, {len(each['nodes'])} in all"
        for each in found
    ]


def dark(tab) -> None:
    """Turn the page dark, as the system does in the evening."""
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_function("document.documentElement.dataset.theme == 'dark'")


@pytest.mark.browser
class TestInABrowser:
    @pytest.mark.parametrize("page", PAGES)
    def test_every_page_is_sound(self, tab, soup, built, tmp_path, page):
        """No complaint, no request, no broken link, no blank image, nothing that axe-core finds, and no scrolling sideways.

        The pages of the runs are one chapter, executed again and again: in the dark, and for axe-core on a telephone, chapter 01
        stands for them.
        """
        one_of_many = page in RUNS
        opened = tab(page, width=390)

        def sound(*found) -> None:
            reach = (
                opened.evaluate("document.documentElement.scrollWidth")
                - opened.viewport_size["width"]
            )
            wrong = [
                *opened.complaints,
                *found,
                *([f"{reach} px beyond the screen"] if reach > 0 else []),
            ]
            if wrong:
                picture = tmp_path / "seen.png"
                opened.screenshot(path=picture, full_page=True)
                pytest.fail(
                    f"{page} at {opened.viewport_size['width']} px: {wrong}; seen in {picture}"
                )

        sound(
            *broken(opened, soup, built),
            *blank(opened),
            *([] if one_of_many else violations(opened, ALL_BUT_CONTRAST)),
        )
        opened.set_viewport_size({"width": 768, "height": 900})
        sound()
        opened.set_viewport_size({"width": 1440, "height": 900})
        sound(*violations(opened, EVERYTHING))
        if not one_of_many:
            dark(opened)
            sound(*violations(opened, CONTRAST))

    @pytest.mark.parametrize("page", ["index.html", CHAPTERS[4]])
    def test_a_table_that_goes_on_beyond_the_screen_shows_so_before_it_is_touched(self, tab, page):
        wide = "nodes => nodes.filter(node => node.scrollWidth > node.clientWidth)"
        bars = f"nodes => ({wide})(nodes).map(node => getComputedStyle(node, '::-webkit-scrollbar').height)"
        assert set(
            tab(page, width=390).eval_on_selector_all(
                ".text_html, .pst-scrollable-table-container", bars
            )
        ) == {"8px"}

    def test_code_is_folded_away_until_it_is_asked_for(self, tab):
        opened = tab(CHAPTERS[2])
        assert (
            opened.locator(".cell_input").count() > 10
            and not opened.locator(".cell_input pre >> visible=true").count()
        )
        opened.locator("summary", has_text="Show the code").first.click()
        assert "profile: str" in opened.locator(".cell_input pre >> visible=true").inner_text()

    def test_figures_keep_a_white_ground_in_the_dark(self, tab):
        opened = tab(CHAPTERS[2])
        ground = (
            "node => getComputedStyle(node).backgroundColor + ', ' + getComputedStyle(node).filter"
        )
        assert opened.eval_on_selector("body", ground) == "rgb(255, 255, 255), none"
        dark(opened)
        assert opened.eval_on_selector("body", ground) == "rgb(18, 18, 18), none"
        assert set(
            opened.eval_on_selector_all("article figure img", f"nodes => nodes.map({ground})")
        ) == {"rgb(255, 255, 255), none"}

    def test_a_slider_moved_by_the_keyboard_shows_the_state_that_it_names(self, tab):
        opened = tab("chapters/01_training.html")
        states = json.loads(opened.locator(".explore script").text_content())
        opened.get_by_label("share of input 1").press("ArrowRight")
        opened.get_by_label("its box").press("ArrowDown")
        shown = opened.locator(".explore img")
        assert shown.get_attribute("src") == states["70, middle"]["src"]
        assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") > 1000
        assert opened.locator(".explore [aria-live]").inner_text() == states["70, middle"]["told"]
        assert opened.locator(".explore output").inner_text() == "70" and opened.complaints == []

    def test_a_method_chosen_from_a_list_shows_its_own_picture_and_the_number_of_the_published_table(
        self, tab
    ):
        table = pd.read_csv(DIGITS / "studies" / "sharing.csv").set_index(
            ["method", "seed", "block"]
        )["overlap"]
        opened, seen = tab("chapters/03_subnetwork_features.html"), set()
        for method, title in (
            ("mimo", "MIMO"),
            ("cut_mixmo", "Cut-MixMo"),
            ("mixshare", "MixShare"),
        ):
            opened.get_by_label("method").select_option(title)
            assert (
                f"overlap {table.loc[method, 1, 1]:.2f}, by chance"
                in opened.locator(".explore [aria-live]").inner_text()
            )
            assert (
                opened.locator(".explore img")
                .get_attribute("alt")
                .endswith(opened.locator(".explore [aria-live]").inner_text())
            )
            seen.add(opened.locator(".explore img").get_attribute("src"))
        assert len(seen) == 3 and opened.complaints == []

    def test_without_scripts_the_first_state_stands_without_controls(self, browser, built):
        context = browser.new_context(java_script_enabled=False)
        opened = context.new_page()
        opened.goto(f"{built.as_uri()}/chapters/01_training.html")
        assert (
            opened.locator(".explore img").is_visible()
            and not opened.locator(".explore form").is_visible()
        )
        context.close()

    def test_what_is_searched_for_is_found(self, tab):
        opened = tab("search.html?q=falsified")
        hits = opened.locator("#search-results li a")
        opened.locator(
            ".search-summary", has_text="Search finished"
        ).wait_for()  # one hit comes after the other
        found = {
            Path(path).name
            for path in hits.evaluate_all("links => links.map(link => link.pathname)")
        }
        assert found >= {Path(chapter).name for chapter in CHAPTERS}
        hits.first.click()
        opened.wait_for_url(lambda url: "/chapters/" in url or "/runs/" in url)
        assert opened.complaints == []
