"""One small residual net, with each norm in its place."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from adaptkit.layers import BatchRenorm2d, RenormSchedule
from adaptkit.layers.ibn import IBN

Factory = Callable[[int], nn.Module]

WIDTHS = (16, 32, 64)  # of the stages; at 28 px their maps have 14, 7 and 4
BLOCKS = 1  # a stage
_BLOCK = 3 + BLOCKS * (len(WIDTHS) - 1) - 1  # in the body, after the stem's three modules
# Batch Renorm's paper has it for both, to follow many small batches; BN's usual 0.1 would forget
# all but the last ten micro-batches.
MOMENTUM = 0.01


@dataclass(frozen=True)
class Placement:
    """Which norm stands where; `first`, `stem` and `after` are `norm` or nothing where not given.

    Args:
        norm: of a number of channels.
        first: the first norm of each block, in all stages but the last (IBN-a).
        stem: the norm before the first block (IBN-b).
        after: a norm of the sum that a stage ends in, in all stages but the last (IBN-b).
        couples: whether it makes an image's output in training depend on the others in the batch.
        weights: whether it is the weights that are normalised.
    """

    norm: Factory
    first: Factory | None = None
    stem: Factory | None = None
    after: Factory | None = None
    couples: bool = False
    weights: bool = False


def placements(batches: int) -> dict[str, Placement]:
    """Return the norms by name, for a training that passes so many (micro-)batches.

    Batch Renorm's schedule is the paper's (5,000, 25,000 and 40,000 steps) at the scale of a
    training of 100,000: batch norm for the first 5%, full d_max at 25%, full r_max at 40%.
    """
    schedule = RenormSchedule(
        start=batches // 20, d_end=max(batches // 4, 1), r_end=max(batches * 2 // 5, 1)
    )

    def batch(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels, momentum=MOMENTUM)

    def renorm(channels: int) -> nn.Module:
        return BatchRenorm2d(channels, momentum=MOMENTUM, schedule=schedule)

    def instance(channels: int) -> nn.Module:
        return nn.InstanceNorm2d(channels, affine=True)

    def both(channels: int) -> nn.Module:
        return IBN(channels, momentum=MOMENTUM)

    return {
        "BN": Placement(batch, couples=True),
        "Batch Renorm": Placement(renorm, couples=True),
        "IBN-a": Placement(batch, first=both, couples=True),
        "IBN-b": Placement(batch, stem=instance, after=instance, couples=True),
        "IN": Placement(instance),
        "GN": Placement(lambda channels: nn.GroupNorm(8, channels)),
        "LN": Placement(lambda channels: nn.GroupNorm(1, channels)),
        "WN": Placement(lambda _: nn.Identity(), weights=True),
    }


class Block(nn.Module):
    """Two 3x3 convolutions, each with its norm, and a way round them."""

    def __init__(
        self, inputs: int, channels: int, stride: int, place: Placement, *, last: bool, end: bool
    ) -> None:
        super().__init__()
        first = place.norm if last or place.first is None else place.first
        bias = place.weights  # a norm has its own
        self.first = nn.Sequential(
            nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=bias), first(channels)
        )
        self.second = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=bias), place.norm(channels)
        )
        self.around = nn.Sequential()
        if stride > 1 or inputs != channels:
            self.around.append(nn.Conv2d(inputs, channels, 1, stride, bias=bias))
            self.around.append(place.norm(channels))
        ends = end and not last and place.after is not None
        self.after = place.after(channels) if ends and place.after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of `channels` channels."""
        y: Tensor = self.after(self.second(self.first(x)) + self.around(x))
        return y.relu()


class ResidualNet(nn.Module):
    """A stem, three stages of residual blocks, global pooling and a linear layer."""

    def __init__(self, place: Placement, classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        stem = place.stem or place.norm
        blocks: list[nn.Module] = []
        inputs = WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            for number in range(BLOCKS):
                stride = 2 if stage and not number else 1
                last, end = width == WIDTHS[-1], number == BLOCKS - 1
                blocks.append(Block(inputs, width, stride, place, last=last, end=end))
                inputs = width
        self.body = nn.Sequential(
            nn.Conv2d(channels, WIDTHS[0], 3, stride=2, padding=1, bias=place.weights),
            *(stem(WIDTHS[0]), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.classifier = nn.Linear(WIDTHS[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if place.weights:
            for module in list(self.modules()):
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    weight_norm(module)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, channels, H, W)."""
        logits: Tensor = self.classifier(self.body(x))
        return logits

    @property
    def layer(self) -> nn.Module:
        """A convolution and its norm: the first of the last but one stage's last block."""
        block = self.body[_BLOCK]
        assert isinstance(block, Block)  # noqa: S101
        return block.first

    def into_layer(self, x: Tensor) -> Tensor:
        """Return what `layer` gets, for images."""
        y: Tensor = self.body[:_BLOCK](x)
        return y
