"""The page in a real browser: it draws, sorts and filters, without errors or network requests.

HETEROSIS_SCREENSHOTS names a folder in which pictures of it are kept.
"""

import base64
import json
import os
import shutil
from pathlib import Path

import pytest
from heterosis.search.config.load import load_config
from heterosis.search.report import page as report_page
from heterosis.search.report.importance import Importance, Importances
from heterosis.search.report.index import refresh_index
from heterosis.search.run import run_search
from heterosis.search.study.progress import PlainReporter
from rich.console import Console

from ..conftest import SmallSearch
from ..studies import BASELINES, make_study

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="needs a browser: apt-get install chromium chromium-driver",
    ),
]
EVIL = "<img src=x onerror=alert(1)>"
PLOTS = ("progress", "weights", "drop_rates", "pairs", "forest-0", "forest-1", "genes", "funnel")
WIDTHS = (375, 1280)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a search with racing and ablation."""
    small = SmallSearch(tmp_path_factory.mktemp("drawn"))
    path = small.write(
        space={"drop_rate": [0.0, 0.5]},
        merge={"method": "dare_linear"},
        splits={"search_share": 0.3, "search_items": 60, "confirm_items": 60},
        search={"trials": 30, "dissect": True, "rerolls": 1, "racing": {"first": 10}},
    )
    run_search(load_config(path), PlainReporter(Console(quiet=True)))
    return small.results / report_page.REPORT


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.add_argument("--disable-dev-shm-usage")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


def opened(browser, path, width=1280, scheme="light"):
    """Load a page at a width (pixels), in light or dark; wait until it is drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    browser.get(path.resolve().as_uri())
    drawn = "return document.documentElement.dataset.drawn === 'yes'"
    WebDriverWait(browser, 60).until(lambda b: b.execute_script(drawn))


def said(browser):
    """What the page has said on its console."""
    return [entry["message"] for entry in browser.get_log("browser")]


def asked(browser):
    """Addresses that the page has asked for."""
    found = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            params = message["params"]
            found.append(params.get("url") or params["request"]["url"])
    return found


def names(browser):
    return [cell.text for cell in browser.find_elements("css selector", "#board tbody td.name")]


def head(browser, title):
    heads = browser.find_elements("css selector", "#board thead th")
    return next(cell for cell in heads if cell.text.strip().startswith(title))


