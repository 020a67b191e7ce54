"""Reading samples of a listing ahead of whoever wants them, in threads or in processes."""

import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from adaptkit.data.listing import Listing
from adaptkit.errors import DataError, Stopped
from adaptkit.transform import Transform


class Read(NamedTuple):
    """A sample, an image as uint8 pixels that are not normalised yet; or why there is none."""

    sample: Tensor | None
    reason: str


class _Loaded(NamedTuple):
    """A batch as its worker sends it: one whole tensor, as each one sent costs an open file."""

    samples: Tensor | NDArray[Any] | None
    reasons: list[str]  # of each sample; "" if it is there


class Samples(Dataset[Read]):
    """The samples of a listing at some of its indices."""

    def __init__(
        self,
        listing: Listing,
        transform: Transform | None,
        indices: Sequence[int],
        fast_jpeg: bool,
    ) -> None:
        self.listing, self.transform, self.indices = listing, transform, indices
        self.needed = transform.needed if transform and fast_jpeg else None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> Read:
        return self.read(self.indices[number])

    def read(self, index: int) -> Read:
        """Read the sample at an index of the listing."""
        transform = self.transform
        try:
            found = self.listing.read(index, self.needed)
            if isinstance(found, Tensor):
                return Read(found, "")
            assert transform is not None  # noqa: S101  as ImageLoader made sure
            return Read(transform.pixels(found), "")
        except DataError as error:
            return Read(None, str(error))


def by_threads(
    data: Samples, threads: int, ahead: int, keep: Callable[[int, Read], None]
) -> Generator[Read, None, None]:
    """Read in threads, so many samples ahead of the one that is yielded; with no thread, in this.

    Pillow lets other threads run while it decodes and resizes. `keep` is told of each sample by its
    index as soon as it is read, also of those that nobody waits for any more.
    """

    def read(number: int) -> Read:
        found = data[number]
        keep(data.indices[number], found)
        return found

    if not threads:
        yield from map(read, range(len(data)))
        return
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Read]] = deque()
    try:
        for number in range(len(data)):
            waiting.append(pool.submit(read, number))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except (KeyboardInterrupt, Stopped):
        pool.shutdown(wait=False, cancel_futures=True)
        data.listing.give_up()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def by_processes(
    data: Samples, batch_size: int, workers: int, keep: Callable[[int, Read], None]
) -> Generator[Read, None, None]:
    """Read in worker processes, a batch at a time; `keep` as for `by_threads`.

    Raises:
        DataError: a process ended unexpectedly.
    """
    loader = DataLoader(
        data,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_quiet,
        generator=torch.Generator(),  # so that the global one is left alone
    )
    batches, indices = iter(loader), iter(data.indices)
    try:
        for loaded in batches:
            # Out of the memory that is shared with the worker, which is short and costs open files.
            shared = loaded.samples
            samples = iter(() if shared is None else torch.as_tensor(shared).clone())
            found = [Read(None if r else next(samples), r) for r in loaded.reasons]
            for read in found:
                keep(next(indices), read)
            yield from found
    except (RuntimeError, OSError, EOFError) as error:
        if not _of_a_death(error):
            raise
        with suppress(RuntimeError):  # of the signal that tells of the death, if it is to come
            time.sleep(0.1)
        memory = "shared memory" if "Bus error" in str(error) else "memory"
        error.__traceback__ = None  # else it would keep the other workers
        del batches
        raise DataError(
            f"a process that decodes images ended unexpectedly (out of {memory}?): use fewer "
            f"workers (now {workers}), or a smaller batch size"
        ) from None


def _of_a_death(error: Exception) -> bool:
    """Whether an error says that a worker died; those that a living one raised are its own.

    torch raises RuntimeError once it knows, and before that others where a batch breaks off.
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    return not str(error).startswith("Caught ")


def _quiet(_: int) -> None:
    """Let a worker print nothing of a batch that it cannot hand over, as the run has ended.

    What goes wrong in reading is handed over, and raised where the batches are asked for.
    """
    sys.excepthook = lambda *_: None


def collate(read: list[Read]) -> _Loaded:
    """Return a worker's samples as one batch."""
    samples = [r.sample for r in read if r.sample is not None]
    return _Loaded(_sent(torch.stack(samples)) if samples else None, [r.reason for r in read])


def _sent(samples: Tensor) -> Tensor | NDArray[Any]:
    """Put a worker's batch where the other process sees it, or have it sent through a pipe.

    Shared memory may be small, as the 64 MiB of a container. Were it full only when the batch is
    being sent, torch would print why, and the other process would wait for ever.
    """
    if get_worker_info() is None:
        return samples
    try:
        samples.share_memory_()
        return samples
    except RuntimeError:
        return samples.numpy()
