"""Where the samples of a target are, and what is known of each before it is read."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from adaptkit.data.decode import Needed, decode, image_size
from adaptkit.data.labels import Partly
from adaptkit.data.place import Place


@dataclass(frozen=True)
class Listing:
    """Image files below a folder, or named by a manifest, in a fixed order.

    Of samples that lie elsewhere, as in an array, there are subclasses.

    Args:
        root: the folder.
        paths: relative to it; of samples that are no files, names of them.
        labels: the class of each sample as an index, or None.
        classes: the names that the labels stand for, or None.
        note: a sentence on how labels were or were not found; "" if there is nothing to say.
        domains: the domain of each sample by name, or None.
        weights: how much each sample counts in the statistics, or None where all count alike.
        partly: what labels some of the samples have, where not each has one.
        given: what the user named, where that is not the folder: a manifest, a tar file, a pattern.
        shape: of each sample, where they are ready for the model; None where they are images, which
            a transform prepares.
    """

    root: Place
    paths: Sequence[Path]
    labels: Sequence[int] | None = None
    classes: Sequence[str] | None = None
    note: str = ""
    domains: Sequence[str] | None = None
    weights: Sequence[float] | None = None
    shape: tuple[int, ...] | None = None
    given: Place | None = None
    partly: Partly | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def of(self) -> str:
        """What it is of, for messages: "images", or "samples" that are ready for the model."""
        return "images" if self.shape is None else "samples"

    @property
    def source(self) -> Place:
        """What the user named, for messages."""
        return self.given or self.root

    def read(self, index: int, needed: Needed | None = None) -> Image.Image | Tensor:
        """Return a sample: an image, or if there is a `shape`, a float32 tensor of that shape.

        Raises:
            DataError: it cannot be read. The message is the reason alone.
        """
        return decode(self._file(index), needed)

    def size(self, index: int) -> tuple[int, int] | None:
        """Return the (width, height) of an image as it is stored; None where there is none."""
        return image_size(self._file(index))

    def sizes(self, indices: Sequence[int]) -> list[tuple[int, int] | None]:
        """Return the sizes of some of the images."""
        return [self.size(index) for index in indices]

    def at(self, indices: Sequence[int]) -> "Listing":
        """Return some of the samples, in this order."""
        return replace(
            self,
            paths=[self.paths[i] for i in indices],
            labels=self.labels and [self.labels[i] for i in indices],
            domains=self.domains and [self.domains[i] for i in indices],
            weights=self.weights and [self.weights[i] for i in indices],
            partly=self.partly and self.partly.at(indices),
        )

    def alone(self) -> "Listing":
        """Return the same samples with the labels that they have as a target by themselves."""
        if self.partly is None:
            return self
        known = self.partly.alone()
        note = f"{known.note} {self.note.replace(self.partly.said, '')}".strip()
        return replace(self, labels=known.labels, classes=known.classes, note=note)

    def contents(self) -> str:
        """Return what tells the samples from others of the same names; "" of files."""
        return ""

    def state(self) -> str:
        """Return the SHA-256 of the files' names, sizes and times of change, and what is known."""
        digest = hashlib.sha256(repr((self.labels, self.weights)).encode())
        for index, path in enumerate(self.paths):
            digest.update(os.fsencode(path) + b"\0")
            digest.update(state_of(self._file(index)))
        return digest.hexdigest()

    @property
    def at_once(self) -> int:
        """How many samples are best read at a time, for want of an answer rather than of work."""
        return 1

    @property
    def forks(self) -> bool:
        """Whether other processes may read it: a fork beside threads that ask a server may hang."""
        return True

    def give_up(self) -> None:
        """End what other threads are reading, if it can take long: a user wants the run to end."""

    def _file(self, index: int) -> Path:
        file = self.root / self.paths[index]
        assert isinstance(file, Path)  # noqa: S101  of what lies elsewhere there are subclasses
        return file


def state_of(file: Path) -> bytes:
    """Return a file's size and time of change as text; nothing of one that is not there."""
    try:
        found = file.stat()
    except OSError:  # a link that leads nowhere: an image that cannot be read
        return b""
    return f"{found.st_size} {found.st_mtime_ns}\n".encode()
