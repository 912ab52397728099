"""The chapters as a reader steps through them: a real JupyterLab, used in headless Chromium."""

import base64
import io
import json
import shutil
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest
from PIL import Image

from mixshare.checks import FileProblem
from mixshare.files import project_root, read_json

COMMITTED = project_root() / "notebooks"
CHAPTERS = sorted(path.stem for path in COMMITTED.glob("*.ipynb"))
# One chapter shows that JupyterLab runs them, with `make test`; the others with `make test-all`.
QUICK = "01_training"
MOST_PATIENCE = 1_200_000  # ms, until a chapter that hangs is given up
CELL, FIGURE, DIALOG = ".jp-Notebook .jp-Cell", ".jp-OutputArea-output img", ".jp-Dialog"
OUTPUT = ".jp-OutputArea-output"
ERROR = f"{OUTPUT}[data-mime-type$='.stderr']"  # where a traceback would be, or a warning
PROMPTS = (
    "[...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')]"
    ".map(prompt => prompt.textContent)"
)
PANEL = "document.querySelector('.jp-WindowedPanel-outer')"

pytestmark = pytest.mark.browser


class Lab:
    """A running JupyterLab: its process, the folder of its notebooks, its address and its token."""

    def __init__(self, process: psutil.Process, notebooks: Path, url: str, token: str):
        self.process, self.notebooks, self.url, self.token = process, notebooks, url, token

    def request(self, path: str, method: str = "GET"):
        """Return the server's answer, for what no page shows."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}api/{path}", method=method, headers=headers)
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read() or "null")

    def kernels(self) -> list[psutil.Process]:
        """Return the processes of the running kernels."""
        children = self.process.children()
        return [child for child in children if "ipykernel" in " ".join(child.cmdline())]


@pytest.fixture(scope="module")
def lab(jupyter_lab, tmp_path_factory):
    """JupyterLab on a copy of the chapters.

    As on many machines, a kernel of another Python is called python3 too.
    """
    base = tmp_path_factory.mktemp("lab")
    shutil.copytree(COMMITTED, base / "notebooks", ignore=shutil.ignore_patterns(".*"))
    another = base / "JUPYTER_DATA_DIR" / "kernels" / "python3" / "kernel.json"
    another.parent.mkdir(parents=True)
    command = {"argv": ["another-python", "{connection_file}"]}
    another.write_text(json.dumps(command | {"display_name": "Other", "language": "python"}))
    with jupyter_lab(base, base / "notebooks") as (process, server):
        yield Lab(process, base / "notebooks", server["url"], server["token"])


@pytest.fixture
def open_chapter(browser, lab, tmp_path):
    """`open_chapter(name)`: a page with the chapter as committed, its errors in `.complaints`.

    A screenshot of its end is kept.
    """
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(120_000)  # where the machine is busy with other things
    page.complaints = []
    page.on("console", lambda message: complain(page, message.text, message.type))
    page.on("pageerror", lambda error: complain(page, str(error), "error"))

    def start(chapter: str):
        shutil.copyfile(COMMITTED / f"{chapter}.ipynb", lab.notebooks / f"{chapter}.ipynb")
        page.goto(f"{lab.url}lab/tree/{chapter}.ipynb?token={lab.token}&reset")
        page.locator(".jp-Toolbar-kernelName", has_text="Python 3 (ipykernel)").wait_for()
        page.locator("#jp-main-statusbar", has_text="| Idle").wait_for()
        return page

    yield start
    fit_height(page)
    page.screenshot(path=tmp_path / "seen.png")
    print("seen in", tmp_path / "seen.png")
    context.close()
    for kernel in lab.request("kernels"):
        lab.request(f"kernels/{kernel['id']}", "DELETE")


def complain(page, text: str, kind: str) -> None:
    if kind == "error":
        page.complaints.append(text)


def fit_height(page) -> None:
    """Make the window as high as the chapter."""
    height = page.evaluate(f"{PANEL}.scrollHeight")
    page.set_viewport_size({"width": 1440, "height": min(height + 200, 16_000)})
    page.evaluate(f"{PANEL}.scrollTop = 0")


def choose(page, menu: str, entry: str) -> None:
    for name in (menu, entry):
        page.get_by_role("menuitem", name=name, exact=True).click()


def run_all(page) -> None:
    """Clear all outputs, run all cells, and wait until each has run, or one has failed.

    The kernel is not restarted: it is new, and has JupyterLab's own first questions to answer.
    """
    choose(page, "Edit", "Clear Outputs of All Cells")
    page.wait_for_function(f"{PROMPTS}.every(prompt => !/\\d/.test(prompt))")
    assert not page.locator(FIGURE).count()
    choose(page, "Run", "Run All Cells")
    finished = "prompts => /\\d/.test(prompts[0]) && !prompts.includes('[*]:')"
    page.wait_for_function(f"({finished})({PROMPTS})", timeout=MOST_PATIENCE)


def edit(page, line: str, edited: str) -> None:
    """Type over a line of the parameters cell."""
    page.locator(f"{CELL} .cm-line", has_text=line).first.click()
    page.keyboard.press("Home")
    page.keyboard.press("Shift+End")
    page.keyboard.type(edited)


def is_blank(source: str) -> bool:
    """Return whether a picture, as the page's source of an image, has one colour."""
    file = io.BytesIO(base64.b64decode(source.partition("base64,")[2]))
    lowest, highest = Image.open(file).convert("L").getextrema()
    return lowest == highest


