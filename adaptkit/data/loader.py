"""Samples that are listed as batches of tensors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adaptkit.batches import inputs_of
from adaptkit.data.folder import list_images
from adaptkit.data.listing import Listing
from adaptkit.data.place import Place
from adaptkit.errors import DataError
from adaptkit.transform import Transform


class _Item(NamedTuple):
    """A sample, or why there is none."""

    image: Tensor | None
    label: int | None
    weight: float | None
    path: str
    reason: str


class _Loaded(NamedTuple):
    """A batch as its worker sends it: whole tensors, as each one sent costs an open file."""

    images: Tensor | None
    labels: Tensor | None
    weights: Tensor | None
    skipped: dict[str, str]


class _Images(Dataset[_Item]):
    """The samples of a listing at some of its indices; `held` has those that were read before."""

    def __init__(
        self,
        listing: Listing,
        transform: Transform | None,
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
        listing = self.listing
        path = listing.paths[index].as_posix()
        label = listing.labels[index] if listing.labels else None
        weight = listing.weights[index] if listing.weights else None
        try:
            found = listing.read(index)
            image = found if isinstance(found, Tensor) else self._prepared(found)
        except DataError as error:
            return _Item(None, label, weight, path, str(error))
        return _Item(image, label, weight, path, "")

    def __getitems__(self, numbers: Sequence[int]) -> list[_Item]:
        """Return the items of a batch, some of them read at a time where that is quicker."""
        if self.listing.at_once == 1:
            return [self[number] for number in numbers]
        with ThreadPoolExecutor(self.listing.at_once) as pool:
            return list(pool.map(self.__getitem__, numbers))

    def _prepared(self, image: Image.Image) -> Tensor:
        assert self.transform is not None  # noqa: S101  as ImageLoader made sure
        return self.transform(image)


class ImageLoader(DataLoader[_Item]):
    """Batches of samples, always in the same order; made by `adaptkit.data.open`.

    Iterating yields float32 images of shape (B, C, H, W), or signals or features of whatever shape
    they have, with int64 labels of shape (B,) where they have labels. Where they have weights a
    batch is a dict of "input", "weight" (float64, (B,)), and if known "label". A sample that cannot
    be read is left out, and named in `skipped`.

    Args:
        listing: the samples.
        transform: from an image to a tensor; None where the samples are tensors.
        indices: of the images to load, in this order; by default all.
        batch_size: images a batch.
        workers: processes that decode; 0 decodes in this one.
        skipped: path -> reason, filled while iterating.
        held: of `held`.
    """

    def __init__(
        self,
        listing: Listing,
        transform: Transform | None,
        *,
        indices: Sequence[int] | None = None,
        batch_size: int = 64,
        workers: int = 0,
        skipped: dict[str, str] | None = None,
        held: Mapping[int, _Item] | None = None,
    ) -> None:
        if transform is None and listing.shape is None:
            raise DataError(
                "Expected a transform, got None: the checkpoint does not say how images are "
                "prepared; pass adaptkit.Transform(image_size=(height, width), ...)"
            )
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
        try:
            for loaded in super().__iter__():
                self.skipped.update(loaded.skipped)
                if loaded.images is not None:
                    yield _batch(loaded)
        except RuntimeError as error:
            # An error that a living worker raised reads "Caught ... in DataLoader worker process".
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            raise DataError(
                f"a process that decodes images ended unexpectedly (out of memory?): use fewer "
                f"workers (now {self.num_workers}), or a smaller batch size"
            ) from None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample as it is yielded."""
        if self.listing.shape is not None or self.transform is None:
            return self.listing.shape or ()
        return (self.transform.channels, *self.transform.image_size)

    @property
    def weight(self) -> Callable[[Any], Tensor] | None:
        """What gives a batch's weights, as `adaptkit.estimate` takes it; None without weights."""
        return _weights if self.listing.weights else None

    def original(self, position: int) -> Image.Image | None:
        """Return the image at a position as it is in its file; None where there is none.

        Raises:
            DataError: it cannot be read.
        """
        found = self.listing.read(self._indices()[position])
        return found if isinstance(found, Image.Image) else None

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
        return [size for size in self.listing.sizes(self._indices()) if size]

    def paths(self) -> list[Path]:
        """Return the names of its samples, in its order."""
        return [self.listing.paths[i] for i in self._indices()]

    def names(self) -> list[str]:
        """Return what tells its samples from another loader's, in its order."""
        return [*map(str, self.paths()), self.listing.contents()]

    def kept(self) -> list[int]:
        """Return the positions of its images, without those that turned out not to be readable."""
        every = enumerate(self.paths())
        return [position for position, path in every if path.as_posix() not in self.skipped]

    def read(self) -> list[Path]:
        """Return the paths of its images, without those that turned out not to be readable."""
        every = self.paths()
        return [every[position] for position in self.kept()]

    def held(self) -> "ImageLoader":
        """Read all images; return a loader of them that has them in memory and decodes none again.

        It shares `skipped`, and its subsets have the images too.
        """
        indices = self._indices()
        once = self.subset(range(len(indices)))
        once.skipped = {}
        images = iter([image for batch in once for image in inputs_of(batch)])
        found = {}
        for index in indices:
            path = self.listing.paths[index].as_posix()
            label = self.listing.labels[index] if self.listing.labels else None
            weight = self.listing.weights[index] if self.listing.weights else None
            reason = once.skipped.get(path)
            image = next(images) if reason is None else None
            found[index] = _Item(image, label, weight, path, reason or "")
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

    def of(self, listing: Listing) -> "ImageLoader":
        """Return a loader of another listing, read in the same way."""
        return ImageLoader(
            listing, self.transform, batch_size=self.batch_size or 1, workers=self.num_workers
        )

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
    root: str | Place,
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
    check(batch_size, workers)
    listing = list_images(root, classes=classes, outputs=outputs)
    return ImageLoader(listing, transform, batch_size=batch_size, workers=workers)


def check(batch_size: int, workers: int) -> None:
    """Raise DataError unless a loader can be made with these."""
    if batch_size < 1 or workers < 0:
        raise DataError(
            f"Expected batch_size of 1 or more and workers of 0 or more, "
            f"got {batch_size} and {workers}"
        )


def _collate(items: list[_Item]) -> _Loaded:
    good = [item for item in items if item.image is not None]
    images = [item.image for item in good if item.image is not None]
    labels = [item.label for item in good if item.label is not None]
    weights = [item.weight for item in good if item.weight is not None]
    return _Loaded(
        torch.stack(images) if images else None,
        torch.tensor(labels) if labels else None,
        torch.tensor(weights, dtype=torch.float64) if weights else None,
        {item.path: item.reason for item in items if item.image is None},
    )


def _batch(loaded: _Loaded) -> Any:
    images, labels, weights, _ = loaded
    if weights is not None:
        found = {"input": images, "weight": weights}
        return found if labels is None else {**found, "label": labels}
    return images if labels is None else (images, labels)


def _weights(batch: Any) -> Tensor:
    found: Tensor = batch["weight"]
    return found
