"""How Sphinx builds the site: `make docs`. Pages are GitHub's Markdown; the reference comes from the docstrings."""

import os
import subprocess
import sys
from pathlib import Path

import sb3_sparse

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))


def commit_of(folder: Path) -> str | None:
    """The first letters of the commit that is checked out, with a plus if files differ from it; None outside of git."""
    call = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


project = "sb3-sparse"
author = "The sb3-sparse developers"
copyright = author
version = release = sb3_sparse.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "repository",
    "names",
]
exclude_patterns = ["_build", "_ext", "_templates", "data", "**/images"]
templates_path = ["_templates"]

# Anchors of headings are those that GitHub makes.
myst_heading_anchors = 4
myst_enable_extensions = ["fieldlist"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# What a method says that torch or SB3 documents is theirs.
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True, "show-inheritance": True}
python_maximum_signature_line_length = 88
# What the package does not document itself is looked for in the documentation of others, and if that is not at hand left
# as it is. A name of ours that leads nowhere is a warning, by `names`.
nitpicky = False

# The lists of names of other sites are fetched where a build asks for it: a build without network has no links there.
OTHERS = {
    "python": "https://docs.python.org/3/",
    "stable_baselines3": "https://stable-baselines3.readthedocs.io/en/master/",
    "sb3_contrib": "https://sb3-contrib.readthedocs.io/en/master/",
    "gymnasium": "https://gymnasium.farama.org/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "numpy": "https://numpy.org/doc/stable/",
}
online = bool(os.environ.get("SB3_SPARSE_DOCS_ONLINE") or os.environ.get("READTHEDOCS"))
intersphinx_mapping = {name: (address, None) for name, address in OTHERS.items()} if online else {}

html_theme = "furo"
html_title = "sb3-sparse"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["offline.js"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"footer_icons": []}
html_context = {"commit": commit_of(HERE)}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
