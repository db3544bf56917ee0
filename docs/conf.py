# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""How Sphinx builds the documentation and the manual pages: `make docs`, offline."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "ovirt-imageio"
author = "ovirt-imageio contributors"
copyright = author
release = (HERE.parent / "packages/ovirt-imageio-daemon/src/ovirt_imageio/daemon/VERSION").read_text().strip()
version = release.rpartition(".")[0]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "imageio_docstrings",
    "imageio_drawings",
    "imageio_options",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "performance/oldest.md", "performance/table.md", "performance/tuning.md"]
templates_path = ["_templates"]
nitpicky = True
nitpick_ignore_regex = [
    # Names of others; the vendored inventory has but the commonest of them.
    ("py:.*", r"(?!ovirt_imageio\b).*"),
    # Type variables, aliases and private names have no page of their own.
    ("py:.*", r"(.*\.)?(_\w+|[A-Z]|Buffer|Extent)"),
    # Parts of the daemon that the admin client shares.
    ("py:.*", r"ovirt_imageio\.daemon\..*|.*\.file_path"),
]
# A name that a package re-exports stands on two pages.
suppress_warnings = ["ref.python"]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_use_ivar = True

# Vendored, so that the build needs no network.
intersphinx_mapping = {"python": ("https://docs.python.org/3", str(HERE / "_inventory/python.inv"))}

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pictures.css"]
html_title = f"ovirt-imageio {version}"

man_pages = [
    ("man/ovirt-imageio.8", "ovirt-imageio", "serve virtual disks over HTTP", [author], 8),
    ("man/ovirt-imageioctl.8", "ovirt-imageioctl", "control the ovirt-imageio service", [author], 8),
    ("man/ovirt-imageio.conf.5", "ovirt-imageio.conf", "configuration of ovirt-imageio", [author], 5),
    ("man/ovirt-img.1", "ovirt-img", "upload and download virtual disks", [author], 1),
]
man_show_urls = True
