"""A process that torchrun started joins its job, and leaves it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

from adaptkit.distributed.world import ALONE, World, over
from adaptkit.errors import DeviceError, DistributedError, Stopped
from adaptkit.launched import launched

_joined: list[World] = []  # the job that this process is in


@contextmanager
def joined(timeout: float, device: str) -> Iterator[World]:
    """Join the job that torchrun started this process in, if it did, for the time of a block.

    Args:
        timeout: seconds without a sign of life, after which another process counts as lost.
        device: to compute on, as for `resolve_device`. Of the GPUs of a machine each process takes
            the one of its number.

    Raises:
        DistributedError: the others did not come within this time.
        DeviceError: the machine has GPUs, but none for this process; or one is named for all.
    """
    if launched() == 1:
        yield ALONE
        return
    backend = "gloo"
    if device.startswith("cuda:"):
        raise DeviceError(
            f"of several processes each computes on a GPU of its own, got {device}: give cuda"
        )
    if torch.cuda.is_available() and device != "cpu":
        number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if number >= there:
            raise DeviceError(
                f"process {number} of this machine has no GPU of its own: there are {there}, start "
                f"as many processes (--nproc-per-node {there})"
            )
        torch.cuda.set_device(number)
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DistributedError(
            f"the {launched()} processes of the job did not come together in {timeout:g} s: "
            f"{reason:.200}"
        ) from error
    signal.signal(signal.SIGTERM, _stop)  # the launcher's, once another process has ended
    with over(timeout=timeout) as world:
        _joined.append(world)
        yield world
        # After an error the others may be gone, and nothing that waits for them is called.
        world.meeting.wait()
        dist.destroy_process_group()
        _joined.clear()


def speaks() -> bool:
    """Whether it is for this process to say what happened: one of a job does.

    One that has not joined the others knows nothing of them, and speaks for itself.
    """
    return _joined[-1].meeting.first_to("speak") if _joined else True


def _stop(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough, and what it leads to has to be said
    raise Stopped(f"signal {number}")
