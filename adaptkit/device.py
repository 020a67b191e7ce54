"""Where to compute: a device that is really there."""

import torch

from adaptkit.errors import DeviceError


def resolve_device(spec: str | torch.device | None = "auto") -> torch.device:
    """Return the device that `spec` names; "auto" or None takes cuda, then mps, then the CPU.

    Raises:
        DeviceError: there is no such device on this machine.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    there = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if torch.cuda.is_available():
        there = [f"cuda:{i}" for i in range(torch.cuda.device_count())] + there
    here = 0 if not torch.cuda.is_available() else torch.cuda.current_device()  # of this process
    if spec is None or spec == "auto":
        return torch.device(f"cuda:{here}" if there[0] == "cuda:0" else there[0])
    name = {"cuda": f"cuda:{here}", "cpu:0": "cpu", "mps:0": "mps"}.get(str(spec), str(spec))
    if name not in there:
        raise DeviceError(f"no device '{spec}' on this machine: it has {', '.join(there)}")
    return torch.device(name)
