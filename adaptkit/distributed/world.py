"""The processes that work on one thing together, as torch.distributed joins them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from adaptkit.distributed.meeting import Meeting
from adaptkit.errors import AdaptkitError, DistributedError, Stopped, shown

T = TypeVar("T")

TIMEOUT = 600.0  # seconds without a sign of life, after which a process counts as lost
_AGREED = "adaptkit_agreed"  # marks an error that every process raises at the same place


@dataclass(frozen=True)
class World:
    """Some processes, this one among them; a single process is a world of size 1.

    Every method is a collective one: all processes have to call it, in the same order. In a world
    of size 1 each does the obvious thing and costs nothing.

    Args:
        rank: the number of this process, from 0.
        size: how many there are.
        group: of torch.distributed; None in a world of size 1.
        timeout: seconds without a sign of life, after which a process counts as lost.
        outer: what this process belongs to while it works alone, and shows signs of life to.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    timeout: float = TIMEOUT
    outer: "World | None" = None

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of all processes' tensors of this shape: one all-reduce.

        Raises:
            DistributedError: a process is gone, or gave no answer in the group's time.
        """
        if self.group is None:
            return values
        total = values.to(self._device(values.device), copy=True)
        with self._listening():
            dist.all_reduce(total, group=self.group)
        return total.to(values.device)

    def meet(self) -> None:
        """Wait until every process has come here, as long as they show signs of life.

        Raises:
            DistributedError: a process showed none for `timeout` seconds.
        """
        if self.group is not None:
            self.meeting.wait()

    def gather(self, value: T) -> list[T]:
        """Return what every process gave, in the order of ranks; it has to be picklable.

        Raises:
            DistributedError: as `sum`, or a process showed no sign of life for `timeout` seconds.
        """
        if self.group is None:
            return [value]
        self.meeting.wait()
        found: list[Any] = [None] * self.size
        with self._listening():
            dist.all_gather_object(found, value, group=self.group)
        return found

    def first(self, value: T) -> T:
        """Return what rank 0 gave.

        Raises:
            DistributedError: as `gather`.
        """
        if self.group is None:
            return value
        self.meeting.wait()
        held: list[Any] = [value if self.rank == 0 else None]
        with self._listening():
            dist.broadcast_object_list(held, dist.get_global_rank(self.group, 0), self.group)
        return held[0]  # type: ignore[no-any-return]

    @contextmanager
    def united(self) -> Iterator[None]:
        """Within it each process does work of its own; where that fails in one it fails in all.

        The one raises its own error, the others one that names it, and all are at the same place
        again.

        Raises:
            DistributedError: it failed in another process, or see `gather`.
        """
        if self.size == 1:
            yield
            return
        try:
            yield
        except Exception as error:
            if not is_agreed(error):
                self.check(error)
            raise
        self.check(None)

    def check(self, failure: Exception | None) -> None:
        """Raise in every process if something failed in one; see `united`."""
        reasons = self.gather(None if failure is None else named(failure))
        if failure is not None:
            failure.__dict__[_AGREED] = True
            raise failure
        for rank, reason in enumerate(reasons):
            if reason is not None:
                raise DistributedError(f"rank {rank} of {self.size} failed: {reason}")

    def together(self, work: Callable[[], T]) -> list[T]:
        """Do a stretch of each process's own work as in `united`, and return what all found."""
        with self.united():
            result = work()
        return self.gather(result)

    def agree(self, facts: Mapping[str, Any], what: str) -> None:
        """Make sure that these facts are the same in every process.

        Args:
            facts: name -> value, small and comparable by ==.
            what: to do, said at the end of the error.

        Raises:
            DistributedError: in every process, if they are not; it names what differs.
        """
        every = self.gather(dict(facts))
        for rank, other in enumerate(every):
            apart = [
                f"{name} {shown(other.get(name))} for {shown(every[0].get(name))}"
                for name in dict.fromkeys((*every[0], *other))
                if other.get(name) != every[0].get(name)
            ]
            if apart:
                more = f" and {len(apart) - 4} more" if len(apart) > 4 else ""
                raise DistributedError(
                    f"rank {rank} differs from rank 0: {', '.join(apart[:4])}{more}: {what}"
                )

    def part(self, count: int) -> int:
        """Return how many of `count` things fall to this process if number i goes to rank i % size.

        >>> [World(rank, 3).part(8) for rank in range(3)]
        [3, 3, 2]
        """
        return len(range(self.rank, count, self.size))

    def apart(self) -> "World":
        """Return a world of this process by itself, which shows signs of life to the others."""
        return World(outer=self.outer or self)

    def beat(self) -> None:
        """Show a sign of life, for those who wait; the one method that is not collective."""
        joined = self.outer or self
        if joined.group is not None:
            joined.meeting.beat()

    def deal(self, count: int) -> Iterator[int]:
        """Yield those of the numbers below `count` that fall to this process.

        Each falls to one process: to whichever asks first, so that none waits while there is work.
        """
        if self.group is None:
            yield from range(count)
            return
        self.meeting.wait()
        take = self.meeting.take()
        while (number := take()) < count:
            yield number

    def watched(self, things: Iterator[T]) -> Iterator[T]:
        """Yield these, with a sign of life for each."""
        for thing in things:
            self.beat()
            yield thing

    @property
    def meeting(self) -> Meeting:
        """Where these processes wait for each other."""
        assert self.group is not None  # noqa: S101  a single process waits for nobody
        return Meeting(
            _store(self.group), str(self.group.group_name), self.rank, self.size, self.timeout
        )

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Say in plain words why a collective operation failed."""
        try:
            yield
        except Stopped:
            raise DistributedError(
                "stopped from outside while waiting for the other processes"
            ) from None
        except RuntimeError as error:
            raise self.meeting.explained(error) from error

    def _device(self, preferred: torch.device) -> torch.device:
        """Return where the group's backend takes tensors: there if it can."""
        backends = str(dist.get_backend_config(self.group))
        return preferred if f"{preferred.type}:" in backends else torch.device("cpu")


