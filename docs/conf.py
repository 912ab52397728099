"""Sphinx's configuration for the book, which book.py calls; nothing is executed or downloaded."""

import re
import unicodedata

from docutils import nodes
from latex2mathml.converter import convert

import mixshare

project, author = "mixshare", "the mixshare authors"
html_title = "MixShare, step by step"
copyright = f"2026 {author}, MIT licence"
extensions = ["myst_nb"]
extensions += [f"sphinx.ext.{name}" for name in ("autodoc", "autosummary", "napoleon", "viewcode")]
myst_enable_extensions = ["dollarmath"]

# Chapters as they were executed. A widget needs a kernel: in its place, the output's other forms.
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_render_markdown_format = "myst"  # with tables
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
nb_code_prompt_hide = "Hide the code"

# Docstrings name code in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
release = mixshare.__version__

html_theme = "sphinx_book_theme"
html_theme_options = dict(use_download_button=False, home_page_in_toc=True, navbar_persistent=[])
html_sidebars = {"**": ["search-button-field.html", "sbt-sidebar-nav.html"]}
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_js_files = ["explore.js", "sidebar.js", "zoom.js"]
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is
html_show_sphinx = html_copy_source = html_use_index = html_domain_indices = False
html_show_search_summary = False  # it fetches pages, which browsers refuse to do with files


def mathml(formula, display):
    """Return a formula as MathML, which browsers draw without a script."""
    return re.sub(
        '<mi mathvariant="script">([A-Z])</mi>', script, convert(formula, display=display)
    )


def script(match):
    """Return a script letter as a character; browsers ignore the attribute."""
    name = f"SCRIPT CAPITAL {match[1]}"
    try:
        letter = unicodedata.lookup(f"MATHEMATICAL {name}")
    except KeyError:  # eight letters were in Unicode before the others
        letter = unicodedata.lookup(name)
    return f"<mi>{letter}</mi>"


def setup(app):
    """Have Sphinx write formulas as MathML."""

    def visitors(display, form):
        def visit(writer, node):
            writer.body.append(form.format(mathml(node.astext(), display)))
            raise nodes.SkipNode

        return visit, None

    block = visitors("block", '<div class="formula" tabindex="0">{}</div>')
    app.add_html_math_renderer("mathml", visitors("inline", "{}"), block)
