"""The commands' work from files to files; composition only."""

from adaptkit.pipeline.adapt import Run, adapt_folder
from adaptkit.pipeline.apply import apply_statistics
from adaptkit.pipeline.calibrate import Calibrated, calibrate_checkpoint
from adaptkit.pipeline.common import Outputs
from adaptkit.pipeline.inspect import Inspection, inspect_checkpoint
from adaptkit.pipeline.long_run import interruptible
from adaptkit.pipeline.many import DomainsRun, adapt_domain_folders
from adaptkit.pipeline.runs import as_text, compare_reports
from adaptkit.pipeline.shift import ShiftRun, shift_folders

__all__ = [
    "Calibrated",
    "DomainsRun",
    "Inspection",
    "Outputs",
    "Run",
    "ShiftRun",
    "adapt_domain_folders",
    "adapt_folder",
    "apply_statistics",
    "as_text",
    "calibrate_checkpoint",
    "compare_reports",
    "inspect_checkpoint",
    "interruptible",
    "shift_folders",
]
