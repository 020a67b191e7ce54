"""resolve_device()."""

import pytest
import torch

from adaptkit import DeviceError
from adaptkit.device import resolve_device


def test_auto_takes_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device(None) == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("mps:0") == torch.device("mps")
    assert resolve_device("cpu:0") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for number in (0, 1):  # each process of a job sets its own
        monkeypatch.setattr(torch.cuda, "current_device", lambda number=number: number)
        assert resolve_device("auto") == torch.device(f"cuda:{number}")
        assert resolve_device("cuda") == torch.device(f"cuda:{number}")
    assert resolve_device(torch.device("cuda:1")) == torch.device("cuda:1")
    with pytest.raises(DeviceError, match=r"no device 'cuda:7' .* it has cuda:0, cuda:1, mps, cpu"):
        resolve_device("cuda:7")


@pytest.mark.parametrize("spec", ["cuda", "cuda:0", "mps", "mps:0", "cpu:1", "warp", "", "meta"])
def test_what_is_not_there(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=rf"no device '{spec}' on this machine: it has cpu"):
        resolve_device(spec)
