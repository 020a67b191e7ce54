"""build() and default_transform(): from a name, and the shapes in a file, to a model."""

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from adaptkit import CheckpointError, Transform
from adaptkit.architectures import build, default_transform
from adaptkit.models import IBN_NETS

FAMILIES = [
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_class_count_is_found_in_the_shapes(name: str) -> None:
    slow = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    theirs = torchvision.models.get_model(name, weights=None, num_classes=7, **slow)
    model = build(f"torchvision:{name}", state_dict=theirs.state_dict())
    model.load_state_dict(theirs.state_dict(), strict=True)
    assert not model.training
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("cpu", torch.float32)}


@pytest.mark.parametrize("name", ["resnet18_ibn_b", "se_resnet50_ibn_a", "densenet121_ibn_a"])
def test_so_is_that_of_ibn_nets(name: str) -> None:
    theirs = IBN_NETS[name](num_classes=7).state_dict()
    model = build(f"ibn:{name}", state_dict=theirs)
    model.load_state_dict(theirs, strict=True)
    assert not model.training
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("cpu", torch.float32)}


def test_heads_that_were_dropped_for_inference_are_not_missed() -> None:
    theirs = torchvision.models.googlenet(num_classes=3, aux_logits=False, init_weights=False)
    build("torchvision:googlenet", state_dict=theirs.state_dict()).load_state_dict(
        theirs.state_dict(), strict=True
    )


def test_what_is_given_counts_more_than_the_shapes() -> None:
    state_dict = build("adaptkit:small_cnn", {"num_classes": 3, "width": 4}).state_dict()
    model = build("adaptkit:small_cnn", {"num_classes": 5}, state_dict)
    assert model.classifier.weight.shape == (5, 8)  # type: ignore[union-attr]


@pytest.mark.parametrize("spec", ["adaptkit:small_cnn", "ibn:resnet18_ibn_a", "torchvision:swin_t"])
def test_the_random_state_is_left_alone(spec: str) -> None:
    before = torch.random.get_rng_state()
    build(spec, state_dict={})
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:resnet81", r"did you mean torchvision:resnet\d+ or torchvision:"),
        ("adaptkit:small_cn", r"did you mean adaptkit:small_cnn\?"),
        (
            "ibn:resnet50",
            r"ibn:NAME or torchvision:NAME; did you mean ibn:resnet50_ibn_\w or ibn:",
        ),
        ("ibn:resnet50_ibn_c", r"did you mean ibn:resnet50_ibn_\w or ibn:"),
        ("ibn:", r"unknown architecture 'ibn:'"),
        ("torchvision:resnet50_ibn_a", r"did you mean torchvision:resnet50"),
        ("resnet101_ibn_a", r"did you mean ibn:resnet101_ibn_a or "),
        ("resnet50", r"did you mean torchvision:resnet50 or "),
        (
            "timm:resnet50",
            r"adaptkit:NAME, ibn:NAME or torchvision:NAME; did you mean torchvision:resnet50",
        ),
        ("torchvision:fcn_resnet50", "did you mean torchvision:resnet50"),
        ("", "unknown architecture ''"),
        ("a\nb", r"unknown architecture 'a\\nb'"),
    ],
)
def test_unknown_names(spec: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        build(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "kwargs"),
    [
        ("adaptkit:small_cnn", {"depth": 3}),  # TypeError
        ("adaptkit:small_cnn", {1: 2}),
        ("adaptkit:small_cnn", {"num_classes": -1}),  # RuntimeError
        ("ibn:resnet50_ibn_a", {"pretrained": True}),
        ("ibn:resnet50_ibn_a", {"depth": 18}),
        ("ibn:resnet18_ibn_a", {"groups": 3}),
        ("ibn:densenet121_ibn_a", {"num_classes": -1}),
        ("torchvision:resnet18", {"weights": "DEFAULT"}),  # would download
        ("torchvision:resnet18", {"pretrained": True}),
        ("torchvision:resnet18", {"groups": 3}),  # ValueError
        ("torchvision:vit_b_16", {"image_size": 7}),  # AssertionError
        ("torchvision:mobilenet_v2", {"round_nearest": 0}),  # ZeroDivisionError
    ],
)
def test_arguments_that_do_not_fit(spec: str, kwargs: dict[Any, Any]) -> None:
    state_dict: dict[str, Tensor] | None
    for state_dict in (None, {}):
        with pytest.raises(CheckpointError, match=rf"'{spec}' does not take \{{.*: \S") as caught:
            build(spec, kwargs, state_dict)
        assert "\n" not in str(caught.value)


def test_every_classification_model_has_its_published_transform() -> None:
    for name in torchvision.models.list_models(module=torchvision.models):
        transform = default_transform(f"torchvision:{name}")
        published = torchvision.models.get_model_weights(name)["DEFAULT"].transforms()
        assert transform is not None
        assert [*transform.image_size] == published.crop_size * 2, name
        assert [transform.resize_size] == published.resize_size, name
        assert (list(transform.mean), list(transform.std)) == (published.mean, published.std)
    assert default_transform("adaptkit:small_cnn") is None


@pytest.mark.parametrize("name", IBN_NETS)
def test_ibn_nets_see_images_as_torchvisions_first_weights_do(name: str) -> None:
    first = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms()
    assert default_transform(f"ibn:{name}") == Transform(
        image_size=(*first.crop_size, *first.crop_size),
        resize="crop",
        resize_size=first.resize_size[0],
        mean=tuple(first.mean),
        std=tuple(first.std),
    )