ALONE = World()

_chosen: ContextVar[World | None] = ContextVar("adaptkit_world", default=None)


def world() -> World:
    """Return the processes that work together here: those of torch.distributed's default group.

    One alone where torch.distributed was not initialised, and within `alone`.

    >>> world().size
    1
    """
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    if not dist.is_available() or not dist.is_initialized():
        return ALONE
    return of_group(dist.group.WORLD)


def of_group(group: dist.ProcessGroup | None, timeout: float = TIMEOUT) -> World:
    """Return the processes of a group that this process belongs to."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise DistributedError("this process does not belong to the process group that was given")
    return ALONE if size == 1 else World(rank, size, group, timeout)


@contextmanager
def alone() -> Iterator[None]:
    """Let everything within work in this process by itself, whatever torch.distributed has joined.

    For what one rank does without the others, or each on data of its own.
    """
    token = _chosen.set(world().apart())
    try:
        yield
    finally:
        _chosen.reset(token)


@contextmanager
def over(group: dist.ProcessGroup | None = None, *, timeout: float = TIMEOUT) -> Iterator[World]:
    """Let everything within work over the processes of a group.

    Args:
        group: of torch.distributed, by default all processes; this one has to belong to it.
        timeout: seconds without a sign of life, after which a process counts as lost.

    Raises:
        DistributedError: this process does not belong to the group.
    """
    found = of_group(dist.group.WORLD if group is None else group, timeout)
    token = _chosen.set(found)
    try:
        yield found
    finally:
        _chosen.reset(token)


def named(error: Exception) -> str:
    r"""Return an error as one line for another process.

    >>> named(ValueError("too\nmany"))
    'ValueError: too'
    """
    if isinstance(error, AdaptkitError):
        return " ".join(str(error).split())
    reason = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {reason:.200}"


def one_process(what: str) -> None:
    """Refuse to go on in one of several processes, each of which would find something else.

    Raises:
        DistributedError: there are several.
    """
    if world().size > 1:
        raise DistributedError(
            f"{what} works in one process: call it within adaptkit.distributed.alone(), on all data"
        )


def is_agreed(error: Exception) -> bool:
    """Whether every process that can raises an error at this place."""
    return isinstance(error, DistributedError) or _AGREED in error.__dict__


def _store(group: dist.ProcessGroup) -> Store | None:
    """Return the store that a group was made with; torch has no public way to it."""
    known = getattr(dist.distributed_c10d, "_world", None)
    found: Store | None = known.pg_map.get(group, (None, None))[1] if known else None
    return found
