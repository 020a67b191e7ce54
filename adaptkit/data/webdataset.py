"""The samples in a tar file, in the convention of WebDataset: members whose names begin alike."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from adaptkit.data.folder import EXTENSIONS
from adaptkit.data.open_files import OpenFiles
from adaptkit.data.tar import Member, members

KNOWN = ("label", "domain", "weight")  # what may be said of a sample
_SAID = ("cls", "json")
_MOST_IMAGE = 2**30  # bytes of an image file
_MOST_WORDS = 2**20  # bytes of what is said of one


class Sample(NamedTuple):
    """An image, and what is said of it; one without a name is a tar file's missing end."""

    name: str
    image: Member
    said: Mapping[str, str]


def samples(path: Path, content: IO[bytes] | None = None) -> Iterator[Sample]:
    """Yield the samples in a tar file, in the order in which their first members stand there.

    Args:
        path: of the file.
        content: what it holds, where that is not what stands there.
    """
    file = OpenFiles([path])
    if content is not None:
        file.take(0, content)
    parts: dict[str, list[tuple[str, Member]]] = {}
    for member in members(path, content):
        if not member.name:
            yield Sample("", member, {})
            continue
        steps = [step for step in member.name.split("/") if step not in ("", ".")]
        if any(step.startswith(".") and step != ".." for step in steps):
            continue  # hidden, as what macOS adds for each file
        member = member._replace(name="/".join(steps))
        key, extension = _key(member.name)
        if extension in _SAID or _is_image(extension):
            parts.setdefault(key, []).append((extension, member))
    for key, some in parts.items():
        said = _said(file, some)
        for name, image in _images(key, some):
            yield Sample(name, image, said)


def _key(name: str) -> tuple[str, str]:
    """Part a member's name at the first point behind the last slash.

    >>> _key("a.b/7.seg.png")
    ('a.b/7', 'seg.png')
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _is_image(extension: str) -> bool:
    return f".{extension.rpartition('.')[2]}" in EXTENSIONS


def _images(key: str, some: Sequence[tuple[str, Member]]) -> Iterator[tuple[str, Member]]:
    """Yield the name and the member of a sample's image, and of each other that could be it.

    Where an extension is an image's alone, as in 7.jpg, those of more than one point, as 7.seg.png,
    are something else of the sample.
    """
    every = [part for part in some if _is_image(part[0])]
    plain = [part for part in every if "." not in part[0]] or every
    for place, (_, member) in enumerate(plain):
        if place:
            again = f"another image of {key}, which has {plain[0][0]} already"
            yield f"{member.name}#{place + 1}", member._replace(reason=again)
        elif member.size > _MOST_IMAGE and not member.reason:
            yield member.name, member._replace(reason="larger than 1 GiB")
        else:
            yield member.name, member


def _said(file: OpenFiles, some: Sequence[tuple[str, Member]]) -> dict[str, str]:
    """Return what the members beside an image say of it; of what cannot be read nothing."""
    found: dict[str, str] = {}
    for extension, member in some:
        if extension not in _SAID or member.reason or member.size > _MOST_WORDS:
            continue
        try:
            text = file.read(0, member.offset, member.size).decode("utf-8").strip()
            told = json.loads(text) if extension == "json" else {"label": text}
        except (ValueError, RecursionError):
            continue
        if isinstance(told, dict):
            known = {k: v for k, v in told.items() if k in KNOWN}
            found |= {k: str(v) for k, v in known.items() if isinstance(v, (str, int, float))}
    return found
