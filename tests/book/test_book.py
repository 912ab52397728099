"""The book as a reader sees it: its HTML, and its pages in headless Chromium, from the disk.

A small book, with one run of each method and a few states of the picture with controls, is built
once for all tests. Slow tests build the whole book of all published profiles.
"""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from PIL import Image

import mixshare
from mixshare.chapters import results
from mixshare.figures.names import title
from mixshare.files import project_root, published_folder

ROOT = project_root()
PUBLISHED = published_folder()
DIGITS = PUBLISHED / "digits"
PROFILES = sorted(path.parent.name for path in PUBLISHED.glob("*/studies"))
EXPLORED = "digits/chapters/01_training.html"  # the page of the picture with controls
DOCS = [f"docs/{path.stem}.html" for path in (ROOT / "docs").glob("*.[mr][ds]*")]
OTHERS = ["index.html", *DOCS, "search.html"]
LEFT_OUT = ["04_adjustments", "06_speed"]  # of the small book


def chapters(profile: str, but: list[str] = ()) -> list[str]:
    """Return the pages of a profile's published chapters, in order."""
    published = {path.stem for path in (PUBLISHED / profile / "chapters").glob("*.ipynb")}
    names = sorted({"01_training", *published} - {*but})
    return [f"{profile}/chapters/{name}.html" for name in names]


def runs(profile: str, seed: str = "*") -> list[str]:
    """Return the pages of a profile's published runs; MixShare's first is chapter 01."""
    folder = PUBLISHED / profile
    paths = folder.glob(f"*/seed-{seed}/01_training.ipynb")
    pages = {f"{profile}/runs/{path.parent.relative_to(folder)}.html" for path in paths}
    return sorted(pages - {f"{profile}/runs/mixshare/seed-1.html"})


def of_profiles(profiles: list[str]) -> list[str]:
    """Return the pages about whole profiles."""
    return [f"{profile}/{name}.html" for profile in profiles for name in ("index", "runs")]


CHAPTERS, RUNS = chapters("digits", LEFT_OUT), runs("digits", "1")
ALL_CHAPTERS = [page for profile in PROFILES for page in chapters(profile)]
ALL_RUNS = [page for profile in PROFILES for page in runs(profile)]
PAGES = [*CHAPTERS, *RUNS, *of_profiles(["digits"]), *OTHERS]
ALL_PAGES = [*ALL_CHAPTERS, *ALL_RUNS, *of_profiles(PROFILES), *OTHERS]

SMALL_BOOK = """\
import dataclasses, os, pathlib, sys
import book, states

def few(notebook, remake=states.remake):
    explorer, controls = remake(notebook), {}
    for (name, options), first in zip(explorer.controls.items(), explorer.start):
        start = max(0, options.index(first) - 1)
        controls[name] = options[start : start + 2]
    return dataclasses.replace(explorer, controls=controls)

states.remake, folder = few, pathlib.Path(os.environ["PUBLISHED"])
book.published_folder = lambda: folder
sys.exit(book.main())
"""


@dataclass
class Book:
    """A book, and the command that built it."""

    command: list
    outputs: Path
    environment: dict = field(default_factory=dict)

    def __post_init__(self):
        environment = os.environ | self.environment | {"MIXSHARE_OUTPUTS": str(self.outputs)}
        self.folder, self.pages = self.outputs / "book", {}
        self.done = subprocess.run(
            [sys.executable, *self.command], env=environment, capture_output=True, text=True
        )
        assert self.done.returncode == 0, self.done.stderr

    def soup(self, page: str) -> BeautifulSoup:
        """Return a page, parsed."""
        if page not in self.pages:
            text = (self.folder / page).read_text(encoding="utf-8")
            self.pages[page] = BeautifulSoup(text, "html.parser")
        return self.pages[page]

    def article(self, page: str) -> str:
        """Return a page's text."""
        return text_of(self.soup(page).article)


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    """Return the small book."""
    published = tmp_path_factory.mktemp("published")

    def left_out(folder: str, names: list[str]) -> list[str]:
        chapters = ["01_training"] if Path(folder).name in ("seed-2", "seed-3") else LEFT_OUT
        return [f"{name}.ipynb" for name in chapters]

    shutil.copytree(DIGITS, published / "digits", ignore=left_out)
    environment = {"PUBLISHED": str(published), "PYTHONPATH": str(ROOT / "docs")}
    outputs = tmp_path_factory.mktemp("outputs")
    return Book(["-c", SMALL_BOOK, "digits"], outputs, environment)


