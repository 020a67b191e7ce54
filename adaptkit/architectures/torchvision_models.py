"""torchvision's models for classification, segmentation and detection."""

from collections.abc import Iterable
from functools import partial
from inspect import signature
from typing import Any

import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from adaptkit.architectures.architecture import Architecture, StateDict, refuse
from adaptkit.architectures.shapes import WithoutMemory
from adaptkit.transform import Transform

_MODULES = (
    torchvision.models,
    torchvision.models.segmentation,
    torchvision.models.detection,
)
_FETCHING = ("weights", "weights_backbone", "pretrained", "pretrained_backbone")
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
# Detectors whose backbones have FrozenBatchNorm2d once they start from published weights, and the
# eps that it has with those of the detector itself (torchvision's overwrite_eps).
_FREEZING = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": 1e-5,
    "fasterrcnn_mobilenet_v3_large_fpn": 1e-5,
    "fasterrcnn_resnet50_fpn": 0.0,
    "fcos_resnet50_fpn": 1e-5,
    "keypointrcnn_resnet50_fpn": 0.0,
    "maskrcnn_resnet50_fpn": 0.0,
    "retinanet_resnet50_fpn": 0.0,
}
_KEYPOINTS = "roi_heads.keypoint_predictor.kps_score_lowres.bias"


def names() -> Iterable[str]:
    """Return the names of the models that make sense of one image at a time."""
    return [name for module in _MODULES for name in torchvision.models.list_models(module=module)]


def architecture(name: str) -> Architecture | None:
    """Return the architecture of a name, None if there is none."""
    if name not in names():
        return None
    return Architecture(
        make=partial(_make, name),
        shows=partial(_shown, name),
        suit=partial(_frozen, name),
        transform=partial(_transform, name),
    )


def _make(name: str, /, **kwargs: Any) -> nn.Module:
    refuse(kwargs, _FETCHING.__contains__)
    if "weights_backbone" in _parameters(name):
        kwargs["weights_backbone"] = None  # its default would be downloaded
    if name in _WITH_AUXILIARY_HEADS:  # a slow initialisation, soon overwritten
        kwargs.setdefault("init_weights", False)
    model: nn.Module = torchvision.models.get_model(name, weights=None, **kwargs)
    return model


def _parameters(name: str) -> Iterable[str]:
    return signature(torchvision.models.get_model_builder(name)).parameters


def _shown(name: str, state_dict: StateDict) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if name in _WITH_AUXILIARY_HEADS:  # dropped from models that were made for inference
        found["aux_logits"] = any(key.startswith(("aux", "AuxLogits")) for key in state_dict)
    if "aux_loss" in _parameters(name):
        found["aux_loss"] = any(key.startswith("aux_classifier.") for key in state_dict)
    if "num_keypoints" in _parameters(name) and _KEYPOINTS in state_dict:
        found["num_keypoints"] = state_dict[_KEYPOINTS].numel()
    return found


def _frozen(name: str, model: nn.Module, state_dict: StateDict) -> nn.Module:
    """Put FrozenBatchNorm2d, which counts no batches, where a detector was trained with it."""
    if name not in _FREEZING or any(key.endswith("num_batches_tracked") for key in state_dict):
        return model
    for parent in list(model.modules()):
        for child, layer in parent.named_children():
            if isinstance(layer, nn.BatchNorm2d):
                setattr(parent, child, FrozenBatchNorm2d(layer.num_features, _FREEZING[name]))
    return model


def _transform(name: str) -> Transform:
    published = torchvision.models.get_model_weights(name)["DEFAULT"].transforms()
    if not hasattr(published, "mean"):
        return _of_detector(name)
    (shorter,) = published.resize_size
    (size,) = getattr(published, "crop_size", published.resize_size)
    return Transform(
        image_size=(size, size),
        resize="crop",
        resize_size=shorter,
        mean=tuple(published.mean),
        std=tuple(published.std),
        interpolation=published.interpolation.value,
    )


def _of_detector(name: str) -> Transform:
    with WithoutMemory():
        own: Any = _make(name).transform
    plain: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if own.fixed_size:
        width, height = own.fixed_size
        return Transform(image_size=(height, width), **plain)
    shorter = own.min_size[-1]
    return Transform(image_size=(shorter, shorter), resize="crop", resize_size=shorter, **plain)
