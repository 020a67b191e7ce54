"""Whether a launcher such as torchrun started this process as one of several; without torch."""

import os


def launched() -> int:
    """Return how many processes the launcher started that started this one; 1 without one.

    Source: torchrun's environment variables, https://pytorch.org/docs/stable/elastic/run.html
    """
    size = os.environ.get("WORLD_SIZE", "")
    return int(size) if "RANK" in os.environ and size.isdecimal() else 1
