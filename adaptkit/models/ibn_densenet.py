"""DenseNets with instance norm: IBN-a."""

from collections.abc import Callable
from functools import partial

from torchvision.models import DenseNet

from adaptkit.errors import AdaptkitError
from adaptkit.layers import IBN

_BLOCKS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}
_RATIO = 0.4  # of channels with instance norm


class IBNDenseNet(DenseNet):  # type: ignore[misc]  # torchvision has no types
    """torchvision's DenseNet with `IBN` in place of the first norm of every third dense layer.

    That is in denselayer1, 4, 7, … of denseblock1 to denseblock3; 60% of the channels, the first,
    keep batch norm. Keys and shapes of the state dict are those of the published DenseNet-IBN-a.

    Args:
        depth: 121, 169 or 201.
        num_classes: logits.

    Shapes: (N, 3, H, W), H and W of 29 or more, to logits (N, num_classes).

    Raises:
        AdaptkitError: `depth` is another.

    Source: Pan et al. 2018, arXiv 1807.09441.

    >>> import torch
    >>> IBNDenseNet(121, num_classes=5).eval()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 5])
    """

    def __init__(self, depth: int, num_classes: int = 1000) -> None:
        if depth not in _BLOCKS:
            raise AdaptkitError(
                f"Expected a depth of {', '.join(map(str, _BLOCKS))}, got {depth!r}"
            )
        super().__init__(block_config=_BLOCKS[depth], num_classes=num_classes)
        features = self.features
        for block in (features.denseblock1, features.denseblock2, features.denseblock3):
            for layer in [*block.values()][::3]:
                layer.norm1 = IBN(layer.norm1.num_features, _RATIO, instance_first=False)


IBN_DENSENETS: dict[str, Callable[..., IBNDenseNet]] = {
    f"densenet{depth}_ibn_a": partial(IBNDenseNet, depth) for depth in _BLOCKS
}
