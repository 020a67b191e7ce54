"""build() and default_transform(): from a name, and the shapes in a file, to a model."""

import re
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models import detection, segmentation
from torchvision.ops import FrozenBatchNorm2d

from adaptkit import AdaptkitError, CheckpointError, Transform
from adaptkit.architectures import (
    argument,
    arguments_of,
    build,
    default_transform,
    runs_code,
    without_memory,
)
from adaptkit.errors import DependencyError
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


DETECTORS = torchvision.models.list_models(module=detection)
SEGMENTERS = torchvision.models.list_models(module=segmentation)
TIMM = [  # BatchNormAct2d, a distilled head, LayerNorm
    "resnet18.a1_in1k",
    "mobilenetv3_small_050",
    "levit_128s",
    "test_convnext.r160_in1k",
]


@pytest.fixture(autouse=True)
def _nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    tried: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: tried.append(address))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **_: tried.append(a))
    yield
    assert not tried


def shapes_of(spec: str, **kwargs: Any) -> dict[str, Tensor]:
    return dict(without_memory(spec, kwargs).state_dict())


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


@pytest.mark.parametrize("name", TIMM)
def test_so_is_that_of_timms(name: str) -> None:
    import timm

    theirs = timm.create_model(name, pretrained=False, num_classes=7).eval()
    model = build(f"timm:{name}", state_dict=theirs.state_dict())
    model.load_state_dict(theirs.state_dict(), strict=True)
    assert not model.training
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(x), theirs(x))


def test_all_of_torchvisions_for_single_images_are_known() -> None:
    for name in (*SEGMENTERS, *DETECTORS):
        assert without_memory(f"torchvision:{name}", {"num_classes": 3})


@pytest.mark.parametrize(
    "name",
    [
        "deeplabv3_mobilenet_v3_large",
        "lraspp_mobilenet_v3_large",
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "fcos_resnet50_fpn",
        "maskrcnn_resnet50_fpn_v2",
        "retinanet_resnet50_fpn",
        "ssd300_vgg16",
    ],
)
def test_so_is_that_of_segmenters_and_detectors(name: str) -> None:
    """A size may be a multiple there: of anchors, or of coordinates."""
    assert (
        arguments_of(f"torchvision:{name}", shapes_of(f"torchvision:{name}", num_classes=7)).items()
        >= {"num_classes": 7}.items()
    )


def test_heads_that_do_not_agree_tell_nothing() -> None:
    state_dict = shapes_of("torchvision:fcn_resnet50", num_classes=7, aux_loss=True)
    state_dict["aux_classifier.4.bias"] = torch.zeros(8)
    assert arguments_of("torchvision:fcn_resnet50", state_dict) == {"aux_loss": True}
    retinanet = shapes_of("torchvision:retinanet_resnet50_fpn", num_classes=7)
    retinanet["head.classification_head.cls_logits.bias"] = torch.zeros(64)  # 7 classes and a bit
    assert arguments_of("torchvision:retinanet_resnet50_fpn", retinanet) == {}


def test_a_segmenter_with_its_auxiliary_head() -> None:
    theirs = segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=3, aux_loss=True
    ).eval()
    model = build("torchvision:fcn_resnet50", state_dict=theirs.state_dict())
    model.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, expected = model(x), theirs(x)
    assert list(ours) == ["out", "aux"]
    assert torch.equal(ours["out"], expected["out"])


def test_a_segmenter_without_one() -> None:
    spec = "torchvision:fcn_resnet50"
    found = {"aux_loss": False, "num_classes": 3}
    assert arguments_of(spec, shapes_of(spec, **found)) == found


def test_lraspp_has_no_auxiliary_head() -> None:
    state_dict = shapes_of("torchvision:lraspp_mobilenet_v3_large", num_classes=3)
    assert arguments_of("torchvision:lraspp_mobilenet_v3_large", state_dict) == {"num_classes": 3}


def test_the_number_of_keypoints_is_found_too() -> None:
    spec = "torchvision:keypointrcnn_resnet50_fpn"
    found = {"num_classes": 3, "num_keypoints": 5}
    assert arguments_of(spec, shapes_of(spec, **found)) == found


def test_a_detector_that_was_fine_tuned_has_frozen_layers() -> None:
    """As torchvision makes it from weights, which would be downloaded: with FrozenBatchNorm2d."""
    sizes: dict[str, Any] = {"min_size": 64, "max_size": 64}
    body = detection.backbone_utils.mobilenet_backbone(
        backbone_name="mobilenet_v3_large", weights=None, fpn=True, norm_layer=FrozenBatchNorm2d
    )
    anchors = detection.anchor_utils.AnchorGenerator(
        ((32, 64, 128, 256, 512),) * 3, ((0.5, 1.0, 2.0),) * 3
    )
    theirs = detection.FasterRCNN(body, 4, rpn_anchor_generator=anchors, **sizes).eval()
    state_dict = theirs.state_dict()
    assert not [key for key in state_dict if key.endswith("num_batches_tracked")]
    spec = "torchvision:fasterrcnn_mobilenet_v3_large_fpn"
    model = build(spec, {**sizes, "rpn_score_thresh": 0.0}, state_dict)
    model.load_state_dict(state_dict, strict=True)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (ours,), (expected,) = model(x), theirs(x)
    for key in ("boxes", "labels", "scores"):
        assert torch.equal(ours[key], expected[key])


