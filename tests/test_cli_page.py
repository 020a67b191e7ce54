"""`report.html` as its reader meets it, in a real browser: whole, quiet, reachable, and honest."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import digits
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_page import HOSTILE, browser  # noqa: F401  the fixture

from adaptkit import Evaluation, compare
from adaptkit.norms import Stored
from adaptkit.pipeline import adapt_folder
from adaptkit.pipeline.common import command_line
from adaptkit.report import Report
from cli import main

IMAGES = 400


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with source.pt and target/CLASS/*.png, and the pages of two runs in it."""
    folder = tmp_path_factory.mktemp("pages")
    digits.save(folder / "source.pt", list("0123456789"))
    x, y = digits.images()
    x = 0.5 + 0.4 * (x - 0.5) + 0.1 * torch.randn(x.shape)
    for number in range(digits.TRAINED_ON, digits.TRAINED_ON + IMAGES):
        for place in (folder / "target" / str(int(y[number])), folder / "unlabelled"):
            digits.write(place / f"{number}.png", x[number])
    for name in ("target", "unlabelled"):
        adapt_folder(folder / "source.pt", folder / name, out=folder / f"{name}.pt", device="cpu")
    return folder


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:  # noqa: F811
    """Opens a page from disk, waits for its charts; nothing may go wrong in it or be asked for."""
    wrong: list[str] = []

    def opens(file: Path, **options: Any) -> Any:
        tab = browser.new_page(**options)
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        requests: list[str] = []
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(file.as_uri())
        tab.wait_for_selector("body[data-drawn]", timeout=30_000)
        assert requests == [file.as_uri()]
        return tab

    yield opens
    assert wrong == []


def eventually(tab: Any, holds: Callable[[], bool]) -> None:
    """Wait for something; the page's policy lets no waiting script be evaluated in it."""
    for _ in range(100):
        if holds():
            return
        tab.wait_for_timeout(50)
    raise AssertionError("waited in vain")


def charts(tab: Any) -> list[str]:
    """Names of the charts, each of which has to be drawn."""
    names: list[str] = tab.eval_on_selector_all(
        "figure.chart", "figures => figures.map(f => f.dataset.chart)"
    )
    for name in names:
        drawn = tab.locator(f"[data-chart={name}] .main-svg .trace, [data-chart={name}] .hm image")
        assert drawn.count() > 0, name
        figure = tab.locator(f"[data-chart={name}]")
        assert len(figure.locator(".plot").get_attribute("aria-label")) > 30
        assert figure.locator("figcaption").inner_text()
        assert figure.locator("details table tbody tr").count() > 0
    return names


def test_with_labels_the_answer_comes_first_and_every_chart_is_drawn(
    opened: Any, demo: Path
) -> None:
    tab = opened(demo / "target.html")
    answer = tab.locator(".answer").inner_text()
    assert re.fullmatch(
        r"Adapted 4 norm layers on 400 of 400 images, without labels\. Measured accuracy: "
        r"\d\d\.\d% → \d\d\.\d% \(\+\d\d\.\d points, 95% interval \+\d\d\.\d to \+\d\d\.\d\)\.",
        answer,
    )
    assert "By the labels adapting is better." in tab.locator(".decision").inner_text()
    assert charts(tab) == [
        *("recall", "confusion", "shares", "reliability", "confidence", "entropy"),
        *("layers", "channels", "precision", "projection"),
    ]
    assert tab.locator(".pictures img").count() > 12
    assert tab.evaluate(
        "[...document.querySelectorAll('.pictures img')].every(i => i.naturalWidth === 8)"
    )
    assert "Without labels" not in tab.locator("main").inner_text()
    assert tab.locator("#lines").inner_text().startswith("adaptkit adapt --source ")


def test_without_labels_it_says_what_cannot_be_known(opened: Any, demo: Path) -> None:
    tab = opened(demo / "unlabelled.html")
    text = tab.locator("main").inner_text()
    assert "Whether the accuracy rose is not known: there are no labels" in text
    assert "Cannot be known: whether the mix of classes is the source's" in text
    assert charts(tab) == [
        *("confusion", "shares", "confidence", "entropy"),
        *("layers", "channels", "precision", "projection"),
    ]
    assert "accuracy" not in tab.locator("table").first.inner_text()


def test_a_layer_is_picked_with_the_keyboard(opened: Any, demo: Path) -> None:
    tab = opened(demo / "target.html")
    figure = tab.locator("[data-chart=channels]")
    before = figure.locator(".finding").inner_text()
    for _ in range(60):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.closest('[data-chart=channels]') !== null"):
            break
    assert tab.evaluate("document.activeElement.tagName") == "SELECT"
    assert figure.locator("select").input_value() == "0"  # the layer that moved most
    tab.keyboard.press("ArrowDown")
    assert figure.locator("select").input_value() == "1"
    assert figure.locator(".finding").inner_text() != before
    assert "features.4" in figure.locator(".plot").get_attribute("aria-label")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.tagName") == "SUMMARY"
    tab.keyboard.press("Enter")
    assert figure.locator("table").is_visible()


def test_pointing_at_a_point_says_what_it_is(opened: Any, demo: Path) -> None:
    tab = opened(demo / "target.html")
    point = tab.locator("[data-chart=shares] .points path").first
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    label = tab.locator("[data-chart=shares] .hoverlayer .hovertext")
    label.first.wait_for(timeout=5000)
    assert re.fullmatch(r"(before|after)\d: \d+(\.\d+)?", label.first.text_content())


