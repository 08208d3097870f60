"""The site: what is written for it, what its checks find, and, where it has been built, its pages in headless Chromium."""

import importlib.util
import json
import re
import shutil
import sys
import time
from pathlib import Path

import pytest

import sb3_sparse

ROOT = Path(__file__).parent.parent
BUILT = ROOT / "docs" / "_build" / "html"


def load(path):
    """A module that is no part of a package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_site = load(ROOT / "scripts" / "check_site.py")
repository = load(ROOT / "docs" / "_ext" / "repository.py")

GOOD = (
    '<html lang="en"><head><title>A</title><link rel="stylesheet" href="a.css"></head>'
    '<body><h1 id="a">A</h1><h2>B</h2><a href="b.html#b">b</a><img src="a.png" alt="a"></body></html>'
)
OTHER = '<html lang="en"><head><title>B</title></head><body><h1 id="b">B</h1><a href="index.html">a</a></body></html>'


def write(folder, page, style="body { background: url(a.png) }"):
    for name, text in {"index.html": page, "b.html": OTHER, "a.css": style, "a.png": ""}.items():
        (folder / name).write_text(text)
    return check_site.check_site(folder)


def test_a_good_site_has_no_faults(tmp_path):
    assert write(tmp_path, GOOD) == {}


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("<h2>B</h2>", "<h3>B</h3>", "a heading of level 3 follows one of level 1"),
        ("<h2>B</h2>", "<h1>B</h1>", "2 headings of the first level"),
        (' alt="a"', "", "a picture without words: a.png"),
        (' alt="a"', ' alt=" "', "a picture without words: a.png"),
        ("b.html#b", "c.html", "a link leads nowhere: c.html"),
        ("b.html#b", "../a", "a link leads nowhere: ../a"),
        ("b.html#b", "b.html#c", "a link has an anchor that is not there: b.html#c"),
        ("b.html#b", "#c", "a link has an anchor that is not there: #c"),
        ("<h2>", '<h2 id="a">', "an anchor is there twice: a"),
        ('src="a.png"', 'src="https://x.org/a.png"', "loads from elsewhere: https://x.org/a.png"),
        ('src="a.png"', 'src="//x.org/a.png"', "loads from elsewhere: //x.org/a.png"),
        ('src="a.png"', 'src="c.png"', "loads what is not there: c.png"),
        ('href="a.css"', 'href="http://x.org/a.css"', "loads from elsewhere: http://x.org/a.css"),
        ("<h2>", "<style>@import 'https://x.org/a.css'</style><h2>", "loads from elsewhere: https://x.org/a.css"),
        ("<h2>", "<script src='https://x.org/a.js'></script><h2>", "loads from elsewhere: https://x.org/a.js"),
        (' lang="en"', "", "does not say its language"),
        ("<title>A</title>", "", "has no title"),
        ("<h2>", f"{'x' * 1_000_000}<h2>", "weighs 1,000,"),
    ],
)
def test_the_check_finds_a_fault(tmp_path, old, new, fault):
    assert old in GOOD
    (found,) = write(tmp_path, GOOD.replace(old, new)).items()
    assert found[0] == "index.html"
    assert len(found[1]) == 1
    assert found[1][0].startswith(fault)


def test_the_check_follows_styles(tmp_path):
    found = write(tmp_path, GOOD, "@font-face { src: url('https://x.org/a.woff2') }")
    assert found == {"index.html": ["loads from elsewhere: https://x.org/a.woff2"]}


def test_a_folder_without_pages_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no pages"):
        check_site.check_site(tmp_path)


@pytest.mark.parametrize(
    ("file", "page", "written", "on_site"),
    [
        ("README.md", "docs/overview.md", "[a](docs/sparse.md#b)", "[a](sparse.md#b)"),
        ("README.md", "docs/overview.md", "![a [b]](docs/images/demo.png)", "![a [b]](images/demo.png)"),
        ("README.md", "docs/overview.md", "[a](CONTRIBUTING.md)", "[a](project/contributing.md)"),
        ("CONTRIBUTING.md", "docs/project/contributing.md", "[a](docs/replay.md)", "[a](../replay.md)"),
        ("README.md", "docs/overview.md", "[a](hyperparams)", "a"),
        ("README.md", "docs/overview.md", "[`a`](examples/demo_mlp.yml)", "[`a`](../examples/demo_mlp.yml)"),
        ("docs/start/sb3.md", "docs/start/sb3.md", "[a](../../README.md#in-python)", "[a](../overview.md#in-python)"),
        ("docs/a.md", "docs/a.md", "[a](https://x.org) [b](#c)", "[a](https://x.org) [b](#c)"),
        ("README.md", "docs/overview.md", "`[a](docs/b.md)`\n```\n[a](docs/b.md)\n```", None),
    ],
)
def test_links_of_github_become_those_of_the_site(file, page, written, on_site):
    text = repository.rewrite(written, (ROOT / file).parent, (ROOT / page).parent)
    assert text == (written if on_site is None else on_site)


def listed(page):
    """Names of pages in the tables of contents of a page."""
    text = page.read_text()
    blocks = re.findall(r"```\{toctree\}\n(.*?)```|\.\. toctree::\n(.*?)\n\n(?!   )", text, re.DOTALL)
    lines = [line.strip() for block in blocks for line in "".join(block).splitlines()]
    return [page.parent / line for line in lines if line and not line.startswith(":")]


def test_every_page_has_one_place_in_the_tables_of_contents():
    pages = [page for kind in ("md", "rst") for page in (ROOT / "docs").rglob(f"*.{kind}") if "_build" not in page.parts]
    places = [place for page in pages for place in listed(page)]
    assert sorted(places) == sorted(page.with_suffix("") for page in pages if page != ROOT / "docs" / "index.md")


built = pytest.mark.skipif(not BUILT.is_dir(), reason="the site has not been built: `make docs`")


@built
def test_every_public_name_is_in_the_reference():
    inventory = pytest.importorskip("sphinx.util.inventory")
    with (BUILT / "objects.inv").open("rb") as file:
        found = inventory.InventoryFile.load(file, "", lambda base, uri: uri)
    names = {name.rpartition(".")[2] for kind, entries in found.items() if kind.startswith("py:") for name in entries}
    assert set(sb3_sparse.__all__) - names == {"__version__"}


@built
def test_the_foot_of_a_page_says_the_version():
    foot = (BUILT / "start" / "sb3.html").read_text().partition("<footer>")[2]
    assert re.search(rf"Version {re.escape(sb3_sparse.__version__)}(, commit [0-9a-f]{{10}}\+?)?<", foot)


# Pages of each kind: many words, wide tables, pictures, code, signatures, lists.
LOOKED_AT = [
    *("index", "start/sb3", "overview", "performance", "guides/width_and_sparsity", "rainbow_results", "kernels"),
    *("plasticity/index", "api/sparse", "project/changelog"),
]
SIZES = {"desk": (1280, 900), "phone": (390, 844)}
BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))


@pytest.fixture(scope="module", params=list(SIZES))
def browser(request):
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (BUILT.is_dir() and BROWSER and DRIVER):
        pytest.skip("no site, or no chromium and chromedriver: .ci/run has them")
    width, height = SIZES[request.param]
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument(f"--window-size={width},{height}")
    metrics = {"width": width, "height": height, "pixelRatio": 1, "mobile": request.param == "phone", "touch": False}
    options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.kind = request.param
        yield driver
    finally:
        driver.quit()


def requests(driver):
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}


def is_silent(driver):
    assert driver.get_log("browser") == []
    assert {url for url in requests(driver) if not url.startswith(("data:", BUILT.as_uri()))} == set()


# Contrast of all words that are shown, by WCAG: the colour of each against what lies behind it.
CONTRAST = """
const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
const over = ([r, g, b, a], under) => [r, g, b].map((value, k) => value * a + under[k] * (1 - a));
const behind = (element) => {
  const layers = [];
  for (let at = element; at; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor);
    if (colour[3] > 0) layers.push(colour);
    if (colour[3] === 1) break;
  }
  return layers.reduceRight((under, layer) => over(layer, under), [255, 255, 255]);
};
const light = (colour) => {
  const [r, g, b] = colour.map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const found = {};
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const element = walk.currentNode.parentElement, style = getComputedStyle(element);
  if (!walk.currentNode.data.trim() || !element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
  const ground = behind(element), ink = over(parse(style.color), ground);
  const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
  const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
  if (ratio < (large ? 3 : 4.5)) {
    const where = element.tagName + "." + element.className + " in " + element.parentElement.className;
    found[where] = [walk.currentNode.data.trim().slice(0, 40), ink.map(Math.round), ground.map(Math.round), ratio];
  }
}
return found;
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", LOOKED_AT)
def test_a_page_in_the_browser(browser, page, theme):
    address = (BUILT / f"{page}.html").as_uri()
    browser.get(address)
    browser.execute_script("localStorage.setItem('theme', arguments[0])", theme)
    browser.get(address)
    assert browser.execute_script("return document.body.dataset.theme") == theme
    # Of what was asked for: the window of a phone grows with what it shows.
    width, _ = SIZES[browser.kind]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width, "no scrolling sideways"
    assert browser.execute_script(CONTRAST) == {}
    broken = "return [...document.images].filter((i) => i.complete && !i.naturalWidth).map((i) => i.src)"
    assert browser.execute_script(broken) == []
    is_silent(browser)


def test_the_search_works_without_a_server(browser):
    browser.get((BUILT / "search.html").as_uri() + "?q=dormant")
    end = time.monotonic() + 30
    while not (hits := browser.execute_script("return [...document.querySelectorAll('ul.search li a')].map((a) => a.href)")):
        assert time.monotonic() < end, "nothing was found"
        time.sleep(0.1)
    assert any("plasticity/dormant-ratio.html" in hit for hit in hits)
    is_silent(browser)
