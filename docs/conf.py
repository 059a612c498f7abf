"""How Sphinx builds the site. Its source is put together by `scripts/make_docs.py`: `make docs`."""

import re

import viq

project = "ViQ"
author = "the ViQ authors"
copyright = "the ViQ authors, Apache-2.0"
version = release = viq.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4  # every heading can be linked to, by the names that GitHub gives them
myst_enable_extensions = ["deflist"]  # options of commands
suppress_warnings = ["misc.highlighting_failure"]  # "..." in place of what an example leaves out

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_use_type_comments = False
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_title = "ViQ"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#17698a", "color-brand-content": "#17698a"},
    "dark_css_variables": {"color-brand-primary": "#6fc0de", "color-brand-content": "#6fc0de"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
html_permalinks_icon = "#"


def literal_words(app, what, name, obj, options, lines):
    """Docstrings have `names` in single backquotes; reStructuredText wants two for code."""
    for number, line in enumerate(lines):
        lines[number] = re.sub(r"(?<![`:\w])`([^`]+)`(?![`_])", r"``\1``", line)


def setup(app):
    app.connect("autodoc-process-docstring", literal_words, priority=900)
