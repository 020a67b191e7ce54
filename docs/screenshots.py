"""Makes the pictures of this folder: `python docs/screenshots.py` runs the demo and looks at it.

It needs Chromium (`apt-get install chromium`) and the dev extra.
"""

import io
import os
import tempfile
from pathlib import Path
from shutil import which

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from adaptkit.demo import run_demo
from adaptkit.pipeline import as_text, compare_reports

HERE = Path(__file__).parent.absolute()
COLOURS = 64  # of a picture, which keeps it small
WIDE, PHONE = 1100, 390


def main() -> None:
    """Run the demo in a temporary folder and take a picture of each page."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        os.chdir(folder)  # so that the pages show short paths
        demo = run_demo("adaptkit-demo")
        found = next(filter(None, map(which, ("chromium", "chromium-browser", "google-chrome"))))
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        runs = [demo.runs["target"], demo.unlabelled]
        labelled, unlabelled = (run.outputs.html.absolute() for run in runs)
        tab = browser.new_page(viewport={"width": WIDE, "height": 1180})
        save(tab, labelled, "report.png")
        tab = browser.new_page(viewport={"width": WIDE, "height": 900})
        save(tab, labelled, "report-layers.png", at="What the norm layers see")
        save(tab, labelled, "report-images.png", at="Images whose prediction changed")
        tab = browser.new_page(viewport={"width": PHONE, "height": 1000}, color_scheme="dark")
        save(tab, unlabelled, "report-phone-dark.png")
        compared = Path(folder) / "runs.html"
        reports = [run.outputs.csv for run in demo.runs.values()]
        compared.write_text(as_text(compare_reports(reports), "html", reports), encoding="utf-8")
        tab = browser.new_page(viewport={"width": WIDE, "height": 520})
        save(tab, compared, "runs.png")
        browser.close()


def save(tab: Page, page: Path, name: str, at: str | None = None) -> None:
    """Open a page, scroll to a heading and keep what is seen."""
    tab.goto(page.as_uri())
    if tab.locator("figure.chart").count():
        tab.wait_for_selector("body[data-drawn]")
    if at is not None:
        tab.get_by_role("heading", name=at).evaluate("heading => heading.scrollIntoView()")
    image = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
    image.quantize(COLOURS).save(HERE / name, optimize=True)
    print(f"Wrote {HERE / name}")


if __name__ == "__main__":
    main()
