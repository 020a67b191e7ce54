"""Architectures in a user's own code: FILE.py:FACTORY and package.module:FACTORY."""

import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from hashlib import blake2b
from importlib.abc import SourceLoader
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from adaptkit.architectures.architecture import Architecture, does_not_take, named
from adaptkit.architectures.blame import account, where
from adaptkit.errors import CheckpointError, few, shown


def is_user_code(spec: str) -> bool:
    """Whether a spec has the form of one for user code; its kind is known to be none of ours."""
    source, _, factory = spec.rpartition(":")
    return (source.endswith(".py") or _is_dotted(source)) and _is_dotted(factory)


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def architecture(spec: str) -> Architecture | None:
    """Import the code that a spec names, and return its architecture; None without such a module.

    Raises:
        CheckpointError: the file is missing, the import fails, or there is no such factory.
    """
    source, _, name = spec.rpartition(":")
    if source.endswith(".py"):
        path = Path(source).absolute()
        folders = [str(path.parent), str(Path.cwd())]  # as `python FILE.py` has it, and -m
        module: ModuleType | None = _from_file(spec, path, folders)
    else:
        folders = [str(Path.cwd())]
        module = _from_module(spec, source, folders)
    if module is None:
        return None
    factory = _factory(spec, module, name)
    return Architecture(
        make=partial(_make, spec, factory, folders), counts_classes=_takes_class_count(factory)
    )


def _from_file(spec: str, path: Path, folders: list[str]) -> ModuleType:
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{named(spec)}: cannot read {shown(str(path))} "
            f"({getattr(error, 'strerror', error)}): give the file's path from the current folder"
        ) from None
    # Named by what it holds: a changed file is imported anew, and an unchanged one is not.
    digest = blake2b(str(path).encode(errors="surrogatepass") + content, digest_size=8).hexdigest()
    name = re.sub(r"\W", "_", path.stem) + "_" + digest
    if name not in sys.modules:
        with _running(f"importing {named(spec)}", folders):
            _execute(name, _Source(path, content))
    return sys.modules[name]


class _Source(SourceLoader):
    """Reads a module's source from what was read of its file, and leaves no __pycache__ there."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._path, self._content = str(path), content

    def get_filename(self, fullname: str) -> str:  # noqa: ARG002  the protocol's name
        return self._path

    def get_data(self, path: str) -> bytes:
        if path != self._path:
            raise OSError(f"no bytecode is kept: {path}")
        return self._content


def _execute(name: str, loader: _Source) -> None:
    described = importlib.util.spec_from_loader(name, loader)
    if described is None:
        raise ImportError(f"no module can be made of {name}")
    module = importlib.util.module_from_spec(described)
    sys.modules[name] = module  # dataclasses, pickle and inspect look there
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _from_module(spec: str, source: str, folders: list[str]) -> ModuleType | None:
    importlib.invalidate_caches()  # of a file that was written a moment ago
    with _running(f"importing {named(spec)}", folders):
        try:
            return importlib.import_module(source)
        except ModuleNotFoundError as error:
            if error.name and f"{source}.".startswith(f"{error.name}."):
                return None
            raise


def _factory(spec: str, module: ModuleType, name: str) -> Callable[..., Any]:
    owner, _, last = name.rpartition(".")
    place: Any = module
    for part in filter(None, owner.split(".")):
        place = getattr(place, part, None)
    found = getattr(place, last, None)
    if isinstance(found, nn.Module):
        raise CheckpointError(
            f"{named(spec)}: {name} is a model, expected what makes one: name a "
            f"function that returns it"
        )
    if callable(found):
        factory: Callable[..., Any] = found
        return factory
    callables = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
    close = difflib.get_close_matches(name, callables, n=3)
    there = f"did you mean {' or '.join(close)}?" if close else f"it has {few(callables) or 'none'}"
    raise CheckpointError(
        f"{named(spec)}: expected a class or function '{name}', "
        f"{'there is none' if found is None else f'got a {type(found).__name__}'}: {there}"
    )


def _takes_class_count(factory: Callable[..., Any]) -> bool:
    with suppress(TypeError, ValueError):  # of what is written in C
        return "num_classes" in signature(factory).parameters
    return False


def _make(
    spec: str, factory: Callable[..., Any], folders: list[str], /, **kwargs: Any
) -> nn.Module:
    with _running(named(spec), folders, lambda error: does_not_take(spec, kwargs, error)):
        model = factory(**kwargs)
    if not isinstance(model, nn.Module):
        raise CheckpointError(
            f"{named(spec)} returned a {shown(type(model).__name__)}, expected a torch.nn.Module"
        )
    return model


@contextmanager
def _running(
    what: str,
    folders: list[str],
    unstarted: Callable[[BaseException], CheckpointError] | None = None,
) -> Iterator[None]:
    """Run a user's code: find what it imports, print to stderr, and turn what it raises into ours.

    Args:
        what: is run, for messages.
        folders: to import from, before all others.
        unstarted: makes the error where a call did not get as far as the user's code.
    """
    sys.path[:0] = folders
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (Exception, SystemExit) as error:  # noqa: BLE001  it may raise anything
        if unstarted and not where(error):
            raise unstarted(error) from None
        raise CheckpointError(f"{what} raised {account(error)}") from None
    finally:
        for folder in folders:
            with suppress(ValueError):  # the user's code took it out
                sys.path.remove(folder)
