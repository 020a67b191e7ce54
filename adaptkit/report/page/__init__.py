"""One self-contained HTML page: no request to anywhere, and every name in it is shown as text."""

from adaptkit.report.page.page import Page, Section, render
from adaptkit.report.page.run import run_page

__all__ = ["Page", "Section", "render", "run_page"]
