"""The page of a report in headless Chromium, on a desk and on a phone."""

import json
import shutil
import time

import pytest

from sb3_sparse import cli
from tests.results.studies.made import make_study, write_run

pytest.importorskip("matplotlib")
pytest.importorskip("plotly")
webdriver = pytest.importorskip("selenium.webdriver")

BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium and chromedriver: .ci/run installs them")
SIZES = {"desk": (1200, 900), "phone": (390, 844)}
PLOTS = ("scaling", "learning", "plasticity")
EVIL = "</script><img src=x onerror=\"window.ran='yes'\"><b>bold</b>"
ATTRIBUTE = "\"' onmouseover=\"window.ran='yes'"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    study = folder / "study"
    list(make_study(study, envs=("A-v0", "B-v0"), points=(20, 40)))
    for name in (EVIL, ATTRIBUTE):
        write_run(
            study,
            {"width": 1, "sparsity": 0.0, name: name, "seed": 0},
            [900.0],
            algo=name,
            env=name,
            name=name,
            code={name: name},
            folder=f"evil{len(name)}",
            evaluations=([10_000, 1_000_000], [1.0, 900.0]),
            plasticity={"timesteps": [10_000, 1_000_000], "critic_srank": [1, 2]},
        )
    write_run(study, {"width": 9, "sparsity": 0.0, "seed": 0}, failed=EVIL, log=f"{EVIL}\n{ATTRIBUTE}\n", folder="failed")
    cli.main(["report", str(study), "-o", str(folder / "report")])
    return folder / "report.html"


@pytest.fixture(params=list(SIZES), scope="module")
def browser(request, page):
    from selenium.webdriver.chrome.service import Service

    width, height = SIZES[request.param]
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument(f"--window-size={width},{height}")
    if request.param == "phone":
        metrics = {"width": width, "height": height, "pixelRatio": 1, "mobile": True, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.set_script_timeout(60)
        driver.get(page.as_uri())
        wait(driver, "return document.querySelectorAll('.plot .main-svg').length")
        # What was asked for: the window of a phone grows with what it shows.
        driver.asked_width = width
        yield driver
    finally:
        driver.quit()


def wait(driver, script, seconds=30):
    """Until a script returns something that counts as true, which is given back."""
    end = time.monotonic() + seconds
    while not (found := driver.execute_script(script)):
        assert time.monotonic() < end, f"nothing after {seconds} s: {script}"
        time.sleep(0.1)
    return found


def choose(driver, control, text):
    driver.execute_script(
        """const control = document.getElementById(arguments[0]);
        control.value = [...control.options].find((option) => option.textContent === arguments[1]).value;
        control.dispatchEvent(new Event("change", { bubbles: true }));""",
        control,
        text,
    )


def names(driver, plot):
    script = "return [...document.querySelectorAll(`#${arguments[0]} .legendtext`)].map((name) => name.textContent)"
    return driver.execute_script(script, plot)


def test_all_is_drawn_and_nothing_else_happens(browser, page):
    choose(browser, "task", "sac, A-v0")
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].map((p) => [p.id, p.querySelectorAll('svg path.js-line').length, "
        "p.getBoundingClientRect().width, p.getAttribute('aria-label')])"
    )
    assert [name for name, *_ in sizes] == list(PLOTS)
    inner = browser.execute_script("return window.innerWidth")
    for _, lines, width, label in sizes:
        assert lines >= 2
        assert 0.9 * inner < width + 40 <= inner + 40
        assert "sac, A-v0" in label
    assert browser.execute_script("return document.documentElement.scrollWidth") <= browser.asked_width, (
        "no scrolling sideways"
    )
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert {url for url in urls if not url.startswith("data:")} == {page.as_uri()}
    assert browser.get_log("browser") == []


def test_nothing_can_be_sent_away(browser):
    titles = browser.execute_script("return [...document.querySelectorAll('.modebar-btn')].map((b) => b.dataset.title)")
    assert not [title for title in titles if "hare" in title or "loud" in title]
    assert browser.execute_script("return document.querySelectorAll('.plot a').length") == 0


@pytest.mark.parametrize("plot", PLOTS)
def test_a_point_says_what_it_is(browser, plot):
    choose(browser, "task", "sac, A-v0")
    browser.execute_script("document.getElementById(arguments[0]).scrollIntoView({ block: 'center' })", plot)
    time.sleep(0.3)
    # Where the last point of the first line is, on the screen.
    x, y = browser.execute_script(
        """const plot = document.getElementById(arguments[0]), area = plot.querySelector(".nsewdrag").getBoundingClientRect();
        const line = plot.data.find((trace) => trace.hoverinfo === "text"), { xaxis, yaxis } = plot._fullLayout;
        const k = Math.floor(line.x.length / 2);
        return [area.x + xaxis.d2p(line.x[k]), area.y + yaxis.d2p(line.y[k])];""",
        plot,
    )
    if browser.execute_script("return navigator.maxTouchPoints > 0"):
        browser.execute_cdp_cmd("Input.synthesizeTapGesture", {"x": round(x), "y": round(y)})
    else:
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x - 9, "y": y - 9})
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})
    text = wait(browser, f"return document.querySelector('#{plot} .hoverlayer .hovertext')?.textContent")
    assert "width=" in text
    assert ("parameters" if plot == "scaling" else "timesteps") in text


