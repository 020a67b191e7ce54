"""A function that can be suspended anywhere below, also where a `yield` cannot reach."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from greenlet import getcurrent, greenlet

T = TypeVar("T")


class Stop(BaseException):
    """Raised inside a suspended function to end it; no `except Exception` of a model stops it."""


class Coroutine(Generic[T]):
    """Run `body` on a stack of its own, on the caller's thread, a stretch at a time.

    `body` calls `suspend(value)`, at any depth, to hand `value` to the caller and to stop until the
    next `resume`. Caller and body share a thread, and so torch's memory and its team of OpenMP
    threads; what a thread holds of torch's modes (gradients, inference mode, autocast) is set back
    to the caller's while `body` stands still, and to its own when it goes on.

    >>> def body() -> None:
    ...     task.suspend("half way")
    >>> task = Coroutine(body)
    >>> task.resume(), task.done
    ('half way', False)
    >>> task.resume(), task.done
    (None, True)
    """

    def __init__(self, body: Callable[[], object]) -> None:
        self._stack = _Stack(self, body)
        self._modes = _Modes()
        self._closing = False

    @property
    def done(self) -> bool:
        """Whether `body` has ended."""
        return self._stack.dead

    def resume(self) -> T | None:
        """Let `body` go on; return what it suspends with, or None once it has ended.

        Raises:
            BaseException: whatever `body` raised, with its own traceback.
        """
        if self.done:
            return None
        self._stack.parent = getcurrent()
        value: T | None = self._stack.switch()
        return value

    def suspend(self, value: T) -> None:
        """Hand `value` to the caller and stop until the next `resume`. To be called by `body` only.

        Raises:
            Stop: the caller called `close`.
        """
        if self._closing:
            raise Stop
        caller = self._stack.parent
        assert caller is not None  # noqa: S101  `resume` has set it
        with self._modes.set_back():
            caller.switch(value)

    def close(self) -> None:
        """End `body` where it stands."""
        self._closing = True
        if self._stack and not self.done:  # a greenlet is true while it has begun and not ended
            self._stack.parent = getcurrent()
            with contextlib.suppress(Stop):
                self._stack.throw(Stop)


class _Stack(greenlet):
    """The stack that a coroutine's body runs on."""

    def __init__(self, owner: "Coroutine[Any]", body: Callable[[], object]) -> None:
        super().__init__()
        self.owner, self._body = owner, body

    def run(self) -> None:
        self._body()


def current() -> "Coroutine[Any] | None":
    """Return the coroutine whose body calls this, if one does."""
    stack = getcurrent()
    return stack.owner if isinstance(stack, _Stack) else None


class _Modes:
    """The modes of torch that a thread is in, as they are when this is made."""

    def __init__(self) -> None:
        self._gradients = torch.is_grad_enabled()
        self._inference = torch.is_inference_mode_enabled()
        self._autocast = _autocast()

    @contextmanager
    def set_back(self) -> Iterator[None]:
        """Return to these modes within the block, whatever the thread is in."""
        with contextlib.ExitStack() as undo:
            if torch.is_inference_mode_enabled() != self._inference:
                undo.enter_context(torch.inference_mode(self._inference))
            if torch.is_grad_enabled() != self._gradients:
                undo.enter_context(torch.set_grad_enabled(self._gradients))
            now = _autocast()
            for kind in now:
                if now[kind] != self._autocast[kind]:
                    enabled, dtype = self._autocast[kind]
                    undo.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
            yield


def _autocast() -> dict[str, tuple[bool, torch.dtype]]:
    return {
        kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        for kind in ("cpu", "cuda", "mps")
        if torch.amp.is_autocast_available(kind)
    }
