"""Letters of many fonts."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

from benchmarks.drawn.drawing import Pixels, brought_down, drawn, moved, sheet
from benchmarks.images import SIZE, Images, MissingDataError

# Fonts that matplotlib ships.
DEJAVU = (
    *(f"DejaVuSans{kind}" for kind in ("", "-Bold", "-Oblique", "Mono", "Mono-Bold")),
    *(f"DejaVuSerif{kind}" for kind in ("", "-Bold", "-Italic", "-BoldItalic")),
)
FONTS = (
    *DEJAVU,
    *(f"STIXGeneral{kind}" for kind in ("", "Bol", "Italic")),
    *("cmr10", "cmss10", "cmtt10", "cmb10"),
)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CYRILLIC = "БГДЖЗИЛПФЦЧШЩЭЮЯ"


def letters(name: str, alphabet: str) -> Images:
    """Return letters of many fonts, sizes and slants, three in ten of them small."""

    def draw(rng: np.random.Generator, k: int) -> Pixels:
        letter = alphabet[k].lower() if rng.random() < 0.3 else alphabet[k]
        return _letter(rng, letter, FONTS, 34, 46)[None]

    return drawn(name, draw, len(alphabet))


def cluttered(name: str, alphabet: str) -> Images:
    """Return letters in a crowd of strokes, dark on light or light on dark, not in the middle."""

    def draw(rng: np.random.Generator, k: int) -> Pixels:
        letter = moved(_letter(rng, alphabet[k], DEJAVU, 28, 38), rng, 4)
        image, pen = sheet()
        for _ in range(rng.integers(4, 9)):
            start = rng.uniform(0, 2 * SIZE, 2)
            pen.line([*start, *(start + rng.normal(0, 9, 2))], fill=255, width=2)
        ink = np.maximum(letter, 0.8 * brought_down(image))
        paper, tone = rng.choice([(0.8, 0.1), (0.2, 0.9)]) + rng.uniform(-0.1, 0.1, 2)
        mixed: Pixels = paper + (tone - paper) * ink
        return mixed[None]

    return drawn(name, draw, len(alphabet))


def _letter(
    rng: np.random.Generator, letter: str, fonts: tuple[str, ...], least: int, most: int
) -> Pixels:
    font = _font(fonts[rng.integers(len(fonts))], int(rng.integers(least, most)))
    image, pen = sheet()
    pen.text((SIZE, SIZE), letter, fill=255, font=font, anchor="mm")
    return brought_down(image.rotate(float(rng.normal(0, 8)), Image.Resampling.BILINEAR))


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    try:
        import matplotlib
    except ImportError:
        hint = 'letters need the fonts of matplotlib: pip install -e ".[bench]"'
        raise MissingDataError(hint) from None
    return ImageFont.truetype(
        Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size
    )
