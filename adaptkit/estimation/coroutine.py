"""A function that can be suspended anywhere below, also where a `yield` cannot reach."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Stop(BaseException):
    """Raised inside a suspended function to end it; no `except Exception` of a model stops it."""


class Coroutine(Generic[T]):
    """Run `body` on a thread of its own, but only while a caller waits in `resume`.

    So at any time one thread runs at most, and nothing in `body` needs a lock. `body` calls
    `suspend(value)`, at any depth, to hand `value` to the caller and to wait for the next `resume`.

    >>> def body() -> None:
    ...     task.suspend("half way")
    >>> task = Coroutine(body)
    >>> task.resume(), task.resume(), task.done
    ('half way', None, True)
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

    def resume(self) -> T | None:
        """Let `body` go on until it suspends (return the value), or ends (return None).

        Raises:
            BaseException: whatever `body` raised, with its own traceback.
        """
        if self.done:
            return None
        self._value, self._running = None, True
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._wait()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._value

    def suspend(self, value: T) -> None:
        """Hand `value` to the caller of `resume` and wait. To be called by `body` only."""
        if not self._closing:
            self._value = value
            self._back.release()
            self._go.acquire()
        if self._closing:
            raise Stop

    def close(self) -> None:
        """End `body` where it is suspended and wait until its thread is gone."""
        if self._thread.ident is None:
            self.done = True
            return
        self._closing = True
        if self._running:  # the caller was interrupted while it waited in `resume`
            self._wait()
        if not self.done:
            self._running = True
            self._go.release()
            self._wait()
        self._thread.join()

    def is_current(self) -> bool:
        """Whether the calling thread is this coroutine's own."""
        return threading.current_thread() is self._thread

    def _wait(self) -> None:
        self._back.acquire()
        self._running = False

    def _run(self) -> None:
        try:
            self._body()
        except Stop:
            pass
        except BaseException as error:  # noqa: BLE001  it is raised again in `resume`
            self._error = error
        finally:
            self.done = True
            self._back.release()