@pytest.fixture(scope="session")
def whole_book(tmp_path_factory):
    """Return the whole book, built by the Makefile's command."""
    return Book([ROOT / "docs" / "book.py"], tmp_path_factory.mktemp("outputs"))


def text_of(node) -> str:
    return re.sub(r"\s+", " ", node.get_text(" ", strip=True)).replace("’", "'")


def bare(text: str) -> str:
    """Return letters and signs alone: without spaces, marks of code, and the shape of quotes."""
    return re.sub(r"[\s`]", "", text).translate(str.maketrans("’“”", '\'""'))


def steps(slider) -> list[str]:
    """Return the values of a slider."""
    low, high, step = (int(slider[name]) for name in ("min", "max", "step"))
    return [str(value) for value in range(low, high + 1, step)]


def executed_cells(page: str) -> list[dict]:
    """Return the cells of the published chapter that a page shows."""
    profile, kind, name = page.removesuffix(".html").split("/", 2)
    name = f"{kind}/{name}" if kind == "chapters" else f"{name}/01_training"
    if name == "chapters/01_training":
        name = "mixshare/seed-1/01_training"
    return json.loads((PUBLISHED / profile / f"{name}.ipynb").read_text())["cells"]


def check_outputs(book: Book, page: str) -> None:
    """Check that a page shows every output of its chapter as it is.

    The picture with controls has all its states there, which `check_states` looks at.
    """
    hidden = {"regression"} | ({"explore"} if page == EXPLORED else set())
    tags = [set(cell["metadata"].get("tags", [])) for cell in executed_cells(page)]
    cells = [c for c, own in zip(executed_cells(page), tags, strict=True) if not hidden & own]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    printed = []
    for output in outputs:
        if len(output.get("data", {})) < 2:
            printed.append("".join(output.get("text") or output["data"]["text/plain"]))
    soup = book.soup(page)
    shown = [block.get_text() for block in soup.select(".cell_output pre")]
    assert [text.rstrip("\n") for text in shown] == [text.rstrip("\n") for text in printed]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert len(soup.select("table.dataframe")) == kinds.count("text/html")
    pictures = [each for each in soup.select("article figure img") if not each.find_parent("form")]
    states = soup.select(".explore img")
    assert len(pictures) - len(states) == kinds.count("image/png")


def check_descriptions(book: Book, page: str) -> None:
    """Check that every figure of a page has a caption and words in its place, of its own."""
    figures = book.soup(page).select("article figure")
    assert len(figures) == len(book.soup(page).select("article img")) > 0
    for figure in figures:
        alt, caption = figure.img["alt"], text_of(figure.figcaption)
        assert len(alt) > 50 and len(caption) > 50 and alt != caption
        assert not alt.startswith("Figure in the part")


def check_states(book: Book) -> dict:
    """Check the picture with controls: a picture and a sentence for each choice; return all."""
    (explorer,) = book.soup(EXPLORED).select("article .explore")
    controls, states = explorer.select("select, input"), json.loads(explorer.script.string)
    choices = [[each.text for each in c.select("option")] or steps(c) for c in controls]
    assert states.keys() == {", ".join(choice) for choice in itertools.product(*choices)}
    files = [(book.folder / EXPLORED).parent / state["src"] for state in states.values()]
    # A box of 90 % has two places on each axis of 16 pixels: the middle is one of the corners.
    least = len(states) - ("90, middle" in states)
    assert len({path.read_bytes() for path in files}) >= least
    for kind in ("sentence", "alt"):
        # Two boxes of one size can have answers that round to the same.
        assert len({state[kind] for state in states.values()}) >= 0.8 * len(states)
    start = states[", ".join(c.get("value") or c.select_one("[selected]").text for c in controls)]
    assert (explorer.img["src"], explorer.img["alt"]) == (start["src"], start["alt"])
    assert text_of(explorer.select_one("[aria-live]")) == start["sentence"]
    return states