def test_it_is_read_on_a_phone_in_the_dark_and_on_paper(opened: Any, demo: Path) -> None:
    tab = opened(demo / "target.html", viewport={"width": 390, "height": 800}, color_scheme="dark")
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    line = "[data-chart=shares] .points path >> nth=0"
    light_blue = tab.locator("[data-chart=entropy] .lines path").last
    assert "rgb(86, 180, 233)" in light_blue.get_attribute("style")
    assert tab.locator(line).is_visible()
    tab.emulate_media(media="print", color_scheme="dark")
    eventually(tab, lambda: "rgb(0, 114, 178)" in light_blue.get_attribute("style"))
    assert tab.locator("select").first.is_visible()  # paper has to say which view it shows
    assert not tab.locator("button.copy").is_visible()
    assert len(tab.pdf()) > 10_000


def hostile_report(classes: int, layers: int) -> Report:
    rng = np.random.default_rng(0)
    n = 4 * classes
    labels = np.arange(n) % classes
    names = [*HOSTILE, *(f"class {k}" for k in range(classes - len(HOSTILE)))]

    def evaluation(right: float) -> Evaluation:
        return Evaluation(
            np.where(rng.random(n) < right, labels, rng.integers(0, classes, n)),
            rng.random(n),
            rng.random(n),
            labels,
            {
                (HOSTILE[k] if k < len(HOSTILE) else f"layers.{k}"): Stored(
                    torch.from_numpy(rng.normal(size=64)), torch.ones(64) * right, 1e-5
                )
                for k in range(layers)
            },
            classes,
        )

    return compare(
        evaluation(0.4),
        evaluation(0.8),
        classes=names,
        details={
            "method": "adabn",
            "arguments": {"source": HOSTILE[0], "target": HOSTILE[3]},
            "notes": HOSTILE,
            "skipped": dict(zip(HOSTILE, HOSTILE, strict=True)),
            "verdict": HOSTILE[1],
            "command": HOSTILE[0],
        },
    )


def test_hostile_names_and_many_classes_and_layers(opened: Any, tmp_path: Path) -> None:
    report = hostile_report(1000, 500)
    file = tmp_path / "big.html"
    report.to_html(file)
    assert file.stat().st_size < 5_000_000
    tab = opened(file)
    assert len(charts(tab)) == 8
    assert "taken" not in tab.title().replace("document.title = 'taken'", "")
    assert tab.locator("main img").count() == 0
    assert tab.locator("svg a").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    items = tab.locator("li").all_text_contents()
    assert items == list(HOSTILE)
    options = tab.locator("[data-chart=channels] option")
    assert options.count() == 500
    tab.locator("[data-chart=channels] select").select_option("499")
    assert "layers.499" in tab.locator("[data-chart=channels] .plot").get_attribute("aria-label")
    assert tab.locator("[data-chart=recall] .xtick").count() <= 20


def test_hostile_names_on_axes_are_text(opened: Any, tmp_path: Path) -> None:
    file = tmp_path / "small.html"
    hostile_report(len(HOSTILE), len(HOSTILE)).to_html(file)
    tab = opened(file)
    ticks = tab.locator("[data-chart=shares] .xtick text").all_text_contents()
    assert len(ticks) == len(HOSTILE)
    assert any(tick.startswith("<script>") for tick in ticks)
    assert not any("\u202e" in tick for tick in ticks)
    assert max(map(len, ticks)) <= 18


def test_a_browser_that_cannot_unpack_says_so(browser: Any, demo: Path) -> None:  # noqa: F811
    tab = browser.new_page()
    tab.add_init_script("delete window.DecompressionStream")
    tab.goto((demo / "target.html").as_uri())
    eventually(tab, lambda: "cannot draw" in tab.locator(".status").inner_text())
    assert tab.locator("details summary").first.is_visible()


def test_the_lines_to_repeat_a_run_are_copied(browser: Any, demo: Path) -> None:  # noqa: F811
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    tab = context.new_page()
    tab.goto((demo / "target.html").as_uri())
    tab.locator("button.copy").click()
    eventually(tab, lambda: tab.locator("button.copy").inner_text() == "Copied")
    copied = tab.evaluate("navigator.clipboard.readText()")
    assert copied == tab.locator("#lines").text_content()


def test_the_line_repeats_the_run(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a folder").mkdir()
    words = ["adapt", "--source", str(demo / "source.pt"), "--target", str(demo / "target")]
    words += ["--out", "a folder/x.pt", "--samples", "200", "--layers", "features.1", "--seed", "3"]
    words += ["--mean", "0.25", "--image-size", "8x8", "--prior", "4", "-q"]
    assert CliRunner().invoke(main, words).exit_code == 0
    first = (tmp_path / "a folder" / "x.csv").read_bytes()
    page = (tmp_path / "a folder" / "x.html").read_text(encoding="utf-8")
    found = re.search(r'id="lines">(.*)', page)
    assert found is not None
    line = shlex.split(found[1].replace("&#39;", "'"))
    assert line[0] == "adaptkit"
    result = CliRunner().invoke(main, [*line[1:], "--force", "-q"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a folder" / "x.csv").read_bytes() == first


def test_a_line_has_what_is_not_the_default() -> None:
    arguments = {"source": Path("s.pt"), "force": True, "seed": 0, "arch_kwargs": {"width": 8}}
    arguments |= {"mean": (0.5, 0.25), "skip_bad": False, "out": None}
    assert command_line("adapt", arguments, {"seed": 0}) == (
        "adaptkit adapt --source s.pt --force --arch-arg width=8 --mean 0.5,0.25"
    )
