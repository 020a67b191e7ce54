"""ResNets, ResNeXts and SE-ResNets with instance norm: IBN-a and IBN-b."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from adaptkit.errors import AdaptkitError
from adaptkit.layers import IBN
from adaptkit.layers.ibn import GuardedInstanceNorm2d
from adaptkit.models.se import SqueezeExcitation


class _WithPlaces:
    """A block of torchvision's, with a place for an SE module and one for an instance norm.

    An Identity in a place adds no key to the state dict.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.se: nn.Module = nn.Identity()
        self.IN: nn.Module = nn.Identity()


class _BasicBlock(_WithPlaces, BasicBlock):  # type: ignore[misc]  # torchvision has no types
    """See `_WithPlaces`."""

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.se(self.bn2(self.conv2(out)))
        out += identity
        rectified: Tensor = self.relu(self.IN(out))
        return rectified


class _Bottleneck(_WithPlaces, Bottleneck):  # type: ignore[misc]
    """See `_WithPlaces`."""

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.se(self.bn3(self.conv3(out)))
        out += identity
        rectified: Tensor = self.relu(self.IN(out))
        return rectified


_STAGES: dict[int, tuple[type[nn.Module], list[int]]] = {
    18: (_BasicBlock, [2, 2, 2, 2]),
    34: (_BasicBlock, [3, 4, 6, 3]),
    50: (_Bottleneck, [3, 4, 6, 3]),
    101: (_Bottleneck, [3, 4, 23, 3]),
    152: (_Bottleneck, [3, 8, 36, 3]),
}


class IBNResNet(ResNet):  # type: ignore[misc]
    """torchvision's ResNet with instance norm where appearance is, in the earlier stages.

    IBN-a: the first norm of every block of layer1 to layer3 is an `IBN`, half instance norm and
    half batch norm. IBN-b: the stem's norm is an instance norm, and another stands in the last
    block of layer1 and of layer2, after the addition and before its ReLU.

    Keys and shapes of the state dict are those of the published IBN-Nets, whose weights load.

    Args:
        depth: 18, 34, 50, 101 or 152.
        kind: "a" or "b".
        num_classes: logits.
        groups: of the middle convolutions; 32 for a ResNeXt.
        width_per_group: 4 for a ResNeXt 32x4d.
        squeeze_excitation: whether a `SqueezeExcitation` follows the last norm of each block.

    Shapes: (N, 3, H, W) to logits (N, num_classes). In training layer3's maps need more than one
    value, which takes images of more than 16 x 16.

    Raises:
        AdaptkitError: `depth` or `kind` is another.

    Source: Pan et al. 2018, arXiv 1807.09441.

    >>> import torch
    >>> IBNResNet(18, "a", num_classes=5).eval()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        depth: int,
        kind: Literal["a", "b"],
        num_classes: int = 1000,
        *,
        groups: int = 1,
        width_per_group: int = 64,
        squeeze_excitation: bool = False,
    ) -> None:
        if depth not in _STAGES or kind not in ("a", "b"):
            raise AdaptkitError(
                f"Expected a depth of {', '.join(map(str, _STAGES))} and a kind of a or b, got "
                f"{depth} and {kind!r}"
            )
        block_type, counts = _STAGES[depth]
        super().__init__(
            block_type, counts, num_classes, groups=groups, width_per_group=width_per_group
        )
        stages = [self.layer1, self.layer2, self.layer3, self.layer4]
        if squeeze_excitation:
            for block in (block for stage in stages for block in stage):
                block.se = SqueezeExcitation(_outputs(block))
        if kind == "a":
            for block in (block for stage in stages[:3] for block in stage):
                block.bn1 = IBN(block.bn1.num_features)
        else:
            self.bn1 = GuardedInstanceNorm2d(self.conv1.out_channels)
            for block in (stage[-1] for stage in stages[:2]):
                block.IN = GuardedInstanceNorm2d(_outputs(block))


def _outputs(block: _BasicBlock | _Bottleneck) -> int:
    last = block.bn3 if isinstance(block, _Bottleneck) else block.bn2
    channels: int = last.num_features
    return channels


IBN_RESNETS: dict[str, Callable[..., IBNResNet]] = {
    **{f"resnet{depth}_ibn_a": partial(IBNResNet, depth, "a") for depth in _STAGES},
    **{f"resnet{depth}_ibn_b": partial(IBNResNet, depth, "b") for depth in _STAGES},
    **{
        f"resnext{depth}_ibn_a": partial(IBNResNet, depth, "a", groups=32, width_per_group=4)
        for depth in (50, 101)
    },
    **{
        f"se_resnet{depth}_ibn_a": partial(IBNResNet, depth, "a", squeeze_excitation=True)
        for depth in (50, 101)
    },
}