class TestTheBook:
    def test_is_built_without_a_warning_and_leaves_nothing_else(self, book):
        message = r"rendering digits: .*\n\d+ pages; open .*index\.html\n"
        assert book.done.stderr == "" and re.fullmatch(message, book.done.stdout)
        assert [path.name for path in book.outputs.iterdir()] == ["book"]

    def test_has_a_page_for_every_chapter_and_run(self, book):
        pages = {path.relative_to(book.folder).as_posix() for path in book.folder.rglob("*.html")}
        assert {name for name in pages if not name.startswith(("_static/", "_modules/"))} == {
            *PAGES
        }

    def test_leads_from_page_to_page_in_the_chapters_order(self, book):
        def target(page: str, link: str) -> str:
            return book.soup(page).select_one(link)["href"].split("/")[-1]

        for page, following in pairwise(
            ["index.html", "digits/index.html", *CHAPTERS, "digits/runs.html"]
        ):
            assert target(page, "a.right-next") == following.split("/")[-1]
            assert target(following, "a.left-prev") == page.split("/")[-1]

    def test_opens_with_the_table_of_the_published_results(self, book):
        table = results.read_summary(DIGITS / "studies" / "results.csv")
        *_, shown = book.soup("digits/index.html").select("article table")
        lines = shown.select("tbody tr")
        rows = [[text_of(cell) for cell in line.select("td")] for line in lines]
        assert [row[0] for row in rows] == [title(name) for name in table.index]
        accuracies = [f"{100 * value:.2f}" for value in table["accuracy_ensemble_mean"]]
        assert [row[1].split(" ± ")[0] for row in rows] == accuracies
        assert [row[-1] for row in rows] == [str(n) for n in table["n"]]

    def test_has_one_title_and_the_parts_of_the_template_on_its_first_page(self, book):
        template = (ROOT / "docs" / "templates" / "index.md").read_text()
        template = template.replace("{{ config.profile | capitalize }}", "Digits")
        parts = [(f"h{len(a)}", b) for a, b in re.findall(r"(?m)^(#+) (.*)$", template)]
        headings = book.soup("digits/index.html").article.select("h1, h2, h3, h4")
        assert [(each.name, each.find(string=True)) for each in headings] == parts
        assert [level for level, _ in parts].count("h1") == 1

    def test_opens_with_the_verdicts_on_the_papers_claims(self, book):
        kept = pd.read_csv(DIGITS / "studies" / "claims.csv")
        shown = book.soup("digits/index.html").select("article table")[0].select("tbody tr")
        rows = [[text_of(cell) for cell in row.select("td")] for row in shown]
        assert rows == kept[["claim", "verdict", "place"]].to_numpy().tolist() and len(rows) > 12

    def test_says_on_its_first_page_how_sure_we_are(self, book):
        text = book.article("digits/index.html")
        for sentence in (
            "MixShare 1, 2, 3",
            "threads: 1",
            "1,297 training images of digits , WRN-10-1, 40 epochs.",
        ):
            assert sentence in text
        assert text.count("after Holm's correction over 4 comparisons") == 2

    def test_says_on_its_first_page_what_is_no_evidence_and_what_the_networks_are_at_test_time(
        self, book
    ):
        text = book.article("digits/index.html")
        for sentence in (
            "so its overlap is 1 before any training, by construction",
            "is one plain network",
        ):
            assert sentence in text

    def test_has_the_pages_as_they_are(self, book):
        page = (ROOT / "docs" / "decisions.md").read_text()
        rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
        article = book.soup("docs/decisions.html").article
        shown = [bare(row.get_text()) for row in article.select("tbody tr")]
        assert shown == [bare(row.replace("|", "")) for row in rows] and len(rows) > 15

    def test_opens_with_what_compares_the_profiles_and_leads_elsewhere(self, book):
        claimed, profiles = book.soup("index.html").select("article table")
        kept = pd.read_csv(DIGITS / "studies" / "claims.csv")
        verdicts = [text_of(row.select("td")[1]) for row in claimed.select("tbody tr")]
        assert verdicts == kept["verdict"].to_list()
        (row,) = profiles.select("tbody tr")
        assert [text_of(cell) for cell in row.select("td")] == (
            ["digits", "digits", "WRN-10-1", "40", "7"]
        )
        links = {a["href"] for a in book.soup("index.html").select(".bd-sidebar-primary a[href]")}
        assert {"https://arxiv.org/abs/2205.10139", "digits/runs.html"} <= links

    def test_says_on_each_folded_cell_what_its_code_does(self, book):
        for page in CHAPTERS:
            cells = book.soup(page).select("details.above-input summary")
            said = [text_of(cell) for cell in cells]
            assert all(text.startswith("What this code does") for text in said)
            assert sum(len(text) > 30 for text in said) > len(said) / 2

    def test_has_a_caption_on_every_table_of_a_chapter(self, book):
        for page in CHAPTERS:
            for table in book.soup(page).select("table.dataframe"):
                assert len(text_of(table.caption)) > 15, page

    def test_documents_the_public_names_and_every_field_of_a_run(self, book):
        fields = [f"RunConfig.{name}" for name in mixshare.RunConfig.__dataclass_fields__]
        for name in [*mixshare.__all__, *fields]:
            described = (
                book.soup("docs/api.html").find(id=f"mixshare.{name}").find_next_sibling("dd")
            )
            assert len(text_of(described)) > (0 if name in fields else 30), name

    def test_links_every_name_on_the_map_of_ideas_to_its_documentation(self, book):
        names = set(re.findall(r"`(mixshare\.[\w.]+)`", (ROOT / "docs" / "code.md").read_text()))
        links = {
            a.text: a["href"]
            for a in book.soup("docs/code.html").select("article td a, article p a")
        }
        assert {name: f"api.html#{name}" for name in names} == links
        assert all(book.soup("docs/api.html").find(id=name) for name in names)

    @pytest.mark.parametrize("page", [*CHAPTERS, *RUNS])
    def test_shows_every_output_of_a_chapter_as_it_is(self, book, page):
        check_outputs(book, page)

    @pytest.mark.parametrize("page", ["digits/index.html", *CHAPTERS, *RUNS])
    def test_describes_every_figure_in_words_of_its_own(self, book, page):
        check_descriptions(book, page)

    def test_has_a_picture_and_a_sentence_for_every_state(self, book):
        assert len(check_states(book)) == 2 * 2

    def test_writes_formulas_in_mathml(self, book):
        features = next(page for page in CHAPTERS if "03_" in page)
        for page in (EXPLORED, features):
            markdown = [cell for cell in executed_cells(page) if cell["cell_type"] == "markdown"]
            text = "".join("".join(cell["source"]) for cell in markdown)
            formulas = re.findall(r"\$\$?.+?\$\$?", text, re.S)
            assert len(book.soup(page).select("article math")) == len(formulas) > 3
            assert "$" not in book.article(page) and "\\" not in book.soup(page).article.p.text
        assert "ℳ" in book.soup(features).math.find_parent("section").text

    def test_asks_the_network_for_nothing(self, book):
        loading = "script[src], img, iframe, link:not([rel=canonical])"
        for page in PAGES:
            loaded = [
                each.get("src") or each.get("href") for each in book.soup(page).select(loading)
            ]
            assert len(loaded) > 5 and not [url for url in loaded if "//" in url], page


