"""
Links and pages that lie outside of ``docs/``.

Pages link as GitHub wants it, by the path of a file in the repository. On the site a link to a page that has been taken over
(``README.md`` and others, by a ``{include}`` block that is a page's own) leads to that page, one to another file downloads
it, and one to a folder is plain text.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Tests use what is below without it.
    from sphinx.application import Sphinx

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
# Files that are pages of the site, and where.
PAGES = {"README.md": "overview.md", "CONTRIBUTING.md": "project/contributing.md", "CHANGELOG.md": "project/changelog.md"}

CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?P<text>!?\[(?:[^\[\]]|\[[^\[\]]*\])*\])\((?P<target>[^)\s]+)\)")
INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.MULTILINE)


def link_on_site(text: str, target: str, base: Path, folder: Path) -> str:
    """
    A link of Markdown as the site needs it.

    :param text: Its text, in brackets.
    :param target: Where it leads, from the file that it is written in.
    :param base: The folder of that file.
    :param folder: The folder of the page that shows it.
    :return: The link, or its text where there is nothing to open.
    """
    if re.match(r"[a-z]+:|#", target):
        return f"{text}({target})"
    name, _, anchor = target.partition("#")
    path = (base / name).resolve()
    if path.is_dir():
        return text[1:-1]
    if path.parent == ROOT and path.name in PAGES:
        path = DOCS / PAGES[path.name]
    relative = Path(os.path.relpath(path, folder)).as_posix()
    return f"{text}({relative}{'#' + anchor if anchor else ''})"


def rewrite(text: str, base: Path, folder: Path) -> str:
    """
    A page with its links as the site needs them; code stays as it is.

    :param text: Markdown.
    :param base: The folder of the file that it was written in.
    :param folder: The folder of the page that shows it.
    """
    code: list[str] = []

    def keep(match: re.Match) -> str:
        code.append(match[0])
        return f"\0{len(code) - 1}\0"

    text = LINK.sub(lambda link: link_on_site(link["text"], link["target"], base, folder), CODE.sub(keep, text))
    return re.sub("\0(\\d+)\0", lambda match: code[int(match[1])], text)


def read_page(app: "Sphinx", docname: str, source: list[str]) -> None:
    """Called by Sphinx for each page, before it is parsed."""
    page = Path(app.env.doc2path(docname))
    if page.suffix != ".md":
        return
    included = INCLUDE.search(source[0])
    if included is None:
        source[0] = rewrite(source[0], page.parent, page.parent)
    else:
        file = (page.parent / included[1]).resolve()
        app.env.note_dependency(str(file))
        text = rewrite(file.read_text(), file.parent, page.parent)
        title = source[0][: included.start()]
        # A page that has a title of its own does without the file's.
        source[0] = title + text.partition("\n")[2] if title.strip() else text


def setup(app: "Sphinx") -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", read_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