def are_loaded(images, count: int) -> bool:
    """Return whether a cell shows so many pictures of some size.

    A widget's come after the cell has run.
    """
    script = "images => images.map(image => image.complete && image.width > 100)"
    loaded = images.evaluate_all(script)
    return len(loaded) >= count and all(loaded)


def count_figures(cell: dict) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def saved_cells(lab, chapter: str, count: int) -> list[dict] | None:
    """Return the code cells of the saved chapter, once all of them have run."""
    try:
        notebook = read_json(lab.notebooks / f"{chapter}.ipynb")
    except FileProblem:  # JupyterLab empties the file before it writes it
        return None
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    numbers = [cell["execution_count"] for cell in cells]
    return cells if numbers == list(range(1, count + 1)) else None


def is_error(output: dict) -> bool:
    return output["output_type"] == "error" or output.get("name") == "stderr"


def marked(chapter: str):
    return chapter if chapter == QUICK else pytest.param(chapter, marks=pytest.mark.slow)


@pytest.mark.parametrize("chapter", [marked(chapter) for chapter in CHAPTERS])
def test_a_chapter_runs_to_its_end_and_shows_its_figures(open_chapter, lab, wait_for, chapter):
    page = open_chapter(chapter)
    committed = read_json(COMMITTED / f"{chapter}.ipynb")
    cells, kernel = committed["cells"], committed["metadata"]["kernelspec"]["name"]
    # For a name that it does not know JupyterLab silently takes another kernel of the language.
    assert [each["name"] for each in lab.request("kernels")] == [kernel]
    (process,) = lab.kernels()
    assert Path(process.cmdline()[0]).parent.samefile(Path(sys.executable).parent)
    assert not page.locator(DIALOG).count()
    run_all(page)
    assert page.locator(ERROR).all_text_contents() == []
    count = sum(cell["cell_type"] == "code" for cell in cells)
    assert page.evaluate(PROMPTS) == [f"[{number}]:" for number in range(1, count + 1)]
    for number, cell in enumerate(cells):
        images, figures = page.locator(CELL).nth(number).locator(FIGURE), count_figures(cell)
        wait_for(f"the figures of {cell['source']}", lambda i=images, n=figures: are_loaded(i, n))
        sources = images.evaluate_all("images => images.map(image => image.src)")
        assert not any(map(is_blank, sources)), cell["source"]
    assert not page.locator(DIALOG).count() and page.complaints == []
    page.keyboard.press("Control+s")
    for cell in wait_for("the file", lambda: saved_cells(lab, chapter, count)):
        assert not [output for output in cell["outputs"] if is_error(output)]


@pytest.mark.slow
class TestTheParametersCell:
    def test_refuses_what_is_not_possible_in_a_line(self, open_chapter):
        page = open_chapter(QUICK)
        for line, wanted in (
            ("seed: int = -1", "ValueError: seed is -1; possible"),
            ("method: str = 3", "TypeError: parameter method"),  # types are checked first
        ):
            edit(page, line.partition("=")[0], line)
            run_all(page)
            # The first: a cell that reaches the kernel after it has aborted the others runs too.
            error = page.locator(ERROR).first.text_content()
            assert error.startswith(wanted)
            assert "\n" not in error.strip()

    def test_takes_a_seed_that_is_trained_behind_a_bar_and_not_in_lines(self, open_chapter):
        page = open_chapter(QUICK)
        edit(page, "seed: int = 1", "seed: int = 4")  # which no chapter trains
        run_all(page)
        assert page.locator(OUTPUT, has_text="mixshare, seed 4, on digits-few").count() == 1
        assert page.locator(OUTPUT, has_text="mixshare, seed 1, on digits-few").count() == 0
        bar = page.locator(OUTPUT, has=page.locator(".widget-hprogress"))
        assert bar.count() == 1
        assert "mixshare seed 4: 100%" in " ".join(bar.text_content().split())
        assert page.locator(ERROR).all_text_contents() == []

    def test_takes_a_seed_whose_rows_the_results_then_show(self, open_chapter):
        page = open_chapter("05_results")
        assert page.locator(OUTPUT, has_text="rows of seed 1:").count() == 1
        edit(page, "seed: int = 1", "seed: int = 2")
        run_all(page)
        assert page.locator(OUTPUT, has_text="rows of seed 2: ['single, 2'").count() == 1
        assert page.locator(OUTPUT, has_text="rows of seed 1:").count() == 0
        assert page.locator(ERROR).all_text_contents() == []
