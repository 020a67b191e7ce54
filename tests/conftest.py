"""What all tests share: the same examples and the same random numbers in every run."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Draw from the same state in each test, whichever ran before it in this process."""
    torch.manual_seed(0)
