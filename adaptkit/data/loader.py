"""A folder of images as batches of tensors."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adaptkit.data.decode import decode, image_size
from adaptkit.data.folder import Listing, list_images
from adaptkit.errors import DataError
from adaptkit.transform import Transform


class _Item(NamedTuple):
    """An image, or why there is none."""

    image: Tensor | None
    label: int | None
    path: str
    reason: str


class _Loaded(NamedTuple):
    """A batch as its worker sends it: whole tensors, as each one sent costs an open file."""

    images: Tensor | None
    labels: Tensor | None
    skipped: dict[str, str]


class _Images(Dataset[_Item]):
    """The images of a listing at some of its indices; `held` has those that were read before."""

    def __init__(
        self,
        listing: Listing,
        transform: Transform,
        indices: Sequence[int],
        held: Mapping[int, _Item],
    ) -> None:
        self.listing, self.transform, self.indices, self.held = listing, transform, indices, held

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> _Item:
        index = self.indices[number]
        if index in self.held:
            return self.held[index]
        path = self.listing.paths[index]
        label = self.listing.labels[index] if self.listing.labels else None
        try:
            image = self.transform(decode(self.listing.root / path))
        except DataError as error:
            return _Item(None, label, path.as_posix(), str(error))
        return _Item(image, label, path.as_posix(), "")


class ImageLoader(DataLoader[_Item]):
    """Batches of a folder's images, always in the same order; made by `image_folder`.

    Iterating yields float32 images of shape (B, C, H, W), with int64 labels of shape (B,) where the
    folder has class folders. An image that cannot be read is left out, and named in `skipped`.

    Args:
        listing: the images.
        transform: from an image to a tensor.
        indices: of the images to load, in this order; by default all.
        batch_size: images a batch.
        workers: processes that decode; 0 decodes in this one.
        skipped: path -> reason, filled while iterating.
        held: of `held`.
    """

    def __init__(
        self,
        listing: Listing,
        transform: Transform,
        *,
        indices: Sequence[int] | None = None,
        batch_size: int = 64,
        workers: int = 0,
        skipped: dict[str, str] | None = None,
        held: Mapping[int, _Item] | None = None,
    ) -> None:
        self.listing, self.transform = listing, transform
        self.skipped: dict[str, str] = {} if skipped is None else skipped
        chosen = range(len(listing.paths)) if indices is None else indices
        super().__init__(
            _Images(listing, transform, chosen, held or {}),
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),  # so that copies to the GPU need not wait
            generator=torch.Generator(),  # so that the global one is left alone
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return (batch for _, batch in self.counted() if batch is not None)

    def counted(self) -> Iterator[tuple[int, Any]]:
        """Yield of how many images each batch was made, and the batch; None where none is left."""
        total, size = len(self._indices()), self.batch_size or 1
        try:
            for start, loaded in zip(range(0, total, size), super().__iter__(), strict=True):
                self.skipped.update(loaded.skipped)
                count = min(size, total - start)
                yield count, None if loaded.images is None else _batch(loaded)
        except RuntimeError as error:
            # An error that a living worker raised reads "Caught ... in DataLoader worker process".
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            raise DataError(
                f"a process that decodes images ended unexpectedly (out of memory?): use fewer "
                f"workers (now {self.num_workers}), or a smaller batch size"
            ) from None

    def prepared_by(self, transform: Transform) -> "ImageLoader":
        """Return a loader of the same images through another transform; it shares `skipped`."""
        return ImageLoader(
            self.listing,
            transform,
            indices=self._indices(),
            batch_size=self.batch_size or 1,
            workers=self.num_workers,
            skipped=self.skipped,
        )

    def sizes(self) -> list[tuple[int, int]]:
        """Return the (width, height) of each image file, from its header alone.

        Those that have none are left out.
        """
        paths = [self.listing.root / self.listing.paths[i] for i in self._indices()]
        return [size for size in map(image_size, paths) if size]

    def paths(self) -> list[Path]:
        """Return the paths of its images in the folder, in its order."""
        return [self.listing.paths[i] for i in self._indices()]

    def kept(self) -> list[int]:
        """Return the positions of its images, without those that turned out not to be readable."""
        every = enumerate(self.paths())
        return [position for position, path in every if path.as_posix() not in self.skipped]

    def read(self) -> list[Path]:
        """Return the paths of its images, without those that turned out not to be readable."""
        every = self.paths()
        return [every[position] for position in self.kept()]

    def fingerprint(self) -> str:
        """Return the SHA-256 of its images' names, sizes, times of change, and of the transform."""
        digest = sha256(repr(self.transform.to_dict()).encode())
        for path in self.paths():
            digest.update(os.fsencode(path) + b"\0")
            with contextlib.suppress(OSError):  # a link that leads nowhere
                found = (self.listing.root / path).stat()
                digest.update(f"{found.st_size} {found.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def held(self) -> "ImageLoader":
        """Read all images; return a loader of them that has them in memory and decodes none again.

        It shares `skipped`, and its subsets have the images too.
        """
        indices = self._indices()
        once = self.subset(range(len(indices)))
        once.skipped = {}
        batches = [batch if isinstance(batch, Tensor) else batch[0] for batch in once]
        images = (image for batch in batches for image in batch)
        found = {}
        for index in indices:
            path = self.listing.paths[index].as_posix()
            label = self.listing.labels[index] if self.listing.labels else None
            reason = once.skipped.get(path)
            image = next(images) if reason is None else None
            found[index] = _Item(image, label, path, reason or "")
        self.skipped.update(once.skipped)
        return ImageLoader(
            self.listing,
            self.transform,
            indices=indices,
            batch_size=self.batch_size or 1,
            skipped=self.skipped,
            held=found,
        )

    def _indices(self) -> Sequence[int]:
        indices: Sequence[int] = self.dataset.indices  # type: ignore[attr-defined]
        return indices

    def subset(self, indices: Sequence[int]) -> "ImageLoader":
        """Return a loader of only these images, in this order; it shares `skipped`."""
        held = self._indices()
        return ImageLoader(
            self.listing,
            self.transform,
            indices=[held[i] for i in indices],
            batch_size=self.batch_size or 1,
            workers=self.num_workers,
            skipped=self.skipped,
            held=self.dataset.held,  # type: ignore[attr-defined]
        )


def image_folder(
    root: str | Path,
    *,
    transform: Transform | None,
    classes: Sequence[str] | None = None,
    outputs: int | None = None,
    batch_size: int = 64,
    workers: int = 0,
) -> ImageLoader:
    """Open a folder of images, with labels where its sub-folders are classes (see `list_images`).

    Args:
        root: class folders, or a flat or nested folder of unlabelled images.
        transform: from an image to the model's input, as `Checkpoint.transform` has it.
        classes: the names of the model's outputs, as `Checkpoint.classes` has them.
        outputs: how many outputs the model has, for where `classes` is not known.
        batch_size: images a batch.
        workers: processes that decode images; 0 decodes in this one.

    Raises:
        DataError: what is wrong with the folder, or with the arguments.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("L", (8, 8)).save(f"{folder}/a.png")
    ...     loader = image_folder(folder, transform=Transform((8, 8)))
    ...     [batch.shape for batch in loader]
    [torch.Size([1, 3, 8, 8])]
    """
    if transform is None:
        raise DataError(
            "Expected a transform, got None: the checkpoint does not say how images are prepared; "
            "pass adaptkit.Transform(image_size=(height, width), ...)"
        )
    if batch_size < 1 or workers < 0:
        raise DataError(
            f"Expected batch_size of 1 or more and workers of 0 or more, "
            f"got {batch_size} and {workers}"
        )
    listing = list_images(root, classes=classes, outputs=outputs)
    return ImageLoader(listing, transform, batch_size=batch_size, workers=workers)


def _collate(items: list[_Item]) -> _Loaded:
    images = [item.image for item in items if item.image is not None]
    labels = [i.label for i in items if i.image is not None and i.label is not None]
    return _Loaded(
        torch.stack(images) if images else None,
        torch.tensor(labels) if labels else None,
        {item.path: item.reason for item in items if item.image is None},
    )


def _batch(loaded: _Loaded) -> Any:
    return loaded.images if loaded.labels is None else (loaded.images, loaded.labels)
