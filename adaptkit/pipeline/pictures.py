"""From samples whose prediction changed to small images of them."""

import io
from collections.abc import Iterator, Sequence

from PIL import Image

from adaptkit.data import ImageLoader
from adaptkit.evaluation import Evaluation
from adaptkit.report.pictures import Picture, changed

MOST = 12  # of each kind
_SIDE = 128  # pixels, of the longer side at most


def pictures(
    before: Evaluation, after: Evaluation, images: ImageLoader, classes: Sequence[str] | None
) -> Iterator[Picture]:
    """Yield small images, as the model sees them, of the best and the worst changes of predictions.

    Args:
        before: of the source model on `images`.
        after: of the adapted model on the same.
        images: read through at least once.
        classes: the outputs' names.
    """
    places_read = images.kept()
    if len(places_read) != len(before):  # one could be read once and not again
        return
    paths = images.paths()
    best, worst = changed(before, after, MOST)
    for kind, places in (("best", best), ("worst", worst)):
        for place in places:
            path = paths[places_read[place]]
            image = images.picture(places_read[place])
            if image is None:
                continue
            data, media = _small(image)
            label = None if before.labels is None else _name(int(before.labels[place]), classes)
            yield Picture(
                kind,
                path.as_posix(),
                data,
                media,
                label,
                *(
                    (_name(int(e.predictions[place]), classes), float(e.confidence[place]))
                    for e in (before, after)
                ),
            )


def _name(k: int, classes: Sequence[str] | None) -> str:
    return classes[k] if classes else str(k)


def _small(image: Image.Image) -> tuple[bytes, str]:
    """Return a small image as PNG or, where it had to be made smaller, as JPEG."""
    file = io.BytesIO()
    if max(image.size) <= _SIDE:
        image.save(file, "PNG")
        return file.getvalue(), "image/png"
    image.thumbnail((_SIDE, _SIDE))
    image.save(file, "JPEG", quality=80)
    return file.getvalue(), "image/jpeg"
