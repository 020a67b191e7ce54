"""Pages in a real browser: nothing asked for, nothing complained of, hostile names are text."""

from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pandas as pd
import pytest

from adaptkit.report.page import Page, Section, render

CHROMIUM = which("chromium") or which("chromium-browser") or which("google-chrome")
HOSTILE = (
    "<script>document.title = 'taken'</script>",
    "<img src=x onerror=\"document.title = 'taken'\">",
    "quotes \" and ' and `",
    "\u202eright to left",
    "{{ 7 * 7 }}",
    "a$b$c_{",
    "long " * 2000,
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a page from disk and returns it; at the end nothing may have gone wrong in it."""
    wrong: list[str] = []

    def opens(page: Page, **options: Any) -> Any:
        file = tmp_path / "page.html"
        file.write_text(render(page), encoding="utf-8")
        tab = browser.new_page(**options)
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        requests: list[str] = []
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(file.as_uri())
        tab.wait_for_load_state()
        assert requests == [file.as_uri()]
        return tab

    yield opens
    assert wrong == []


def page(table: pd.DataFrame, **options: Any) -> Page:
    return Page("Runs", "An answer.", [Section("All", "Text.", table, **options)], ["a line"])


def texts(tab: Any, column: int) -> list[str]:
    cells = tab.locator(f"tbody tr td:nth-child({column})")
    return list(cells.all_inner_texts())


def test_hostile_names_are_text(opened: Any) -> None:
    table = pd.DataFrame({name: [name] for name in HOSTILE})
    tab = opened(Page(HOSTILE[0], HOSTILE[1], [Section(HOSTILE[0], HOSTILE[1], table)], HOSTILE))
    assert tab.title() == HOSTILE[0]
    assert tab.locator("h1").inner_text() == HOSTILE[0]
    assert tab.locator("img").count() == 0
    assert tab.locator("body script").count() == 1
    for number, name in enumerate(HOSTILE[:6], 1):
        assert texts(tab, number) == [name]
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_policy_forbids_what_the_page_does_not_bring(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(render(page(pd.DataFrame({"a": [1]}))), encoding="utf-8")
    tab = browser.new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.goto(file.as_uri())
    ran = tab.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = 1";
            const image = document.createElement("img");
            image.src = "https://example.org/a.png";
            document.body.append(script, image);
            return window.ran;
        }"""
    )
    assert ran is None
    tab.wait_for_timeout(100)
    assert sum("Content Security Policy" in text for text in said) == 2


def test_columns_sort_by_key_with_the_keyboard(opened: Any) -> None:
    values = [0.5, None, 12.0, -3.0, 2.0]
    table = pd.DataFrame({"run": list("bdaec"), "change": values})
    tab = opened(page(table, signed=["change"]))
    assert texts(tab, 2) == ["+0.5", "", "+12", "-3", "+2"]
    assert "rise" in tab.locator("tbody tr:first-child td:nth-child(2)").get_attribute("class")
    tab.keyboard.press("Tab")  # to the table, which scrolls
    tab.keyboard.press("Tab")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "change"
    tab.keyboard.press("Enter")
    assert texts(tab, 2) == ["-3", "+0.5", "+2", "+12", ""]
    assert tab.locator("th").nth(1).get_attribute("aria-sort") == "ascending"
    tab.keyboard.press("Enter")
    assert texts(tab, 2) == ["+12", "+2", "+0.5", "-3", ""]
    tab.locator("th button").first.click()
    assert texts(tab, 1) == list("abcde")
    assert tab.locator("th").nth(1).get_attribute("aria-sort") is None


def test_it_is_read_on_a_phone_in_the_dark_and_on_paper(opened: Any) -> None:
    table = pd.DataFrame({f"column {k}": ["a name of some length", 0.5] for k in range(12)})
    tab = opened(page(table), viewport={"width": 390, "height": 700}, color_scheme="dark")
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    paper, ink = (
        tab.evaluate(f"getComputedStyle(document.body).{what}")
        for what in ("backgroundColor", "color")
    )
    assert paper == "rgb(20, 24, 29)"
    assert ink == "rgb(230, 233, 237)"
    tab.emulate_media(media="print", color_scheme="light")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(tab.pdf()) > 1000


def test_a_thousand_rows_are_small_and_sort(opened: Any) -> None:
    table = pd.DataFrame({"class": [f"class {k}" for k in range(1000)], "recall": range(1000)})
    assert len(render(page(table)).encode()) < 300_000
    tab = opened(page(table))
    tab.locator("th button").nth(1).click()
    tab.locator("th button").nth(1).click()
    assert texts(tab, 2)[0] == "999"
