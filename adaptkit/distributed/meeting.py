"""Waiting for the other processes, with patience for slow ones and none for those that hang."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch.distributed.distributed_c10d import Store

from adaptkit.errors import DistributedError, Stopped

HINT = (
    "every process has to make the same calls: adapt, estimate, evaluate and such on every rank, "
    "or within adaptkit.distributed.alone() on one"
)
_POLL = 0.002, 0.1  # seconds between two looks, at first and at most
_BEAT = 0.5  # seconds between two signs of life
_WORD = 2.0  # seconds in which the others say that they live, once something failed

# Of each group so far, by its store, as a new group may have the name of one that failed: the same
# number on all its processes.
_meetings: WeakKeyDictionary[Store, int] = WeakKeyDictionary()
_last_beat: WeakKeyDictionary[Store, float] = WeakKeyDictionary()


@dataclass(frozen=True)
class Meeting:
    """A place of a group's in the store that all its processes share.

    A collective operation fails after a fixed time, however hard the others are still at work. So
    before one that may have to wait long, the processes meet here: each says that it has come, and
    waits for the others as long as they show signs of life.

    Args:
        store: of the group; None where it has none, and then nobody waits here.
        name: of the group, the same on all processes.
        rank: of this process.
        size: of the group.
        timeout: seconds without a sign of life of somebody who has not come.
    """

    store: Store | None
    name: str
    rank: int
    size: int
    timeout: float

    def wait(self) -> None:
        """Wait until every process has come here.

        Raises:
            DistributedError: one showed no sign of life for too long, or the store is gone.
        """
        if self.store is None:
            return
        number = _meetings[self.store] = self._meetings() + 1
        keys = [self._key(f"met/{number}", rank) for rank in range(self.size)]
        absent = list(range(self.size))
        try:
            self.store.set(keys[self.rank], "")
            signs = dict.fromkeys(absent, b"")
            last = dict.fromkeys(absent, time.monotonic())
            pause, longest = _POLL
            while not self.store.check(keys):
                absent = [rank for rank in absent if not self.store.check([keys[rank]])]
                for rank in absent:
                    sign = self._sign(rank)
                    if sign != signs[rank]:
                        signs[rank], last[rank] = sign, time.monotonic()
                silent = [r for r in absent if time.monotonic() - last[r] > self.timeout]
                if silent:
                    raise DistributedError(
                        f"{_ranks(silent)} gave no sign of life for {self.timeout:g} s "
                        f"(--dist-timeout): {HINT}"
                    )
                time.sleep(pause)
                pause = min(2 * pause, longest)
            self.store.delete_key(self._key(f"met/{number - 1}", self.rank))
        except Stopped:
            raise DistributedError(
                f"stopped from outside while waiting for {_ranks(absent)}, as a launcher does when "
                f"a process of its job has ended"
            ) from None
        except RuntimeError as error:
            raise self.explained(error) from error

    def beat(self) -> None:
        """Show a sign of life; to be called often during long work, it costs next to nothing."""
        now = time.monotonic()
        if self.store is None or now - _last_beat.get(self.store, 0.0) < _BEAT:
            return
        _last_beat[self.store] = now
        try:
            self.store.set(self._key("beat", self.rank), f"{now}")
        except RuntimeError as error:
            raise self.explained(error) from error

    def explained(self, error: Exception) -> DistributedError:
        """Say who failed, after a collective operation did; the others say here that they live."""
        why = "gave no answer in time" if "imed out" in str(error) else "ended unexpectedly"
        try:
            if self.store is None:
                raise RuntimeError
            keys = [self._key(f"alive/{self._meetings()}", rank) for rank in range(self.size)]
            self.store.set(keys[self.rank], "")
            end = time.monotonic() + _WORD
            while time.monotonic() < end and not self.store.check(keys):
                time.sleep(_POLL[1])
            silent = [rank for rank, key in enumerate(keys) if not self.store.check([key])]
        except (RuntimeError, Stopped):
            return DistributedError(f"a process of the job, perhaps rank 0, {why}")
        if silent:
            return DistributedError(f"{_ranks(silent)} {why}")
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return DistributedError(f"the processes lost touch: {reason:.200}")

    def first_to(self, what: str) -> bool:
        """Whether this process is the first to ask this, of all in the group; rank 0 if it lives.

        True where nobody can be asked.
        """
        if self.store is None:
            return self.rank == 0
        try:
            if self.rank:
                time.sleep(_BEAT)
            return int(self.store.add(self._key(what, 0), 1)) == 1
        except RuntimeError:
            return True

    def take(self) -> Callable[[], int]:
        """Return what gives, call by call, the next whole number that no other process was given.

        To be called by all processes at the same place, between the same two meetings.

        Raises:
            DistributedError: the group has no store.
        """
        store = self.store
        if store is None:
            raise DistributedError("the process group has no store to deal work out by")
        key = self._key(f"dealt/{self._meetings()}", 0)

        def next_one() -> int:
            try:
                return int(store.add(key, 1)) - 1
            except RuntimeError as error:
                raise self.explained(error) from error

        return next_one

    def _meetings(self) -> int:
        return 0 if self.store is None else _meetings.get(self.store, 0)

    def _sign(self, rank: int) -> bytes:
        assert self.store is not None  # noqa: S101  `wait` has looked
        key = self._key("beat", rank)
        return bytes(self.store.get(key)) if self.store.check([key]) else b""

    def _key(self, what: str, rank: int) -> str:
        return f"adaptkit/{self.name}/{what}/{rank}"


def _ranks(ranks: Sequence[int]) -> str:
    """Name some ranks.

    >>> _ranks([1]), _ranks([0, 2])
    ('rank 1', 'ranks 0, 2')
    """
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"
