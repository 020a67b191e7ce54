"""Peaks of resident memory, each in a process of its own."""

import sys

import pytest

from benchmarks.fresh import in_fresh_process

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status"),
]


@pytest.mark.parametrize("model", ["resnet18", "densenet121"])
def test_exact_keeps_to_its_memory(model: str) -> None:
    found = in_fresh_process("benchmarks.memory", "exact", model, 256)
    assert found["peak MiB"] <= 256 * 1.1
    assert found["samples"] >= 20  # it is used, not only kept to


def test_a_stream_takes_the_same_however_long_it_is() -> None:
    found = in_fresh_process("benchmarks.memory", "stream", "resnet18", 5000)
    assert found["samples"] == 5000
    assert found["peak MiB"] <= 300


def test_pairwise_metrics_take_little_beyond_their_input() -> None:
    """The matrix of all pairs would take 512 MiB; 56 to 97 were measured."""
    assert in_fresh_process("benchmarks.memory", "mmd2", "2,048 features", 4000)["peak MiB"] <= 150
