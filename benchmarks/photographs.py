"""A folder of JPEG files to decode: pieces of real photographs, as many as are wanted."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.images import MissingDataError

LARGE = 2000, 1500  # pixels, width and height: what a phone or a camera gives, and less
# Where the packages of HINT put their pictures.
_FOLDERS = Path("/usr/share/backgrounds"), Path("/usr/share/wallpapers")
_DRAWN = (  # names of what in those folders is none
    "2004default analogpattern Autumn Elephants firstgeneration Flow Fossa Honeywave Infinite-Sea "
    "Painting-Colors PastelHills rhythm SafeLanding Shell string the-mouse umang"
)
HINT = (
    "there are no large photographs on this machine: apt-get install mate-backgrounds "
    "lomiri-wallpapers ukui-wallpapers plasma-workspace-wallpapers"
)
QUALITY = 90  # of JPEG; a file of 224 px is about 30 kB


def write(folder: Path, count: int, side: int, seed: int = 0) -> None:
    """Write square pieces of the two photographs that scikit-learn ships, at random places.

    A piece is between half of `side` and the whole photograph's height, and brought to `side`, so
    that files hold as much detail as photographs do, and no two are the same.
    """
    folder.mkdir()
    rng = np.random.default_rng(seed)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for number in range(count):
        photograph = photographs[rng.integers(len(photographs))]
        width, height = photograph.size
        piece = int(rng.integers(side // 2, height + 1))
        left, top = int(rng.integers(width - piece + 1)), int(rng.integers(height - piece + 1))
        box = (left, top, left + piece, top + piece)
        cut = photograph.resize((side, side), Image.Resampling.BILINEAR, box=box)
        cut.save(folder / f"{number:06}.jpg", quality=QUALITY)


def large() -> list[Path]:
    """Return the JPEG files of at least `LARGE` that desktops have as backgrounds, on this machine.

    Raises:
        MissingDataError: there is none.
    """
    paths = sorted(p for folder in _FOLDERS for p in folder.rglob("*.jpg") if not p.is_symlink())
    drawn = [path for path in paths if any(name in str(path) for name in _DRAWN.split())]
    found = [path for path in paths if path not in drawn and _fits(path)]
    if not found:
        raise MissingDataError(HINT)
    return found


def _fits(path: Path) -> bool:
    with Image.open(path) as image:
        return image.width >= LARGE[0] and image.height >= LARGE[1]


def write_large(folder: Path, count: int, paths: Sequence[Path], seed: int = 0) -> None:
    """Write pieces of large photographs as JPEG files of `LARGE`, as many of each photograph.

    A piece lies at random and is between `LARGE` and all of its photograph; it is never enlarged,
    so that a file has as much detail as a camera's. Every other one goes into the folder `a`, the
    rest into `b`.
    """
    rng = np.random.default_rng(seed)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for start, path in enumerate(paths[:count]):
        with Image.open(path) as file:
            photograph = file.convert("RGB")
        largest = min(photograph.width / LARGE[0], photograph.height / LARGE[1])
        for number in range(start, count, len(paths)):
            scale = rng.uniform(1, largest)
            width, height = (int(scale * side) for side in LARGE)
            left = int(rng.integers(photograph.width - width + 1))
            top = int(rng.integers(photograph.height - height + 1))
            box = (left, top, left + width, top + height)
            cut = photograph.resize(LARGE, Image.Resampling.BICUBIC, box=box)
            cut.save(folder / "ab"[number % 2] / f"{number:06}.jpg", quality=QUALITY)