def sorted_by(browser, title):
    """Wait until a column has been sorted by; return how."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 5).until(lambda b: head(b, title).get_attribute("aria-sort"))


def test_every_plot_is_drawn_and_nothing_is_wrong(browser, page):
    said(browser)
    asked(browser)
    opened(browser, page)
    for name in PLOTS:
        shown = browser.find_elements("css selector", f"#{name} .main-svg")
        assert shown, name
        assert shown[0].size["height"] > 50, name
    assert said(browser) == []
    outside = [url for url in asked(browser) if not url.startswith(("data:", page.as_uri()))]
    assert outside == []


def test_the_page_cannot_reach_out_even_if_it_wanted_to(browser, page):
    opened(browser, page)
    said(browser)
    reach = (
        "const done = arguments[arguments.length - 1];"
        "fetch('http://127.0.0.1:9/').then(() => done('went'), (e) => done(String(e)))"
    )
    assert "TypeError" in browser.execute_async_script(reach)
    assert any("Content Security Policy" in line for line in said(browser))


def test_the_table_sorts_by_a_click_and_by_the_keyboard(browser, page):
    from selenium.webdriver.common.keys import Keys

    opened(browser, page)
    before = names(browser)
    head(browser, "name").click()
    assert sorted_by(browser, "name") == "ascending"
    assert names(browser) == sorted(names(browser), key=str.lower) != before
    button = head(browser, "seconds").find_element("css selector", "[tabindex='0']")
    button.send_keys(Keys.ENTER)
    assert sorted_by(browser, "seconds") == "descending"
    assert head(browser, "name").get_attribute("aria-sort") is None


def test_the_table_filters_by_words_and_by_verdict(browser, page):
    from selenium.webdriver.support.ui import Select

    opened(browser, page)
    field = browser.find_element("css selector", "input[type=search]")
    field.send_keys("parent:")
    assert sorted(names(browser)) == ["parent:java", "parent:python"]
    field.clear()
    field.send_keys(" ")
    Select(browser.find_element("id", "verdicts")).select_by_visible_text("raced")
    cells = browser.find_elements("css selector", "#board tbody tr td:nth-child(3)")
    assert {cell.text for cell in cells} == {"raced"}


def test_another_recipe_is_drawn_when_it_is_chosen(browser, page):
    from selenium.webdriver.support.ui import Select

    opened(browser, page)
    weights = "return JSON.stringify(document.getElementById('weights').data[0].z)"
    first = browser.execute_script(weights)
    Select(browser.find_element("id", "recipe")).select_by_index(1)
    assert browser.execute_script(weights) != first


def test_tasks_are_drawn_on_confirm_items_and_genes_with_what_is_chance(browser, tmp_path):
    from selenium.webdriver.support.ui import Select

    board = make_study(tmp_path, [*BASELINES, ("c4", "candidate", 0.9, 0.8)])
    genes = {"strong": Importance(0.8, 0.7, 0.9, True), EVIL: Importance(0.1, 0.0, 0.2, False)}
    path = tmp_path / "page.html"
    path.write_text(report_page.page(board, {}, Importances(genes, 0.05, 150)))
    said(browser)
    opened(browser, path)
    assert browser.find_elements("css selector", "#estimated .main-svg")
    assert "all 150 trials" in browser.find_element("id", "estimated-caption").text
    labels = browser.find_elements("css selector", "#estimated .yaxislayer-above text")
    assert [label.text for label in labels] == ["strong", EVIL]
    bars = "return document.getElementById('pairs').data.some((t) => t.error_x?.visible)"
    caption = browser.find_element("id", "pairs-caption")
    assert browser.execute_script(bars)
    assert caption.text.startswith("Scores on up to 400 confirm items per task")
    Select(browser.find_element("id", "pair")).select_by_visible_text(
        "search items: skill_a · skill_b"
    )
    assert not browser.execute_script(bars)
    assert caption.text.startswith("Scores on up to 400 search items per task")
    assert not browser.find_element("id", "genes-figure").is_displayed()
    assert said(browser) == []


def test_a_name_is_text_and_no_markup(browser, tmp_path):
    rows = [*BASELINES, (f"parent:{EVIL}", "parent", 0.65, 0.65), (EVIL, "candidate", 0.8, 0.8)]
    make_study(tmp_path, rows)
    opened(browser, report_page.draw(tmp_path)[1])
    assert browser.find_elements("css selector", "img") == []
    assert names(browser)[:2] == [EVIL, "uniform"]
    labels = browser.find_elements("css selector", "#forest-0 .yaxislayer-above text")
    assert EVIL in [label.text for label in labels]
    lead = browser.find_element("css selector", ".lead").text
    assert lead.startswith(f"{EVIL} beats the best parent ({EVIL}) by 15.0 [")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_is_kept_as_a_picture(browser, page, tmp_path, width, scheme):
    opened(browser, page, width, scheme)
    size = browser.execute_script(
        "const e = document.documentElement; return [e.scrollWidth, e.scrollHeight]"
    )
    assert size[0] <= width
    lead = browser.find_element("css selector", ".lead")
    assert lead.location["y"] + lead.size["height"] < 900
    kept = Path(os.environ.get("HETEROSIS_SCREENSHOTS") or tmp_path)
    kept.mkdir(parents=True, exist_ok=True)
    view = {"captureBeyondViewport": True, "format": "png"}
    view["clip"] = {"x": 0, "y": 0, "width": width, "height": min(size[1], 8000), "scale": 1}
    picture = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", view)["data"])
    (kept / f"report-{width}-{scheme}.png").write_bytes(picture)
    assert len(picture) > 20_000


def test_the_index_sorts_and_leads_to_a_study(browser, tmp_path):
    for name, share in (("one", 0.8), ("two", 0.9)):
        make_study(tmp_path / name, [*BASELINES, ("c4", "candidate", share, share)])
        report_page.draw(tmp_path / name)
    assert refresh_index(report_page.read_leaderboard(tmp_path / "one")) == tmp_path / "index.html"
    said(browser)
    opened(browser, tmp_path / "index.html", 375)
    head(browser, "confirm").click()
    assert sorted_by(browser, "confirm") == "descending"
    cells = browser.find_elements("css selector", "#board tbody td:nth-child(4)")
    assert sorted((c.text for c in cells), reverse=True) == [c.text for c in cells]
    browser.find_element("css selector", "#board tbody a").click()
    assert browser.find_element("css selector", ".lead").text.startswith("c4 beats the best")
    assert said(browser) == []
