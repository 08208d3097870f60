"""
What can be measured of the built site: headings in order, pictures with words, links and anchors that lead somewhere,
nothing that is loaded from elsewhere, pages that are not too heavy.

    python scripts/check_site.py docs/_build/html
"""

import argparse
import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Of a page with its styles and scripts, without pictures.
MAX_BYTES = 1_000_000
# What a browser fetches by itself to show a page, by element: the attribute that says from where.
LOADED = {"script": "src", "img": "src", "source": "src", "iframe": "src", "video": "src", "audio": "src", "object": "data"}
# Of <link>, those that are fetched.
LOADED_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "preconnect", "dns-prefetch", "manifest"}
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".ico")


@dataclass
class Page:
    """What a page of HTML has, in the order in which it is written."""

    headings: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    without_alt: list[str] = field(default_factory=list)
    styles: str = ""
    language: str = ""
    title: str = ""


class Reader(HTMLParser):
    """Fills a :class:`Page`."""

    def __init__(self) -> None:
        super().__init__()
        self.page, self.inside = Page(), ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        page, values = self.page, {name: value or "" for name, value in attrs}
        self.inside = tag
        if re.fullmatch("h[1-6]", tag):
            page.headings.append(int(tag[1]))
        if "id" in values:
            page.ids.append(values["id"])
        if tag == "a" and "href" in values:
            page.links.append(values["href"])
        if tag in LOADED and LOADED[tag] in values:
            page.loads.append(values[LOADED[tag]])
        if tag == "link" and LOADED_LINKS & set(values.get("rel", "").split()):
            page.loads.append(values.get("href", ""))
        if tag == "img" and not values.get("alt", "").strip():
            page.without_alt.append(values.get("src", "?"))
        if tag == "html":
            page.language = values.get("lang", "")
        page.styles += values.get("style", "")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "style":
            self.page.styles += data
        elif self.inside == "title" and not self.page.title:
            self.page.title = data.strip()


def read(path: Path) -> Page:
    """
    A page.

    :param path: Its file.
    """
    reader = Reader()
    reader.feed(path.read_text())
    return reader.page


def is_elsewhere(address: str) -> bool:
    """Whether an address is on another machine."""
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme in ("http", "https")


def loaded_by_style(css: str) -> list[str]:
    """
    Addresses that a style makes a browser fetch.

    :param css: The style.
    """
    found = re.findall(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""", css)
    return [first or second for first, second in found if not (first or second).startswith("data:")]


def heading_faults(headings: list[int]) -> list[str]:
    """
    What is wrong with the order of headings.

    :param headings: Their levels.
    """
    faults = [] if headings.count(1) == 1 else [f"{headings.count(1)} headings of the first level"]
    pairs = zip([0, *headings], headings, strict=False)
    return faults + [f"a heading of level {level} follows one of level {last}" for last, level in pairs if level > last + 1]


def link_faults(path: Path, root: Path, pages: dict[Path, Page]) -> list[str]:
    """
    Links of a page that lead nowhere.

    :param path: The page.
    :param root: The folder of the site.
    :param pages: All pages, by their files.
    """
    faults = []
    for link in pages[path].links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if not target.is_file() or root not in target.parents:
            faults.append(f"a link leads nowhere: {link}")
        elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
            faults.append(f"a link has an anchor that is not there: {link}")
    return faults


def loaded_files(path: Path, page: Page) -> tuple[set[Path], list[str]]:
    """
    What a browser loads for a page: files of the site, and addresses elsewhere.

    :param path: The file of the page.
    :param page: What is in it.
    :return: Files, with the styles' own; and faults.
    """
    files, faults = {path}, []
    queue = [(path, address) for address in page.loads + loaded_by_style(page.styles)]
    while queue:
        base, address = queue.pop()
        if address.startswith("data:"):
            continue
        file = (base.parent / unquote(urlsplit(address).path)).resolve()
        if is_elsewhere(address):
            faults.append(f"loads from elsewhere: {address}")
        elif not file.is_file():
            faults.append(f"loads what is not there: {address}")
        elif file not in files:
            files.add(file)
            if file.suffix == ".css":
                queue += [(file, inner) for inner in loaded_by_style(file.read_text())]
    return files, faults


def check_page(path: Path, root: Path, pages: dict[Path, Page]) -> list[str]:
    """
    What is wrong with a page.

    :param path: Its file.
    :param root: The folder of the site.
    :param pages: All pages, by their files.
    """
    page = pages[path]
    files, faults = loaded_files(path, page)
    faults += heading_faults(page.headings) + link_faults(path, root, pages)
    faults += [f"a picture without words: {source}" for source in page.without_alt]
    faults += [f"an anchor is there twice: {name}" for name in sorted({n for n in page.ids if page.ids.count(n) > 1})]
    faults += [] if page.language else ["does not say its language"]
    faults += [] if page.title else ["has no title"]
    weight = sum(file.stat().st_size for file in files if file.suffix.lower() not in PICTURES)
    if weight > MAX_BYTES:
        faults.append(f"weighs {weight:,} bytes without pictures, at most {MAX_BYTES:,} are allowed")
    return faults


def check_site(root: Path) -> dict[str, list[str]]:
    """
    What is wrong with a site.

    :param root: The folder of its pages.
    :return: Faults of each page that has some, by its path.
    :raises ValueError: If there are no pages.
    """
    root = root.resolve()
    pages = {path: read(path) for path in sorted(root.rglob("*.html"))}
    if not pages:
        raise ValueError(f"There are no pages in {root}: `make docs` builds them.")
    found = {str(path.relative_to(root)): check_page(path, root, pages) for path in pages}
    return {name: faults for name, faults in found.items() if faults}


def main() -> None:
    """Prints what is wrong; the exit status is 1 if something is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the built pages")
    folder = parser.parse_args().folder
    found = check_site(folder)
    for name, faults in found.items():
        print(*(f"{name}: {fault}" for fault in faults), sep="\n")
    print(f"{sum(map(len, found.values()))} faults in {len(list(folder.rglob('*.html')))} pages")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