@pytest.mark.slow
class TestTheWholeBook:
    def test_is_built_by_the_makefiles_command_without_a_warning(self, whole_book):
        assert whole_book.done.stderr == ""
        assert all((whole_book.folder / page).is_file() for page in ALL_PAGES)

    def test_shows_every_chapter_and_run_as_it_is(self, whole_book):
        for page in (*ALL_CHAPTERS, *ALL_RUNS):
            check_outputs(whole_book, page)
            check_descriptions(whole_book, page)

    def test_has_every_state_of_the_picture_with_controls(self, whole_book):
        assert len(check_states(whole_book)) == 5 * 5


@pytest.fixture
def tab(browser, book):
    """`tab(page, width)`: a page of the small book, opened."""
    context = browser.new_context()
    yield lambda page, width=1440: open_page(context, book, page, width)
    context.close()


def open_page(context, book: Book, page: str, width: int):
    """Open a page; what the browser complains about, or asks for, is in `.complaints`."""
    opened = context.new_page()
    opened.set_viewport_size({"width": width, "height": 900})
    opened.emulate_media(color_scheme="light")
    opened.complaints = []

    def complain(text: str) -> None:
        opened.complaints.append(text)

    def on_console(message) -> None:
        if message.type in ("error", "warning"):
            complain(message.text)

    def on_request(request) -> None:
        if not request.url.startswith(("file:", "data:")):
            complain(f"asks for {request.url}")

    opened.on("console", on_console)
    opened.on("pageerror", lambda error: complain(str(error)))
    opened.on("requestfailed", lambda request: complain(f"failed: {request.url}"))
    opened.on("request", on_request)
    opened.goto(f"{book.folder.as_uri()}/{page}")
    opened.add_style_tag(content="* { transition: none !important; }")  # colours as they end
    return opened


def path_of(url: str) -> Path:
    return Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path))


