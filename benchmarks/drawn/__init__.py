"""More labelled images, drawn by rule, that the guard's forecasts and their limits stand on."""

from collections.abc import Callable
from functools import cache

from benchmarks import images
from benchmarks.drawn.glyphs import coloured_glyphs, glyphs
from benchmarks.drawn.letters import ALPHABET, CYRILLIC, cluttered, letters
from benchmarks.drawn.places import places
from benchmarks.drawn.scattered import scattered
from benchmarks.drawn.shapes import counted, shapes
from benchmarks.drawn.some import some
from benchmarks.drawn.textures import lands, patterns, stripes
from benchmarks.drawn.things import cells, clocks, faces, flags
from benchmarks.images import Images

NAMES: dict[str, Callable[[], Images]] = {
    "scattered digits": lambda: scattered("scattered digits", images.named("digits"), 0, 20),
    "scattered MNIST": lambda: scattered("scattered MNIST", images.named("MNIST"), 4, 10),
    "letters": lambda: letters("letters", ALPHABET),
    "scattered letters": lambda: scattered(
        "scattered letters", letters("letters", ALPHABET[:10]), 4, 30
    ),
    "cluttered letters": lambda: cluttered("cluttered letters", CYRILLIC),
    "glyphs": lambda: glyphs("glyphs", 20, seed=0),
    "coloured glyphs": lambda: coloured_glyphs("coloured glyphs", 10, seed=1),
    "shapes": lambda: shapes("shapes", 10),
    "three shapes": lambda: shapes("three shapes", 3),
    "counted discs": lambda: counted("counted discs", 6),
    "patterns": lambda: patterns("patterns"),
    "stripes": lambda: stripes("stripes", 8),
    "lands": lambda: lands("lands"),
    "places": lambda: places("places"),
    "cells": lambda: cells("cells"),
    "flags": lambda: flags("flags"),
    "faces": lambda: faces("faces"),
    "clocks": lambda: clocks("clocks", 12),
}


# Two and three classes of each of these sets, on which the guard's limits for few classes stand.
_TWO = {
    "MNIST": (3, 8),
    "digits": (4, 9),
    "letters": (2, 14),
    "glyphs": (0, 1),
    "coloured glyphs": (0, 1),
    "shapes": (0, 3),
    "patterns": (0, 1),
    "places": (0, 1),
    "cells": (0, 1),
    "flags": (0, 1),
    "faces": (0, 2),
    "clocks": (0, 3),
}
_THREE = {
    "MNIST": (4, 7, 9),
    "digits": (3, 5, 8),
    "letters": (4, 5, 8),
    "glyphs": (2, 3, 4),
    "coloured glyphs": (2, 3, 4),
    "shapes": (1, 4, 6),
    "patterns": (2, 3, 4),
    "places": (2, 3, 4),
    "cells": (2, 3, 4),
    "flags": (2, 3, 4),
    "faces": (1, 3, 4),
    "clocks": (1, 4, 7),
}
_FEW = {
    f"{count} of {name}": (name, classes)
    for count, of in (("two", _TWO), ("three", _THREE))
    for name, classes in of.items()
}
FEW = tuple(_FEW)


@cache
def named(name: str) -> Images:
    """Return the images of `NAMES`, of `FEW`, or of `images.NAMES`.

    Raises:
        MissingDataError: they are not on this machine.
    """
    if name in _FEW:
        whole, classes = _FEW[name]
        return some(name, named(whole), classes)
    return NAMES[name]() if name in NAMES else images.named(name)
