"""The chapters as a person steps through them: a real JupyterLab on copies of them, looked at and used in headless Chromium."""

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

from mixshare.errors import FileProblem
from mixshare.files import project_root, read_json

COMMITTED = project_root() / "notebooks"
CHAPTERS = sorted(path.stem for path in COMMITTED.glob("*.ipynb"))
PATIENCE = 600_000  # ms, until a chapter that hangs is given up
CELL, FIGURE = ".jp-Notebook .jp-Cell", ".jp-OutputArea-output img"
OUTPUT, ERROR = (
    ".jp-OutputArea-output",
    ".jp-OutputArea-output[data-mime-type$='.stderr']",
)  # where a traceback would stand, or a warning
PROMPTS = "[...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.textContent)"

pytestmark = pytest.mark.browser


class Lab:
    """A running JupyterLab: its process, the folder of its notebooks, its address and its token."""

    def __init__(self, process: psutil.Process, notebooks: Path, url: str, token: str):
        self.process, self.notebooks, self.url, self.token = process, notebooks, url, token

    def ask(self, path: str, method: str = "GET"):
        """What the server answers, for what no page shows."""
        request = urllib.request.Request(
            f"{self.url}api/{path}", method=method, headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read() or "null")

    def kernels(self) -> list[psutil.Process]:
        """The processes of the kernels that run now."""
        return [
            child
            for child in self.process.children()
            if any("ipykernel" in word for word in child.cmdline())
        ]


@pytest.fixture(scope="module")
def lab(jupyter_lab, tmp_path_factory):
    """A JupyterLab on a copy of the chapters. As on many a machine, a kernel of another Python calls itself python3 too."""
    base = tmp_path_factory.mktemp("lab")
    shutil.copytree(COMMITTED, base / "notebooks", ignore=shutil.ignore_patterns(".*"))
    another = base / "JUPYTER_DATA_DIR" / "kernels" / "python3" / "kernel.json"
    another.parent.mkdir(parents=True)
    spec = {
        "argv": ["another-python", "{connection_file}"],
        "display_name": "Another Python",
        "language": "python",
    }
    another.write_text(json.dumps(spec))
    with jupyter_lab(base, base / "notebooks") as (process, told):
        yield Lab(process, base / "notebooks", told["url"], told["token"])


@pytest.fixture
def tab(browser, lab, tmp_path):
    """`tab(chapter)`: JupyterLab with the chapter as committed, its errors in `.complaints`; a picture of what it ends with is kept."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(120_000)  # where the machine is busy with other things
    opened.complaints = []
    opened.on(
        "console",
        lambda message: opened.complaints.append(message.text) if message.type == "error" else None,
    )
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))

    def start(chapter: str):
        shutil.copyfile(COMMITTED / f"{chapter}.ipynb", lab.notebooks / f"{chapter}.ipynb")
        opened.goto(f"{lab.url}lab/tree/{chapter}.ipynb?token={lab.token}&reset")
        opened.locator(".jp-Toolbar-kernelName", has_text="Python 3 (ipykernel)").wait_for()
        opened.locator("#jp-main-statusbar", has_text="| Idle").wait_for()
        return opened

    yield start
    whole(opened)
    opened.screenshot(path=tmp_path / "seen.png")
    print("seen in", tmp_path / "seen.png")
    context.close()
    for kernel in lab.ask("kernels"):
        lab.ask(f"kernels/{kernel['id']}", "DELETE")


def whole(tab) -> None:
    """Make the window as high as the chapter."""
    height = tab.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollHeight")
    tab.set_viewport_size({"width": 1440, "height": min(height + 200, 16_000)})
    tab.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")


def choose(tab, menu: str, entry: str) -> None:
    """Choose an entry of a menu."""
    for name in (menu, entry):
        tab.get_by_role("menuitem", name=name, exact=True).click()


def run_all(tab) -> None:
    """Clear what is there, then run all, and wait until every cell has run, or one has failed.

    The kernel is new as it is: restarted, it would leave JupyterLab's own first questions to it without an answer.
    """
    choose(tab, "Edit", "Clear Outputs of All Cells")
    tab.wait_for_function(f"{PROMPTS}.every(prompt => !/\\d/.test(prompt))")
    assert not tab.locator(FIGURE).count()
    choose(tab, "Run", "Run All Cells")
    tab.wait_for_function(
        f"(prompts => /\\d/.test(prompts[0]) && !prompts.includes('[*]:'))({PROMPTS})",
        timeout=PATIENCE,
    )


def edit(tab, line: str, edited: str) -> None:
    """Type over a line of the parameters cell."""
    tab.locator(f"{CELL} .cm-line", has_text=line).first.click()
    tab.keyboard.press("Home")
    tab.keyboard.press("Shift+End")
    tab.keyboard.type(edited)


def blank(source: str) -> bool:
    """Whether a picture, as the page holds it, is of one colour."""
    lowest, highest = (
        Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2])))
        .convert("L")
        .getextrema()
    )
    return lowest == highest


def stand(images, count: int) -> bool:
    """Whether so many pictures of a cell stand there, with some size: a widget's come after the cell has run."""
    loaded = images.evaluate_all(
        "images => images.map(image => image.complete && image.width > 100)"
    )
    return len(loaded) >= count and all(loaded)


