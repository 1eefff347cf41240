"""The site: ``sphinx-build -W docs docs/_build``."""

import sys
from pathlib import Path

import hamdeq

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "hamdeq"
author = "the hamdeq developers"
project_copyright = author
release = version = hamdeq.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "picture",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"hamdeq {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True

# A reference to nowhere is an error, but for names of other projects, whose pages are not asked for
# lest a build need them, and for the bases inside the library that signatures mention.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(abc|collections|enum|pathlib|typing_extensions)\..*"),
    ("py:.*", r"(lightning|matplotlib|numpy|torch|torchvision)\..*"),
    ("py:class", "Tensor|Trainer"),
    ("py:class", r"hamdeq(\.[a-z_]+){2,}\.\w+"),
    ("py:class", r"hamdeq\.(_[a-z]+\.\w+|prepared\.Prepared|descent\.EnergyMap|integrators\.Flow)"),
]

napoleon_custom_sections = [("Shape", "notes_style")]
