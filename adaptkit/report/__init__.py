"""Figures before and after, as a table and as files."""

from adaptkit.report.comparison import compare
from adaptkit.report.domains import IMAGES, feature_rows, figure_rows, input_rows, unknown_metrics
from adaptkit.report.moved import moved_layers, verdict
from adaptkit.report.table import SCHEMA, Report, Row

__all__ = [
    "IMAGES",
    "SCHEMA",
    "Report",
    "Row",
    "compare",
    "feature_rows",
    "figure_rows",
    "input_rows",
    "moved_layers",
    "unknown_metrics",
    "verdict",
]