def test_layers_are_frozen_where_no_batches_were_counted() -> None:
    spec = "torchvision:retinanet_resnet50_fpn"
    state_dict = shapes_of(spec, num_classes=3)
    counted = build(spec, state_dict=state_dict)
    assert not [m for m in counted.modules() if isinstance(m, FrozenBatchNorm2d)]
    state_dict = {k: v for k, v in state_dict.items() if not k.endswith("num_batches_tracked")}
    frozen = build(spec, state_dict=state_dict)
    assert frozen.state_dict().keys() == state_dict.keys()
    # As torchvision has it with the detector's published weights: its overwrite_eps.
    assert {m.eps for m in frozen.modules() if isinstance(m, FrozenBatchNorm2d)} == {0.0}


def test_other_models_are_not_frozen_for_being_old() -> None:
    state_dict = shapes_of("torchvision:resnet18", num_classes=3)
    state_dict = {k: v for k, v in state_dict.items() if not k.endswith("num_batches_tracked")}
    model = build("torchvision:resnet18", state_dict=state_dict)
    assert [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_published_weights_want_their_input_transformed(name: str) -> None:
    """torchvision's builder sets it with its weights only, and no file shows it."""
    key, value = argument("transform_input=true")
    spec, kwargs = f"torchvision:{name}", {"aux_logits": False, "num_classes": 2}
    published: Any = without_memory(spec, {**kwargs, key: value})
    trained: Any = without_memory(spec, kwargs)
    assert (published.transform_input, trained.transform_input) == (True, False)


def test_heads_that_were_dropped_for_inference_are_not_missed() -> None:
    theirs = torchvision.models.googlenet(num_classes=3, aux_logits=False, init_weights=False)
    build("torchvision:googlenet", state_dict=theirs.state_dict()).load_state_dict(
        theirs.state_dict(), strict=True
    )


def test_what_is_given_counts_more_than_the_shapes() -> None:
    state_dict = build("adaptkit:small_cnn", {"num_classes": 3, "width": 4}).state_dict()
    model = build("adaptkit:small_cnn", {"num_classes": 5}, state_dict)
    assert model.classifier.weight.shape == (5, 8)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "spec",
    ["adaptkit:small_cnn", "ibn:resnet18_ibn_a", "torchvision:swin_t", "timm:test_resnet"],
)
def test_the_random_state_is_left_alone(spec: str) -> None:
    before = torch.random.get_rng_state()
    build(spec, state_dict={})
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:resnet81", r"did you mean torchvision:resnet\d+ or torchvision:"),
        ("adaptkit:small_cn", r"did you mean adaptkit:small_cnn\?"),
        ("ibn:resnet50", r"did you mean ibn:resnet50_ibn_\w or ibn:"),
        ("ibn:resnet50_ibn_c", r"did you mean ibn:resnet50_ibn_\w or ibn:"),
        ("ibn:", r"unknown architecture 'ibn:'"),
        ("torchvision:resnet50_ibn_a", r"did you mean torchvision:resnet50"),
        ("resnet101_ibn_a", r"did you mean ibn:resnet101_ibn_a or "),
        ("resnet50", r"did you mean torchvision:resnet50 or "),
        (
            "tim:resnet50",
            r"expected adaptkit:NAME, ibn:NAME, torchvision:NAME, timm:NAME, FILE.py:FACTORY or "
            r"package.module:FACTORY; did you mean torchvision:resnet50",
        ),
        ("torchvision:fcn_resnet5", r"did you mean torchvision:fcn_resnet50 or torchvision:"),
        ("torchvision:fasterrcnn_resnet50", "did you mean torchvision:fasterrcnn_resnet50_fpn"),
        ("torchvision:raft_large", "unknown architecture 'torchvision:raft_large'"),  # two images
        ("timm:resnet81", r"did you mean timm:resnet\d+"),
        ("timm:resnet50.a1_in1", r"did you mean timm:resnet50\.a1_in1k or timm:resnet50"),
        ("timm:", "unknown architecture 'timm:'"),
        ("timm:hf-hub:timm/resnet18.a1_in1k", "unknown architecture 'timm:hf-hub:timm/resnet18"),
        ("timm:hf_hub:timm/resnet18", "unknown architecture 'timm:hf_hub:"),
        ("timm:local-dir:/tmp", "unknown architecture 'timm:local-dir:/tmp'"),
        ("timm:resnet18\n", r"unknown architecture 'timm:resnet18\\n'"),
        ("", "unknown architecture ''"),
        ("a\nb", r"unknown architecture 'a\\nb'"),
        ("x" * 10**6, "unknown architecture 'xxx"),
    ],
)
def test_unknown_names(spec: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        build(spec)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not runs_code(spec) or spec.startswith("tim:")


def test_timm_is_needed_for_its_own_models_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    for use in (build, default_transform):
        with pytest.raises(DependencyError, match=r"pip install timm, or pip install \"adaptkit\["):
            use("timm:resnet18")
    build("ibn:resnet18_ibn_a")


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
        ("torchvision:fcn_resnet50", {"weights_backbone": "DEFAULT"}),
        ("torchvision:fcn_resnet50", {"pretrained_backbone": True}),
        ("torchvision:retinanet_resnet50_fpn", {"weights_backbone": None}),
        ("torchvision:retinanet_resnet50_fpn", {"pretrained": True}),
        ("timm:resnet18", {"pretrained": True}),
        ("timm:resnet18", {"pretrained_cfg": {"file": "x.pth"}}),
        ("timm:resnet18", {"pretrained_cfg_overlay": {"file": "x.pth"}}),
        ("timm:resnet18", {"pretrained_strict": False}),
        ("timm:resnet18", {"checkpoint_path": "x.pth"}),
        ("timm:resnet18", {"cache_dir": "."}),
        ("timm:resnet18", {"depth": 18}),
        ("timm:resnet18", {"model_name": "hf-hub:timm/resnet18"}),
        ("timm:resnet18", {1: 2}),
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
        assert transform.interpolation == published.interpolation.value
    assert default_transform("adaptkit:small_cnn") is None


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmenters_see_the_middle_at_the_published_scale(name: str) -> None:
    transform = default_transform(f"torchvision:{name}")
    assert transform == Transform(image_size=(520, 520), resize="crop", resize_size=520)


@pytest.mark.parametrize(
    ("name", "size", "resize"),
    [
        ("fasterrcnn_resnet50_fpn", 800, "crop"),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", 320, "crop"),
        ("ssd300_vgg16", 300, "stretch"),
    ],
)
def test_detectors_resize_and_normalise_by_themselves(name: str, size: int, resize: str) -> None:
    transform = default_transform(f"torchvision:{name}")
    assert transform is not None
    assert (transform.image_size, transform.resize) == ((size, size), resize)
    assert (transform.mean, transform.std) == ((0, 0, 0), (1, 1, 1))
    own: Any = without_memory(f"torchvision:{name}", {}).transform
    images, _ = own([torch.zeros(3, size, size)])
    assert images.image_sizes == [(size, size)]


def test_there_is_no_transform_for_names_that_are_not() -> None:
    for spec in ("torchvision:resnet81", "ibn:resnet50", "timm:nothing", "nothing"):
        with pytest.raises(CheckpointError, match="unknown architecture"):
            default_transform(spec)


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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("n=3", 3),
        ("n=0.5", 0.5),
        ("n=1e-3", 1e-3),
        ("n=true", True),
        ("n=True", True),
        ("n=null", None),
        ("n=None", None),
        ("n=[1, 2]", [1, 2]),
        ("n=(1, 2)", (1, 2)),
        ('n={"a": 1}', {"a": 1}),
        ('n="3"', "3"),
        ("n='3'", "3"),
        ("n=avg", "avg"),
        ("n=a=b", "a=b"),
        ("n=", ""),
        (" n = 3 ", 3),
        ("n=NaN", "NaN"),
        ("n=C:\\dir", "C:\\dir"),
        ("n='\\d'", "\\d"),
        ("n=[1,", "[1,"),
        ("n=a\0b", "a\0b"),
        ("n=__import__('os')", "__import__('os')"),
        (f"n={'9' * 5000}", "9" * 5000),
        (f"n={'[' * 10**5}", "[" * 10**5),
        (f"n={'-' * 10**5}1", "-" * 10**5 + "1"),
    ],
    ids=lambda v: repr(v)[:20],
)
def test_arguments_as_they_are_typed(text: str, value: object) -> None:
    name, found = argument(text)
    assert name == "n"
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["", "n", "=3", "3=n", "a b=3", "a.b=3", "n\n", "\n" * 10**6])
def test_what_is_no_argument(text: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"got {text[:100]!r}: write it")) as caught:
        argument(text)
    assert "\n" not in str(caught.value)


def test_an_argument_goes_through_to_the_constructor() -> None:
    model: Any = build(
        "timm:test_resnet", dict([argument("num_classes=3"), argument("in_chans=1")])
    )
    assert model.conv1[0].weight.shape[1] == 1
    assert model.num_classes == 3
    with pytest.raises(AdaptkitError, match="does not take"):
        build("timm:test_resnet", dict([argument("global_pool=nonsense")]))
