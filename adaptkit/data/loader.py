"""Samples that are listed as batches of tensors."""

import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from adaptkit.data.cache import PixelCache
from adaptkit.data.folder import list_images
from adaptkit.data.listing import Listing
from adaptkit.data.place import Place
from adaptkit.errors import DataError, Stopped
from adaptkit.transform import Transform


class _Read(NamedTuple):
    """A sample, an image as uint8 pixels that are not normalised yet; or why there is none."""

    sample: Tensor | None
    reason: str


class _Loaded(NamedTuple):
    """A batch as its worker sends it: one whole tensor, as each one sent costs an open file."""

    samples: Tensor | NDArray[Any] | None
    reasons: list[str]  # of each sample; "" if it is there


class _Samples(Dataset[_Read]):
    """The samples of a listing at some of its indices."""

    def __init__(
        self,
        listing: Listing,
        transform: Transform | None,
        indices: Sequence[int],
        fast_jpeg: bool,
    ) -> None:
        self.listing, self.transform, self.indices = listing, transform, indices
        self.needed = transform.needed if transform and fast_jpeg else None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> _Read:
        return self.read(self.indices[number])

    def read(self, index: int) -> _Read:
        """Read the sample at an index of the listing."""
        transform = self.transform
        try:
            found = self.listing.read(index, self.needed)
            if isinstance(found, Tensor):
                return _Read(found, "")
            assert transform is not None  # noqa: S101  as ImageLoader made sure
            return _Read(transform.pixels(found), "")
        except DataError as error:
            return _Read(None, str(error))

    def __getitems__(self, numbers: Sequence[int]) -> list[_Read]:
        """Read the samples of a batch, some of them at a time where that is quicker."""
        if self.listing.at_once == 1:
            return [self[number] for number in numbers]
        with ThreadPoolExecutor(self.listing.at_once) as pool:
            return list(pool.map(self.__getitem__, numbers))


class ImageLoader(DataLoader[_Read]):
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
        cache: of another loader of the same listing, through a transform to the same pixels.
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
        super().__init__(
            _Samples(
                listing,
                transform,
                range(len(listing)) if indices is None else indices,
                fast_jpeg,
            ),
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=_collate,
            generator=torch.Generator(),  # so that the global one is left alone
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return (batch for _, batch in self.counted() if batch is not None)

    def counted(self) -> Iterator[tuple[int, Any]]:
        """Yield of how many images each batch was made, and the batch; None where none is left."""
        indices, size = self._indices(), self.batch_size or 1
        kept = {index for index in indices if index in self._cache}
        with closing(self._decoded([i for i in indices if i not in kept])) as decoded:
            for start in range(0, len(indices), size):
                some = indices[start : start + size]
                read = [self._found(i, decoded, i in kept) for i in some]
                yield len(some), self._batch(some, read)

    def _found(self, index: int, decoded: Iterator[_Read], kept: bool) -> _Read:
        if kept:
            return self._again(index)
        found = next(decoded)
        if found.sample is None:
            self._cache.fail(index, found.reason)
        elif self.listing.shape is None:
            self._cache.put(index, found.sample)
        return found

    def _again(self, index: int) -> _Read:
        """Return what is kept of a sample; read it where nothing is."""
        if index in self._cache.failed:
            return _Read(None, self._cache.failed[index])
        pixels = self._cache.get(index)
        return self._data.read(index) if pixels is None else _Read(pixels, "")

    def _batch(self, indices: Sequence[int], read: Sequence[_Read]) -> Any:
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

    def _decoded(self, indices: Sequence[int]) -> Generator[_Read, None, None]:
        """Yield samples in this order, of which several are being read at a time."""
        data = _Samples(self.listing, self.transform, indices, self.fast_jpeg)
        if self.num_workers and indices and self.listing.forks:
            return _by_processes(data, self.batch_size or 1, self.num_workers)
        threads = max(torch.get_num_threads(), self.listing.at_once)
        threads = threads if self.listing.shape is None else 0
        return _by_threads(data, threads, self.batch_size or 1)

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

    def read(self) -> list[Path]:
        """Return the paths of its images, without those that turned out not to be readable."""
        every = self.paths()
        return [every[position] for position in self.kept()]

    def fingerprint(self) -> str:
        """Return the SHA-256 of what its listing knows of its samples, and of how they are read."""
        known = (
            self.listing.at(self._indices()).state(),
            self.transform and self.transform.to_dict(),
            self.fast_jpeg,
        )
        return sha256(repr(known).encode()).hexdigest()

    def of(self, listing: Listing) -> "ImageLoader":
        """Return a loader of another listing, read in the same way."""
        return ImageLoader(
            listing,
            self.transform,
            batch_size=self.batch_size or 1,
            workers=self.num_workers,
            memory=self.memory,
            fast_jpeg=self.fast_jpeg,
        )

    def subset(self, indices: Sequence[int]) -> "ImageLoader":
        """Return a loader of only these images, in this order.

        It shares `skipped` and what was decoded.
        """
        every = self._indices()
        return self._like(self.transform, [every[i] for i in indices], True)

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
        )

    @property
    def _data(self) -> _Samples:
        assert isinstance(self.dataset, _Samples)  # noqa: S101  as made above
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


