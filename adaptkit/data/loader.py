"""Samples that are listed as batches of tensors."""

from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from adaptkit.data.cache import PixelCache
from adaptkit.data.folder import list_images
from adaptkit.data.listing import Listing
from adaptkit.data.place import Place
from adaptkit.data.reading import Read, Samples, by_processes, by_threads, collate
from adaptkit.errors import DataError
from adaptkit.transform import Transform


class ImageLoader(DataLoader[Read]):
    """Batches of samples, always in the same order; made by `adaptkit.data.open`.

    Iterating yields float32 images of shape (B, C, H, W), or signals or features of whatever shape
    they have, with int64 labels of shape (B,) where they have labels. Where they have weights a
    batch is a dict of "input", "weight" (float64, (B,)), and if known "label". A sample that cannot
    be read is left out, and named in `skipped`.

    An image is decoded once, also where several loaders that come from one have it: its pixels are
    kept as `PixelCache` says.

    Args:
        listing: the samples.
        transform: from an image to a tensor; None where the samples are tensors.
        indices: of the images to load, in this order; by default all.
        batch_size: images a batch.
        workers: processes that decode; 0 decodes in this one, in as many threads as torch uses, and
            so is what a server has to be asked for.
        memory: bytes of memory for decoded images, see `PixelCache`.
        fast_jpeg: see `image_folder`.
        skipped: path -> reason, filled while iterating.
        cache: of other loaders, through a transform to the same pixels.
        keys: what the listing's samples are called in it; by default their numbers.
    """

    def __init__(
        self,
        listing: Listing,
        transform: Transform | None,
        *,
        indices: Sequence[int] | None = None,
        batch_size: int = 64,
        workers: int = 0,
        memory: int | None = None,
        fast_jpeg: bool = False,
        skipped: dict[str, str] | None = None,
        cache: PixelCache | None = None,
        keys: Sequence[Hashable] | None = None,
    ) -> None:
        if transform is None and listing.shape is None:
            raise DataError(
                "Expected a transform, got None: the checkpoint does not say how images are "
                "prepared; pass adaptkit.Transform(image_size=(height, width), ...)"
            )
        self.listing, self.transform = listing, transform
        self.memory, self.fast_jpeg = memory, fast_jpeg
        self.skipped: dict[str, str] = {} if skipped is None else skipped
        self._cache = PixelCache(self.shape, memory) if cache is None else cache
        self._keys: Sequence[Hashable] = range(len(listing)) if keys is None else keys
        super().__init__(
            Samples(
                listing,
                transform,
                range(len(listing)) if indices is None else indices,
                fast_jpeg,
            ),
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=collate,
            generator=torch.Generator(),  # so that the global one is left alone
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return (batch for _, batch in self.counted() if batch is not None)

    def counted(self) -> Iterator[tuple[int, Any]]:
        """Yield of how many images each batch was made, and the batch; None where none is left."""
        indices, size = self._indices(), self.batch_size or 1
        kept = {index for index in indices if self._keys[index] in self._cache}
        with closing(self._decoded([i for i in indices if i not in kept])) as decoded:
            for start in range(0, len(indices), size):
                some = indices[start : start + size]
                read = [self._found(i, decoded, i in kept) for i in some]
                yield len(some), self._batch(some, read)

    def _found(self, index: int, decoded: Iterator[Read], kept: bool) -> Read:
        return self._again(index) if kept else next(decoded)

    def _keep(self, index: int, read: Read) -> None:
        if read.sample is None:
            self._cache.fail(self._keys[index], read.reason)
        elif self.listing.shape is None:
            self._cache.put(self._keys[index], read.sample)

    def _again(self, index: int) -> Read:
        """Return what is kept of a sample; read it where nothing is."""
        key = self._keys[index]
        if key in self._cache.failed:
            return Read(None, self._cache.failed[key])
        if (pixels := self._cache.get(key)) is not None:
            return Read(pixels, "")
        read = self._data.read(index)
        self._keep(index, read)  # a sample that is gone stays so: no later pass has more of them
        return read

    def _batch(self, indices: Sequence[int], read: Sequence[Read]) -> Any:
        """Return the samples that there are, as they are yielded; None where there is none."""
        listing = self.listing
        named = zip(indices, read, strict=True)
        self.skipped.update(
            {listing.paths[i].as_posix(): r.reason for i, r in named if r.sample is None}
        )
        there = [i for i, r in zip(indices, read, strict=True) if r.sample is not None]
        if not there:
            return None
        x = torch.stack([r.sample for r in read if r.sample is not None])
        if listing.shape is None and self.transform is not None:
            x = self.transform.normalised(x)
        batch: dict[str, Tensor] = {"input": x}
        if listing.weights:
            weights = [listing.weights[i] for i in there]
            batch["weight"] = torch.tensor(weights, dtype=torch.float64)
        if listing.labels:
            batch["label"] = torch.tensor([listing.labels[i] for i in there])
        if torch.cuda.is_available():  # so that copies to the GPU need not wait
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        if listing.weights:
            return batch
        return (batch["input"], batch["label"]) if listing.labels else batch["input"]

    def _decoded(self, indices: Sequence[int]) -> Generator[Read, None, None]:
        """Yield samples in this order, of which several are being read at a time."""
        data = Samples(self.listing, self.transform, indices, self.fast_jpeg)
        if self.num_workers and indices and self.listing.forks:
            return by_processes(data, self.batch_size or 1, self.num_workers, self._keep)
        threads = max(torch.get_num_threads(), self.listing.at_once)
        threads = threads if self.listing.shape is None else 0
        return by_threads(data, threads, self.batch_size or 1, self._keep)

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

    def picture(self, position: int) -> Image.Image | None:
        """Return the image at a position as the model sees it; None where there is none."""
        index = self._indices()[position]
        if self.listing.shape is not None or self.transform is None:
            return None
        pixels = self._again(index).sample
        if pixels is None:
            return None
        array = pixels.permute(1, 2, 0).numpy()
        return Image.fromarray(array[:, :, 0] if len(pixels) == 1 else array)

    def prepared_by(self, transform: Transform) -> "ImageLoader":
        """Return a loader of the same images through another transform; it shares `skipped`.

        What was decoded is shared where the two differ only in what follows the pixels.
        """
        alike = self.transform is not None and self.transform.bare == transform.bare
        return self._like(transform, self._indices(), alike)

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

    def fingerprint(self) -> str:
        """Return the SHA-256 of what its listing knows of its samples, and of how they are read."""
        known = (
            self.listing.at(self._indices()).state(),
            self.transform and self.transform.to_dict(),
            self.fast_jpeg,
        )
        return sha256(repr(known).encode()).hexdigest()

    def forget(self) -> None:
        """Keep its images' pixels no longer, where others share the room."""
        self._cache.drop(self._keys[index] for index in self._indices())

    def of(
        self,
        listing: Listing,
        cache: PixelCache | None = None,
        keys: Sequence[Hashable] | None = None,
    ) -> "ImageLoader":
        """Return a loader of another listing, read in the same way.

        Args:
            listing: the samples.
            cache: to share with others; by default one of its own.
            keys: what the samples are called in it.
        """
        return ImageLoader(
            listing,
            self.transform,
            batch_size=self.batch_size or 1,
            workers=self.num_workers,
            memory=self.memory,
            fast_jpeg=self.fast_jpeg,
            cache=cache,
            keys=keys,
        )

    def subset(self, indices: Sequence[int]) -> "ImageLoader":
        """Return a loader of only these images, in this order.

        It shares `skipped` and what was decoded.
        """
        every = self._indices()
        return self._like(self.transform, [every[i] for i in indices], True)

    def weighing(self) -> "ImageLoader":
        """Return a loader of the samples whose weight is not 0; it shares as `subset` does."""
        every, weights = self._indices(), self.listing.weights
        return (
            self
            if weights is None
            else self._like(self.transform, [i for i in every if weights[i]], True)
        )

    def _like(
        self, transform: Transform | None, indices: Sequence[int], same_pixels: bool
    ) -> "ImageLoader":
        return ImageLoader(
            self.listing,
            transform,
            indices=indices,
            batch_size=self.batch_size or 1,
            workers=self.num_workers,
            memory=self.memory,
            fast_jpeg=self.fast_jpeg,
            skipped=self.skipped,
            cache=self._cache if same_pixels else None,
            keys=self._keys,
        )

    @property
    def _data(self) -> Samples:
        assert isinstance(self.dataset, Samples)  # noqa: S101  as made above
        return self.dataset

    def _indices(self) -> Sequence[int]:
        return self._data.indices


def image_folder(
    root: str | Place,
    *,
    transform: Transform | None,
    classes: Sequence[str] | None = None,
    outputs: int | None = None,
    batch_size: int = 64,
    workers: int = 0,
    fast_jpeg: bool = False,
) -> ImageLoader:
    """Open a folder of images, with labels where its sub-folders are classes (see `list_images`).

    Args:
        root: class folders, or a flat or nested folder of unlabelled images.
        transform: from an image to the model's input, as `Checkpoint.transform` has it.
        classes: the names of the model's outputs, as `Checkpoint.classes` has them.
        outputs: how many outputs the model has, for where `classes` is not known.
        batch_size: images a batch.
        workers: processes that decode images; 0 decodes in this one.
        fast_jpeg: decode JPEG files that are much larger than what the model sees at a half, a
            quarter or an eighth of their size, as `Transform.needed` says: several times faster,
            and the pixels differ by about what rounding does.

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
    return ImageLoader(
        listing, transform, batch_size=batch_size, workers=workers, fast_jpeg=fast_jpeg
    )


def check(batch_size: int, workers: int) -> None:
    """Raise DataError unless a loader can be made with these."""
    if batch_size < 1 or workers < 0:
        raise DataError(
            f"Expected batch_size of 1 or more and workers of 0 or more, "
            f"got {batch_size} and {workers}"
        )


def _weights(batch: Any) -> Tensor:
    found: Tensor = batch["weight"]
    return found
