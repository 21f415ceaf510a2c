"""The documentation as a site: `make docs`, or `sphinx-build -W -c docs . site`.

Sphinx reads the Markdown files where they lie, from the root of the repository, so that every relative link means the
same here and on GitHub. Docstrings are plain text with names in single backticks; `as_rst` turns them into what Sphinx
reads.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

SECTIONS = {  # the menu
    "Use": ["start", "which_method", "scores", "thresholds", "inference", "reasons", "report", "service", "export",
            "scale", "faq"],
    "Train and measure": ["labels", "training", "evaluation", "reproduce", "anchors", "log"],
    "Methods": [f"../methods/{name}/README" for name in
                ("clib_fiqa", "cr_fiqa", "ediffiqa", "diffiqa", "label_optimization", "dsl_fiqa")],
    "Models, data, licences": ["model_cards", "default_model", "ediffiqa_t", "perceptual", "dsl_fiqa_small",
                               "../weights/README", "data", "licences",
                               "../samples/README"],
    "Develop": ["api", "design", "adding_a_method", "../CONTRIBUTING", "../CHANGELOG", "../README"],
}

project = "CLIB-FIQA"
author = copyright = "the authors of the repository"
root_doc = "docs/README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "methods/*/README.md",
                    "weights/README.md", "samples/README.md"]
exclude_patterns = [".venv", ".git", "runs", "site", "shared", "tests"]
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3
highlight_language = "none"
nitpicky = False
autodoc_typehints = "description"
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = "CLIB-FIQA: face image quality, with its reasons"
html_copy_source = False
html_show_sourcelink = False


def menu() -> str:
    """The hidden tables of contents, of which the theme makes its menu; pages of no section come last."""
    listed = {(ROOT / "docs" / page).resolve() for pages in SECTIONS.values() for page in pages}
    found = [path.with_suffix("") for pattern in ("docs/*.md", "methods/*/README.md") for path in ROOT.glob(pattern)]
    others = sorted(os.path.relpath(path, ROOT / "docs") for path in found if path.resolve() not in listed)
    others.remove("README")  # the page that holds the menu
    sections = SECTIONS | ({"More": others} if others else {})
    return "".join(
        f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"
        for caption, pages in sections.items()
    )


def add_menu(app: Any, page: str, source: list[str]) -> None:
    if page == root_doc:
        source[0] += menu()


def as_rst(lines: list[str]) -> list[str]:
    """A docstring of ours as reStructuredText: names in backticks are code, and nothing else is markup."""
    text = re.sub(r"([*|\\])", r"\\\1", "\n".join(lines))
    text = re.sub(r"(?<!`)`([^`\n]+)`(?!`)", lambda match: f"``{match[1]}``".replace("\\", ""), text)
    text = re.sub(r"(\w)_(?=\W|$)", r"\1\\_", text)
    return re.sub(r"(?m)^(\S.*)\n\n(?=    \S)", r"\1\n\n::\n\n", text).split("\n")


def rewrite_docstring(app: Any, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def add_entrance(app: Any, error: Exception | None) -> None:
    """index.html, which leads to the first page."""
    if error is None:
        link = f'<meta http-equiv="refresh" content="0; url={root_doc}.html"><a href="{root_doc}.html">{html_title}</a>'
        (Path(app.outdir) / "index.html").write_text(f"<!doctype html>{link}\n", encoding="utf-8")


def setup(app: Any) -> None:
    app.connect("build-finished", add_entrance)
    app.connect("source-read", add_menu)
    app.connect("autodoc-process-docstring", rewrite_docstring)
