"""What a report shows as charts, one question a file; as data, which the page and papers draw."""

from adaptkit.report.charts.chart import Chart, Grid, Panel, Series
from adaptkit.report.charts.classes import recall_chart, share_chart
from adaptkit.report.charts.confusion import confusion_chart
from adaptkit.report.charts.distributions import confidence_chart, entropy_chart
from adaptkit.report.charts.layers import channel_chart, layer_chart
from adaptkit.report.charts.precision import precision_chart
from adaptkit.report.charts.projection import projection_chart
from adaptkit.report.charts.reliability import reliability_chart

__all__ = [
    "Chart",
    "Grid",
    "Panel",
    "Series",
    "channel_chart",
    "confidence_chart",
    "confusion_chart",
    "entropy_chart",
    "layer_chart",
    "precision_chart",
    "projection_chart",
    "recall_chart",
    "reliability_chart",
    "share_chart",
]