def broken_links(tab, book: Book) -> list[str]:
    """Return links of a page that lead to no file of the book, or to no anchor of it."""
    broken = []
    for url in set(tab.eval_on_selector_all("a[href]", "links => links.map(link => link.href)")):
        parts, path = urllib.parse.urlsplit(url), path_of(url)
        anchor = urllib.parse.unquote(parts.fragment)
        if parts.scheme == "https":
            continue
        if parts.scheme != "file" or not path.is_file() or not path.is_relative_to(book.folder):
            broken.append(url)
        elif anchor and not book.soup(path.relative_to(book.folder).as_posix()).find(id=anchor):
            broken.append(url)
    return broken


def blank_images(tab) -> list[str]:
    """Return images that were not loaded, or are of one colour."""
    sizes = "images => images.map(image => [image.src, image.naturalWidth])"
    blank = []
    for url, width in tab.eval_on_selector_all("img", sizes):
        low, high = Image.open(path_of(url)).convert("L").getextrema() if width else (0, 0)
        if low == high:
            blank.append(url)
    return blank


def cut_off(tab) -> list[str]:
    """Return the tables that are wider than their column."""
    return tab.evaluate("""() => [...document.querySelectorAll('article table')]
        .map(table => table.parentElement)
        .filter(box => box.scrollWidth > box.clientWidth + 1)
        .map(box => `cut off: ${box.innerText.slice(0, 50)}`)""")


def beyond_the_screen(tab) -> list[str]:
    """Return how far a page reaches beyond the screen's side, if it does."""
    width = tab.viewport_size["width"]
    excess = tab.evaluate("document.documentElement.scrollWidth") - width
    return [f"{excess} px beyond a screen of {width} px"] if excess > 0 else []


# Tables are shown as pandas wrote them, with empty corners.
KNOWN = {"empty-table-header": {"enabled": False}}
EVERYTHING, CONTRAST = {"rules": KNOWN}, {"runOnly": ["color-contrast"]}
ALL_BUT_CONTRAST = {"rules": KNOWN | {"color-contrast": {"enabled": False}}}


def violations(tab, options: dict) -> list[str]:
    """Return what axe-core reports, a line each."""
    from axe_playwright_python.sync_playwright import Axe

    alike = [
        "table.dataframe tbody tr:nth-child(n+3)",
        "dl.attribute + dl.attribute + dl.attribute",
    ]
    options = options | {"preload": False, "resultTypes": ["violations"]}
    report = Axe().run(tab, {"exclude": [[selector] for selector in alike]}, options).response
    return [
        f"{each['id']}: {each['help']}: {each['nodes'][0]['target']}, {len(each['nodes'])} in all"
        for each in report["violations"]
    ]


def darken(tab) -> None:
    """Turn a page dark, as the system does in the evening."""
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_function("document.documentElement.dataset.theme == 'dark'")


def faults(opened, book: Book) -> list[str]:
    """Return what is wrong with a page on a telephone, a tablet and a desk's screen."""
    found = [*broken_links(opened, book), *blank_images(opened), *beyond_the_screen(opened)]
    for width in (768, 1440):
        opened.set_viewport_size({"width": width, "height": 900})
        found += beyond_the_screen(opened)
    return found + cut_off(opened) + opened.complaints


def resize(opened, width: int) -> None:
    """Resize a page, and wait until it has done what it does then, by its own clock.

    The theme gives what scrolls a stop for the keyboard 300 ms after the last change.
    """
    opened.set_viewport_size({"width": width, "height": 900})
    later = "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 500)))"
    opened.evaluate(f"new Promise(done => {later})")


def axe_faults(opened) -> list[str]:
    """Return what axe-core reports on a telephone, on a desk's screen, and there in the dark."""
    resize(opened, 390)
    found = violations(opened, ALL_BUT_CONTRAST)
    resize(opened, 1440)
    found += violations(opened, EVERYTHING)
    darken(opened)
    return found + violations(opened, CONTRAST)