def test_controls(browser):
    choose(browser, "task", "sac, A-v0")
    assert names(browser, "scaling") == ["sparsity=0", "sparsity=0.8"]
    choose(browser, "horizontal", "sparsity")
    assert names(browser, "scaling") == ["width=1", "width=2", "width=4"]
    assert browser.execute_script("return document.getElementById('log-x').disabled"), "0 has no logarithm"
    assert browser.execute_script("return document.getElementById('scaling')._fullLayout.xaxis.type") == "linear"
    choose(browser, "horizontal", "total parameters")
    assert browser.execute_script("return document.getElementById('scaling')._fullLayout.xaxis.type") == "log"
    browser.execute_script("document.getElementById('log-x').click()")
    assert browser.execute_script("return document.getElementById('scaling')._fullLayout.xaxis.type") == "linear"
    choose(browser, "metric", "critic_srank at the end")
    assert "critic_srank" in browser.execute_script("return document.getElementById('scaling').layout.yaxis.title.text")
    choose(browser, "task", "sac, all 2 environments")
    assert browser.execute_script("return document.getElementById('learning').hidden"), "curves are of single tasks"
    assert names(browser, "scaling") == ["sparsity=0", "sparsity=0.8"]
    choose(browser, "metric", "final return")


def test_filter(browser):
    choose(browser, "task", "sac, A-v0")
    rows = "return [...document.querySelectorAll('[data-task]:not([hidden]) tr:not([hidden]) td:first-child')].length"
    assert (len(names(browser, "learning")), browser.execute_script(rows)) == (6, 6)
    box = 'document.querySelector(\'#filters input[data-axis="width"][value="4"]\').click()'
    browser.execute_script(box)
    assert "width=4" not in " ".join(names(browser, "learning"))
    assert (len(names(browser, "learning")), browser.execute_script(rows)) == (4, 4)
    assert browser.execute_script("return document.getElementById('scaling').data[0].x.length") == 2
    for value in ("1", "2"):
        browser.execute_script(box.replace('"4"', f'"{value}"'))
    assert browser.execute_script("return !document.getElementById('learning-empty').hidden")
    for value in ("1", "2", "4"):
        browser.execute_script(box.replace('"4"', f'"{value}"'))
    assert len(names(browser, "learning")) == 6


def test_a_name_in_the_legend_hides_its_line(browser):
    choose(browser, "task", "sac, A-v0")
    script = "return document.getElementById('scaling')._fullData.map((trace) => trace.visible)"
    assert browser.execute_script(script) == [True, True]
    browser.execute_script(
        """const name = document.querySelector("#scaling .legendtoggle");
        for (const kind of ["mousedown", "mouseup"]) name.dispatchEvent(new MouseEvent(kind, { bubbles: true }));"""
    )
    wait(browser, f"return (() => {{ {script} }})()[0] === 'legendonly'")
    choose(browser, "task", "sac, B-v0")
    choose(browser, "task", "sac, A-v0")


@pytest.mark.parametrize("name", [EVIL, ATTRIBUTE])
def test_names_are_text(browser, name):
    choose(browser, "task", f"{name}, {name}")
    time.sleep(0.5)
    assert browser.execute_script("return window.ran ?? null") is None
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    assert (
        browser.execute_script("return document.querySelector('[data-task]:not([hidden]) h3').textContent")
        == f"{name}, {name}"
    )
    title = browser.execute_script("return document.getElementById('learning').data.at(-1).text[0]")
    assert "<img" not in title.replace("<b>", "", 1)
    assert browser.execute_script("return document.querySelector('details pre').textContent") == f"{EVIL}\n{ATTRIBUTE}"
    assert browser.get_log("browser") == []


def test_dark(browser):
    colours = []
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        time.sleep(0.5)
        page = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        colours.append((page, browser.execute_script("return document.getElementById('learning').layout.font.color")))
    assert colours == [("rgb(255, 255, 255)", "#222"), ("rgb(23, 24, 28)", "#e4e4e7")]
