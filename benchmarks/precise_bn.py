"""fvcore's PreciseBN, a peer that not every machine has."""

import warnings
from collections.abc import Callable
from importlib.util import find_spec

HINT = 'fvcore is missing: pip install -e ".[bench]"'


def installed() -> bool:
    """Whether fvcore is there."""
    return find_spec("fvcore") is not None


def update_bn_stats() -> Callable[..., None]:
    """Return fvcore's function of that name, without torch's warning of fvcore's own code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        from fvcore.nn.precise_bn import update_bn_stats as found
    return found  # type: ignore[no-any-return]