@pytest.mark.browser
class TestInABrowser:
    @pytest.mark.parametrize("page", ["index.html", "digits/index.html", CHAPTERS[0], RUNS[0]])
    def test_a_page_of_each_kind_is_sound_and_axe_has_nothing_to_report(self, tab, book, page):
        """No complaint, no request, no broken link, no blank image, no scrolling sideways."""
        opened = tab(page, width=390)
        assert not [*faults(opened, book), *axe_faults(opened)]

    @pytest.mark.parametrize(
        "page",
        ["digits/chapters/05_results-precision.html", "docs/code.html", "docs/testing.html"],
    )
    def test_a_wide_page_is_sound(self, tab, book, page):
        assert not faults(tab(page, width=390), book)

    @pytest.mark.slow
    @pytest.mark.parametrize("page", ALL_PAGES)
    def test_every_page_of_the_whole_book_is_sound(self, browser, whole_book, page):
        context = browser.new_context()
        opened = open_page(context, whole_book, page, 390)
        found = [*faults(opened, whole_book), *axe_faults(opened)]
        context.close()
        assert not found

    @pytest.mark.parametrize("page", ["digits/index.html", "digits/chapters/05_results.html"])
    def test_a_table_wider_than_the_screen_has_a_visible_scroll_bar(self, tab, page):
        heights = """nodes => nodes.filter(node => node.scrollWidth > node.clientWidth)
            .map(node => getComputedStyle(node, '::-webkit-scrollbar').height)"""
        tables = ".text_html, .pst-scrollable-table-container"
        assert set(tab(page, width=390).eval_on_selector_all(tables, heights)) == {"8px"}

    def test_code_is_folded_away_until_it_is_asked_for(self, tab):
        opened = tab(CHAPTERS[2])
        code = opened.locator(".cell_input pre >> visible=true")
        assert opened.locator(".cell_input").count() > 10 and not code.count()
        opened.locator("summary", has_text="What this code does").first.click()
        assert "profile: str" in code.inner_text()

    def test_figures_keep_a_white_ground_in_the_dark(self, tab):
        opened = tab(CHAPTERS[2])
        style = "getComputedStyle(node).backgroundColor + ', ' + getComputedStyle(node).filter"
        assert opened.eval_on_selector("body", f"node => {style}") == "rgb(255, 255, 255), none"
        darken(opened)
        assert opened.eval_on_selector("body", f"node => {style}") == "rgb(18, 18, 18), none"
        figures = f"nodes => nodes.map(node => {style})"
        grounds = set(opened.eval_on_selector_all("article figure img", figures))
        assert grounds == {"rgb(255, 255, 255), none"}

    def test_a_tap_on_a_telephone_opens_a_figure_in_its_own_size(self, tab):
        opened = tab(CHAPTERS[2], width=390)
        figure, large = opened.locator("article figure img").first, opened.locator("dialog img")
        assert figure.bounding_box()["width"] < 390 and not large.count()
        figure.click()
        natural = large.evaluate("image => image.decode().then(() => image.naturalWidth)")
        assert large.bounding_box()["width"] == natural > 800
        opened.keyboard.press("Escape")
        large.wait_for(state="hidden")
        button = opened.locator("button.zoom").first
        button.press("Enter")
        assert large.is_visible() and button.get_attribute("aria-label").startswith(
            "Open in its own"
        )
        large.click(position={"x": 5, "y": 5})
        large.wait_for(state="hidden")
        assert not opened.complaints

    def test_a_slider_moved_by_the_keyboard_shows_the_state_that_it_names(self, tab):
        opened = tab(EXPLORED)
        states = json.loads(opened.locator(".explore script").text_content())
        opened.get_by_label("share of input 1").press("ArrowLeft")
        opened.get_by_label("its box").press("ArrowDown")
        state, shown = states["30, middle"], opened.locator(".explore img")
        assert shown.get_attribute("src") == state["src"]
        assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") > 1000
        assert opened.locator(".explore [aria-live]").inner_text() == state["sentence"]
        assert opened.locator(".explore output").inner_text() == "30" and not opened.complaints

    def test_without_scripts_the_first_state_is_shown_without_controls(self, browser, book):
        context = browser.new_context(java_script_enabled=False)
        opened = context.new_page()
        opened.goto(f"{book.folder.as_uri()}/{EXPLORED}")
        assert opened.locator(".explore img").is_visible()
        assert not opened.locator(".explore form").is_visible()
        context.close()

    def test_the_search_finds_every_chapter_and_leads_there(self, tab):
        opened = tab("search.html?q=falsified")
        hits = opened.locator("#search-results li a")
        opened.locator(".search-summary", has_text="Search finished").wait_for()  # the last hit
        paths = hits.evaluate_all("links => links.map(link => link.pathname)")
        judging = {Path(page).name for page in CHAPTERS} - {"07_trust.html"}  # it has no claim
        assert {Path(path).name for path in paths} >= judging
        hits.first.click()
        opened.wait_for_url(lambda url: "/chapters/" in url or "/runs/" in url)
        assert not opened.complaints
