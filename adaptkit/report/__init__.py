"""Figures before and after, as a table and as files."""

from adaptkit.report.comparison import compare
from adaptkit.report.domains import feature_rows, input_rows
from adaptkit.report.moved import moved_layers, verdict
from adaptkit.report.table import SCHEMA, Report, Row

__all__ = [
    "SCHEMA",
    "Report",
    "Row",
    "compare",
    "feature_rows",
    "input_rows",
    "moved_layers",
    "verdict",
]
