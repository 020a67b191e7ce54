"""A function that can be suspended anywhere below, also where a `yield` cannot reach."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Stop(BaseException):
    """Raised inside a suspended function to end it; no `except Exception` of a model stops it."""


class Coroutine(Generic[T]):
    """Run `body` on a thread of its own, but only between a caller's `start` and `wait`.

    `body` calls `suspend(value)`, at any depth, to hand `value` to the caller and to stop until the
    next `start`. A caller that waits before it starts another has one thread running at a time.

    >>> def body() -> None:
    ...     task.suspend("half way")
    >>> task = Coroutine(body)
    >>> task.start(); task.wait()
    'half way'
    >>> task.start(); task.wait(), task.done
    (None, True)
    """

    def __init__(self, body: Callable[[], None]) -> None:
        self._body = body
        self._thread = threading.Thread(target=self._run, name="adaptkit-micro-batch", daemon=True)
        # Two locks used as gates: each is released by the other side.
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self._value: T | None = None
        self._error: BaseException | None = None
        self._running = self._closing = False
        self.done = False

    def start(self) -> None:
        """Let `body` go on, unless it has ended."""
        if self.done:
            return
        self._value, self._running = None, True
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()

    def wait(self) -> T | None:
        """Wait until `body` suspends (return the value), or ends (return None).

        Raises:
            BaseException: whatever `body` raised, with its own traceback.
        """
        self._join_running()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return None if self.done else self._value

    def suspend(self, value: T) -> None:
        """Hand `value` to the caller and stop until the next `start`. To be called by `body` only.

        Raises:
            Stop: the caller called `close`.
        """
        if not self._closing:
            self._value = value
            self._back.release()
            self._go.acquire()
        if self._closing:
            raise Stop

    def cancel(self) -> None:
        """Let `body` end at its next `suspend`, without waiting for that."""
        self._closing = True

    def checkpoint(self) -> None:
        """End `body` here if it was cancelled. To be called by `body` only."""
        if self._closing:
            raise Stop

    def close(self) -> None:
        """End `body` where it is suspended, or next will be, and wait until its thread is gone."""
        self._closing = True
        if self._thread.ident is None:
            self.done = True
            return
        self._join_running()
        if not self.done:
            self._running = True
            self._go.release()
            self._join_running()
        self._thread.join()

    def is_current(self) -> bool:
        """Whether the calling thread is this coroutine's own."""
        return threading.current_thread() is self._thread

    def _join_running(self) -> None:
        if self._running:
            self._back.acquire()
            self._running = False

    def _run(self) -> None:
        try:
            self._body()
        except Stop:
            pass
        except BaseException as error:  # noqa: BLE001  it is raised again in `wait`
            self._error = error
        finally:
            self.done = True
            self._back.release()