def pictures(cell: dict) -> int:
    """How many figures a committed cell shows."""
    return sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def saved(lab, chapter: str, count: int):
    """The code cells of the saved chapter, once all of them have run, or None."""
    try:
        notebook = read_json(lab.notebooks / f"{chapter}.ipynb")
    except FileProblem:  # JupyterLab empties the file and then writes it: it may be read in between
        return None
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return (
        cells if [cell["execution_count"] for cell in cells] == list(range(1, count + 1)) else None
    )


class TestAChapter:
    @pytest.mark.parametrize("chapter", CHAPTERS)
    def test_runs_to_its_end_and_shows_its_figures(self, tab, lab, wait_for, chapter):
        opened = tab(chapter)
        committed = read_json(COMMITTED / f"{chapter}.ipynb")
        cells, kernel = committed["cells"], committed["metadata"]["kernelspec"]["name"]
        # of a name that is not there JupyterLab silently takes another kernel for Python
        assert [each["name"] for each in lab.ask("kernels")] == [kernel] and not opened.locator(
            ".jp-Dialog"
        ).count()
        run_all(opened)
        assert opened.locator(ERROR).all_text_contents() == []
        count = sum(cell["cell_type"] == "code" for cell in cells)
        assert opened.evaluate(PROMPTS) == [f"[{number}]:" for number in range(1, count + 1)]
        for place, cell in enumerate(cells):
            images = opened.locator(CELL).nth(place).locator(FIGURE)
            wait_for(f"the pictures of {cell['source']}", lambda: stand(images, pictures(cell)))
            assert not any(
                map(blank, images.evaluate_all("images => images.map(image => image.src)"))
            ), cell["source"]
        assert not opened.locator(".jp-Dialog").count() and opened.complaints == []
        opened.keyboard.press("Control+s")
        outputs = [
            output
            for cell in wait_for("the file", lambda: saved(lab, chapter, count))
            for output in cell["outputs"]
        ]
        assert [
            output
            for output in outputs
            if output["output_type"] == "error" or output.get("name") == "stderr"
        ] == []

    def test_names_the_kernel_of_this_environment_and_nobody_has_to_choose_it(self, tab, lab):
        opened = tab("01_training")
        (kernel,) = lab.kernels()
        assert Path(kernel.cmdline()[0]).parent.samefile(Path(sys.executable).parent)
        assert not opened.locator(".jp-Dialog").count()


class TestTheParametersCell:
    def test_takes_a_seed_that_is_trained_behind_a_bar_and_not_in_lines(self, tab):
        opened = tab("01_training")
        assert opened.locator(OUTPUT, has_text="mixshare, seed 1, on digits-few").count() == 1
        edit(opened, "seed: int = 1", "seed: int = 4")  # which no chapter trains
        run_all(opened)
        assert opened.locator(OUTPUT, has_text="mixshare, seed 4, on digits-few").count() == 1
        assert opened.locator(OUTPUT, has_text="mixshare, seed 1, on digits-few").count() == 0
        bar = opened.locator(OUTPUT, has=opened.locator(".widget-hprogress"))
        assert bar.count() == 1 and "mixshare seed 4: 100%" in " ".join(bar.text_content().split())
        assert opened.locator(ERROR).all_text_contents() == []

    def test_takes_a_seed_whose_rows_the_results_then_show(self, tab):
        opened = tab("05_results")
        assert opened.locator(OUTPUT, has_text="rows of seed 1:").count() == 1
        edit(opened, "seed: int = 1", "seed: int = 2")
        run_all(opened)
        assert opened.locator(OUTPUT, has_text="rows of seed 2: ['single, seed 2'").count() == 1
        assert (
            opened.locator(OUTPUT, has_text="rows of seed 1:").count() == 0
            and opened.locator(ERROR).all_text_contents() == []
        )

    @pytest.mark.parametrize(
        ("line", "given", "told"),
        [
            ("seed: int", "seed: int = -1", "ValueError: seed is -1; possible"),
            ("method: str", "method: str = 3", "TypeError: parameter method"),
        ],
    )
    def test_answers_what_is_not_possible_in_a_line_and_runs_nothing_more(
        self, tab, line, given, told
    ):
        opened = tab("01_training")
        edit(opened, line, given)
        run_all(opened)
        (error,) = opened.locator(ERROR).all()
        assert error.text_content().startswith(told) and "\n" not in error.text_content().strip()
        assert not opened.evaluate(f"{PROMPTS}.slice(2).some(prompt => /\\d/.test(prompt))")
