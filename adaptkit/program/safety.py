"""What torch.export.load would run as code, were it hostile; nothing here runs it.

torch evaluates the expressions of a program's sizes and guards, makes code of its names, and reads
its sample inputs as a pickle that may call anything. A program that is read here is written again
and then loaded there: it has to be harmless there too.
"""

import io
import pickletools
import re
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

from adaptkit.errors import CheckpointError, shown
from adaptkit.exact import is_packed

_WORDS = """
Abs Add And CeilDiv CeilToInt CleanDiv Eq Equality ExprCondPair False Float FloatPow FloatTrueDiv
FloorDiv FloorToInt Ge GreaterThan Gt Identity IntTrueDiv Integer
IsNonOverlappingAndDenseIndicator L Le LessThan Lt Max Min Mod ModularIndexing Mul Ne None Not
Or Piecewise Pow PowByNatural PythonMod Rational RoundToInt StrictGreaterThan StrictLessThan Symbol
ToFloat True TruncToFloat TruncToInt Unequality Where abs and ceil ceiling evaluate false float
floor inf int integer is isnan math max min negative nonnegative not oo or positive precision real
size sqrt storage_offset stride sym_float sym_int sym_ite sym_max sym_min sym_not sym_sqrt torch
true trunc zero
"""
_TOKEN = re.compile(
    rf"\s+|'\w*'|\d+(?:\.\d+)?(?:e[+-]?\d+)?\b|[-+*/%=<>!&|~(),.\[\]]|"
    rf"\b(?:{'|'.join(_WORDS.split())})\b",
    re.ASCII,
)
_PATH = re.compile(r"[\w. @-]*")
_NAMED = ("name", "as_name")
_PATHS = ("fqn", "parameter_name", "buffer_name", "tensor_constant_name")
_INERT = re.compile(
    r"collections OrderedDict|torch (\w+Storage|Size|device|float\d+|int\d+|bfloat16)|"
    r"torch\.storage (Untyped|Typed)Storage|torch\._utils _rebuild_(tensor_v2|parameter)|"
    r"torch\._export\.serde\.serialize _reconstruct_fake_tensor"
)
_OTHER_NAMES = ("INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4")


def check(program: Mapping[str, Any], tensors: Iterable[str], samples: bytes) -> None:
    """Refuse a program in which something would run when torch loads or calls it.

    Args:
        program: its JSON.
        tensors: the names of its tensors.
        samples: its sample inputs, as a record of the archive.

    Raises:
        CheckpointError: an expression holds more than sizes need, a name is none, or the sample
            inputs are more than tensors.
    """
    for guard in program.get("guards_code", ()):
        _check_expression(guard)
    for key, value in _strings(program):
        if key == "expr_str":
            _check_expression(value)
        elif (key in _NAMED and value and not value.isidentifier()) or (
            key in _PATHS and not _PATH.fullmatch(value)
        ):
            raise _harmful(value)
    for name in tensors:
        if not _PATH.fullmatch(name):
            raise _harmful(name)
    for name in _called(samples) if samples else ():
        if not _INERT.fullmatch(name):
            raise _harmful(name.replace(" ", "."))


def _check_expression(text: str) -> None:
    left = _TOKEN.sub("", text)
    if left:
        raise _harmful(text)


def _strings(tree: Any) -> Iterable[tuple[str, str]]:
    """Yield the strings of nested dicts and lists, each with the key that it stands under."""
    waiting = [tree]
    while waiting:
        below = waiting.pop()
        if isinstance(below, list):
            waiting.extend(below)
        elif isinstance(below, dict):
            waiting.extend(below.values())
            yield from ((key, value) for key, value in below.items() if isinstance(value, str))


def _called(samples: bytes) -> Iterable[str]:
    """Yield the names, as "module name", of all that reading the sample inputs would call."""
    with zipfile.ZipFile(io.BytesIO(samples)) as archive:
        records = archive.infolist()
        if is_packed(archive, len(samples)):
            raise CheckpointError("is broken: its sample inputs are compressed or overlap")
        for record in records:
            if record.filename.endswith(".pkl"):
                for operation, argument, _ in pickletools.genops(archive.read(record)):
                    if operation.name == "GLOBAL" or operation.name in _OTHER_NAMES:
                        yield str(argument)


def _harmful(what: str) -> CheckpointError:
    return CheckpointError(
        f"would run code ({shown(what)[:80]}) when torch loads it, as no program needs to: do not "
        f"open it anywhere"
    )
