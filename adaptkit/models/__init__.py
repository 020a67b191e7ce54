"""Models that come with adaptkit."""

from collections.abc import Callable

from torch import nn

from adaptkit.models.ibn_densenet import IBN_DENSENETS, IBNDenseNet
from adaptkit.models.ibn_resnet import IBN_RESNETS, IBNResNet
from adaptkit.models.small_cnn import SmallCNN

# Of the published names; each takes `num_classes`.
IBN_NETS: dict[str, Callable[..., nn.Module]] = {**IBN_RESNETS, **IBN_DENSENETS}

__all__ = ["IBN_NETS", "IBNDenseNet", "IBNResNet", "SmallCNN"]
