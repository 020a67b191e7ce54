"""More labelled images, drawn by rule, that the guard's forecast is learned on."""

from collections.abc import Callable
from functools import cache

from benchmarks import images
from benchmarks.drawn.glyphs import coloured_glyphs, glyphs
from benchmarks.drawn.letters import ALPHABET, CYRILLIC, cluttered, letters
from benchmarks.drawn.places import places
from benchmarks.drawn.scattered import scattered
from benchmarks.drawn.shapes import counted, shapes
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


@cache
def named(name: str) -> Images:
    """Return the images of `NAMES`, or of `images.NAMES`.

    Raises:
        MissingDataError: they are not on this machine.
    """
    return NAMES[name]() if name in NAMES else images.named(name)