def _by_threads(data: _Samples, threads: int, ahead: int) -> Generator[_Read, None, None]:
    """Read in threads, so many samples ahead of the one that is yielded; with no thread, in this.

    Pillow lets other threads run while it decodes and resizes.
    """
    if not threads:
        yield from map(data.__getitem__, range(len(data)))
        return
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[_Read]] = deque()
    try:
        for number in range(len(data)):
            waiting.append(pool.submit(data.__getitem__, number))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except (KeyboardInterrupt, Stopped):
        pool.shutdown(wait=False, cancel_futures=True)
        data.listing.give_up()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _by_processes(data: _Samples, batch_size: int, workers: int) -> Generator[_Read, None, None]:
    """Read in worker processes, a batch at a time.

    Raises:
        DataError: a process ended unexpectedly.
    """
    loader = DataLoader(
        data,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_quiet,
        generator=torch.Generator(),  # so that the global one is left alone
    )
    batches = iter(loader)
    try:
        for loaded in batches:
            # Out of the memory that is shared with the worker, which is short and costs open files.
            found = loaded.samples
            samples = iter(() if found is None else torch.as_tensor(found).clone())
            for reason in loaded.reasons:
                yield _Read(None if reason else next(samples), reason)
    except (RuntimeError, OSError, EOFError) as error:
        if not _of_a_death(error):
            raise
        with suppress(RuntimeError):  # of the signal that tells of the death, if it is to come
            time.sleep(0.1)
        memory = "shared memory" if "Bus error" in str(error) else "memory"
        error.__traceback__ = None  # else it would keep the other workers
        del batches
        raise DataError(
            f"a process that decodes images ended unexpectedly (out of {memory}?): use fewer "
            f"workers (now {workers}), or a smaller batch size"
        ) from None


def _of_a_death(error: Exception) -> bool:
    """Whether an error says that a worker died; those that a living one raised are its own.

    torch raises RuntimeError once it knows, and before that others where a batch breaks off.
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    return not str(error).startswith("Caught ")


def _quiet(_: int) -> None:
    """Let a worker print nothing of a batch that it cannot hand over, as the run has ended.

    What goes wrong in reading is handed over, and raised where the batches are asked for.
    """
    sys.excepthook = lambda *_: None


def _collate(read: list[_Read]) -> _Loaded:
    samples = [r.sample for r in read if r.sample is not None]
    return _Loaded(_sent(torch.stack(samples)) if samples else None, [r.reason for r in read])


def _sent(samples: Tensor) -> Tensor | NDArray[Any]:
    """Put a worker's batch where the other process sees it, or have it sent through a pipe.

    Shared memory may be small, as the 64 MiB of a container. Were it full only when the batch is
    being sent, torch would print why, and the other process would wait for ever.
    """
    if get_worker_info() is None:
        return samples
    try:
        samples.share_memory_()
        return samples
    except RuntimeError:
        return samples.numpy()


def _weights(batch: Any) -> Tensor:
    found: Tensor = batch["weight"]
    return found
