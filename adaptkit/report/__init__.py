"""Figures before and after, as a table and as files."""

from adaptkit.report.table import SCHEMA, Report, Row, compare

__all__ = ["SCHEMA", "Report", "Row", "compare"]
