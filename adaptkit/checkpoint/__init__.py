"""Checkpoints as others write them: read without running code in them, written back in kind."""

from adaptkit.checkpoint.checkpoint import Checkpoint
from adaptkit.checkpoint.reading import load_checkpoint
from adaptkit.checkpoint.writing import (
    SUFFIXES,
    budget,
    checkpoint_files,
    output_paths,
    save_checkpoint,
    suffix_of,
)

__all__ = [
    "SUFFIXES",
    "Checkpoint",
    "budget",
    "checkpoint_files",
    "load_checkpoint",
    "output_paths",
    "save_checkpoint",
    "suffix_of",
]
