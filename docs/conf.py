"""Settings of the site that ``make docs`` builds: these pages, and the API from docstrings."""

from typing import Any

import pocketsam

project = "pocketsam"
author = "the pocketsam authors"
release = version = pocketsam.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"  # its pages load nothing from the network
html_title = f"pocketsam {version}"
html_copy_source = False

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
types = "ArrayLike FloatArray ImageLike Masks Pixels Progress Providers Record StrPath"
autodoc_type_aliases = {name: name for name in types.split()}  # the API page says what they are
napoleon_numpy_docstring = False
napoleon_use_ivar = False


def _escape_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escapes ``|Δ|``, which reStructuredText would read as the name of a substitution."""
    lines[:] = [line.replace("|Δ|", r"\|Δ\|") for line in lines]


def setup(app: Any) -> None:
    """Connects what this file defines; Sphinx calls it."""
    app.connect("autodoc-process-docstring", _escape_bars)
