"""AdaBN as a callback of Lightning's Trainer by its older name (``import pytorch_lightning``)."""

from types import ModuleType
from typing import ClassVar

from adaptkit.errors import DependencyError
from adaptkit.integrations.adabn_hooks import AdaBNHooks

try:
    import pytorch_lightning
except ImportError as error:
    raise DependencyError(
        f"AdaBNCallback needs pytorch_lightning, which is not installed ({error}): "
        f"pip install pytorch-lightning"
    ) from None


class AdaBNCallback(AdaBNHooks, pytorch_lightning.Callback):
    """The same as `adaptkit.integrations.lightning.AdaBNCallback`.

    A Trainer takes modules and callbacks of its own package only, and `lightning` and
    `pytorch_lightning` are two.
    """

    package: ClassVar[ModuleType] = pytorch_lightning
