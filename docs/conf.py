"""The book, for Sphinx: `make book` has `mixshare.book` put the pages together and call it. Nothing is executed, nothing is fetched."""

import re
import unicodedata

from docutils import nodes
from latex2mathml.converter import convert

import mixshare

project, author, copyright = (
    "mixshare",
    "the mixshare authors",
    "2026 the mixshare authors, MIT licence",
)
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
myst_enable_extensions = ["dollarmath"]

# Chapters as they were executed. A widget needs a kernel: what an output holds besides is shown in its place.
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
nb_code_prompt_show, nb_code_prompt_hide = "Show the code", "Hide the code"

# Docstrings name code in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
release = mixshare.__version__

html_theme = "sphinx_book_theme"
html_theme_options = {
    "use_download_button": False,
    "home_page_in_toc": True,
    "max_navbar_depth": 1,
    "navbar_persistent": [],
}
html_sidebars = {"**": ["search-button-field.html", "sbt-sidebar-nav.html"]}
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_js_files = ["explore.js"]
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is
html_show_sphinx = html_copy_source = html_use_index = html_domain_indices = False
html_show_search_summary = False  # it fetches pages, which browsers refuse to do with files


def mathml(formula, display):
    """A formula as MathML, which browsers draw without help; script letters they know as characters only."""
    return re.sub(
        '<mi mathvariant="script">([A-Z])</mi>',
        lambda found: f"<mi>{script(found[1])}</mi>",
        convert(formula, display=display),
    )


def script(letter):
    try:
        return unicodedata.lookup(f"MATHEMATICAL SCRIPT CAPITAL {letter}")
    except KeyError:  # eight letters were characters before the others
        return unicodedata.lookup(f"SCRIPT CAPITAL {letter}")


def setup(app):
    def inline(writer, node):
        writer.body.append(mathml(node.astext(), "inline"))
        raise nodes.SkipNode

    def block(writer, node):
        writer.body.append(f'<div class="formula">{mathml(node.astext(), "block")}</div>')
        raise nodes.SkipNode

    app.add_html_math_renderer("mathml", (inline, None), (block, None))
