"""Transform against torchvision's own published presets, and its record."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.models import get_model_weights
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from adaptkit import AdaptkitError, DataError, Transform
from adaptkit.architectures import default_transform

PICTURE = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
).resize((640, 480), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet50",
        "densenet121",
        "inception_v3",
        "efficientnet_b0",
        "efficientnet_v2_s",
        "regnet_y_400mf",
        "swin_t",
        "vit_b_16",
    ],
)
def test_crop_is_the_published_evaluation_transform(name: str) -> None:
    transform = default_transform(f"torchvision:{name}")
    assert transform is not None
    theirs = get_model_weights(name)["DEFAULT"].transforms()(PICTURE)
    torch.testing.assert_close(transform(PICTURE), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",  # bilinear
        "resnet50.a1_in1k",  # bicubic, tested at another size than it was trained
        "mobilenetv3_large_100",
        "tf_efficientnet_b0.ns_jft_in1k",
        "inception_v3.tf_adv_in1k",  # another mean
        "convnext_tiny.fb_in22k_ft_in1k_384",  # squashed
        "vit_base_patch16_sapiens2.fb",  # squashed, not square
        "regnety_016.tv2_in1k",
    ],
)
def test_timms_evaluation_transform(name: str) -> None:
    import timm

    data: Any = timm.data
    transform = default_transform(f"timm:{name}")
    assert transform is not None
    published: Any = timm.get_pretrained_cfg(name)
    stated = data.resolve_data_config(pretrained_cfg=published.to_dict(), use_test_size=True)
    theirs = data.create_transform(**stated, is_training=False)
    torch.testing.assert_close(transform(PICTURE), theirs(PICTURE), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["dm_nfnet_f0.dm_in1k", "deepseek_vit_412m"])
def test_there_is_none_where_ours_cannot_do_the_same(name: str) -> None:
    assert default_transform(f"timm:{name}") is None


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_interpolations_are_pillows(interpolation: str, resize: str) -> None:
    """Of a square image to a square one, both modes are the same."""
    image = PICTURE.crop((0, 0, 400, 400))
    transform = Transform(
        (96, 96), 3, (0.0,) * 3, (1.0,) * 3, resize, 96, interpolation=interpolation
    )
    kind = Image.Resampling[interpolation.upper()]
    expected = np.asarray(image.resize((96, 96), kind)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(transform(image), expected, atol=1e-6)


@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.integers(1, 70),
    st.sampled_from(["bilinear", "nearest"]),
)
def test_crop_is_torchvisions_at_any_size(
    size: tuple[int, int], wanted: tuple[int, int], shorter: int, interpolation: str
) -> None:
    image = PICTURE.crop((100, 100, 100 + size[0], 100 + size[1]))
    kind = InterpolationMode(interpolation)
    theirs = tv.pil_to_tensor(tv.center_crop(tv.resize(image, [shorter], kind), list(wanted)))
    crop = Transform(wanted, resize="crop", resize_size=shorter, interpolation=interpolation)
    assert torch.equal(crop.pixels(image), theirs)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"style_mean": (0.1, 0.2, 0.3), "style_std": (0.2, 0.3, 0.4)},
        {"gain": (2.0, -1.0, 0.3), "offset": (0.1, 0.2, 0.3)},
    ],
)
def test_a_batch_is_normalised_as_each_of_its_images(more: dict[str, Any]) -> None:
    transform = Transform((33, 65), **more)
    pictures = [PICTURE, PICTURE.crop((9, 9, 70, 300)), PICTURE.rotate(90)]
    pixels = torch.stack([transform.pixels(picture) for picture in pictures])
    assert pixels.dtype == torch.uint8
    whole = transform.normalised(pixels)
    assert torch.equal(whole, torch.stack([transform(picture) for picture in pictures]))
    plain = Transform((33, 65))
    theirs = tv.normalize(tv.to_dtype(pixels, torch.float32, True), plain.mean, plain.std)
    assert torch.equal(plain.normalised(pixels), theirs)


def test_the_usual_interpolation_is_not_recorded_so_that_older_versions_read_it() -> None:
    assert "interpolation" not in Transform((8, 8)).to_dict()
    assert Transform((8, 8), interpolation="bicubic").to_dict()["interpolation"] == "bicubic"


gains = st.floats(-5, 5).filter(bool)


@given(st.lists(gains, min_size=3, max_size=3), st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_a_gain_and_an_offset_read_back(gain: list[float], offset: list[float]) -> None:
    transform = Transform((8, 8), gain=tuple(gain), offset=tuple(offset))
    assert Transform.from_dict(transform.to_dict()) == transform


def test_no_gain_is_not_recorded_and_a_record_without_one_changes_nothing() -> None:
    plain = Transform((8, 8))
    assert not {"gain", "offset"} & set(plain.to_dict())
    assert plain.then(torch.ones(3), torch.zeros(3)) == plain
    same = Transform((8, 8), gain=(1.0, 1.0, 1.0), offset=(0.0, 0.0, 0.0))
    assert torch.equal(plain(PICTURE), same(PICTURE))


def test_gains_follow_one_another_after_normalising() -> None:
    plain = Transform((8, 8))
    g, b = torch.tensor([-1.0, 2, 0.5]), torch.tensor([1.0, 0, -3])
    once = plain.then(g, b)
    twice = once.then(3 * torch.ones(3), torch.tensor([0.0, 1, 2]))
    expected = g[:, None, None] * plain(PICTURE) + b[:, None, None]
    torch.testing.assert_close(once(PICTURE), expected)
    last = 3 * expected + torch.tensor([0.0, 1, 2])[:, None, None]
    torch.testing.assert_close(twice(PICTURE), last)
    assert twice(PICTURE).dtype == torch.float32


def test_stretch_resizes_whatever_the_aspect() -> None:
    transform = Transform(image_size=(30, 20), channels=1, mean=(0.0,), std=(1.0,))
    expected = np.asarray(PICTURE.convert("L").resize((20, 30), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(transform(PICTURE)[0], expected, atol=1e-6)


@pytest.mark.parametrize(("mode", "channels"), [("L", 3), ("RGB", 1)])
def test_channels_are_converted(mode: str, channels: int) -> None:
    transform = Transform((8, 8), channels, (0.0,) * channels, (1.0,) * channels)
    x = transform(Image.new(mode, (8, 8), "white"))
    assert x.shape == (channels, 8, 8)
    assert x.eq(1).all()


@pytest.mark.parametrize("size", [(4, 2000), (3000, 2000)])
def test_long_and_large_images_are_cropped(size: tuple[int, int]) -> None:
    transform = Transform((32, 32), 1, (0.0,), (1.0,), resize="crop")
    assert transform(Image.new("L", size, "white")).eq(1).all()


def test_crop_does_not_enlarge_a_hair_without_end() -> None:
    transform = Transform((224, 224), resize="crop", resize_size=256)
    with pytest.raises(DataError, match="too narrow to resize: 60000 x 1 pixels"):
        transform(Image.new("L", (60000, 1)))


sizes = st.integers(1, 500)
numbers = st.floats(0.01, 1)


@given(
    sizes,
    sizes,
    st.lists(numbers, min_size=3, max_size=3),
    st.sampled_from(["stretch", "crop"]),
    st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_the_record_reads_back(
    h: int, w: int, values: list[float], resize: str, interpolation: str
) -> None:
    transform = Transform(
        (h, w), 3, tuple(values), tuple(values), resize, h, interpolation=interpolation
    )
    assert Transform.from_dict(transform.to_dict()) == transform


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": [0, 3]}, "whole numbers of pixels"),
        ({"image_size": [3]}, r"image_size must be \(height, width\)"),
        ({"image_size": 3}, "transform: "),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"mean": [0.5]}, "one number for each of 3 channels"),
        ({"std": [1.0, 0.0, 1.0]}, "std must be positive"),
        ({"mean": ["a", "b", "c"]}, "mean and std must be numbers"),
        ({"resize": "melt"}, "resize must be one of stretch, crop"),
        ({"interpolation": "cubic"}, "nearest, bilinear, bicubic, lanczos, got 'cubic'"),
        ({"interpolation": []}, r"interpolation must be one of .*, got \(\)"),
        ({"interpolation": None}, r"interpolation must be one of .*, got None"),
        ({"resize_size": "big"}, "whole numbers of pixels"),
        ({"gain": [1.0, 1.0, 1.0]}, "offset and gain need one number for each of 3 channels"),
        ({"gain": [1.0, 0.0, 1.0], "offset": [0.0] * 3}, "the latter not 0"),
        ({"gain": [1.0, float("nan"), 1.0], "offset": [0.0] * 3}, "the latter not 0"),
        ({"gain": [1.0], "offset": [0.0]}, "one number for each of 3 channels"),
        ({"gain": 2, "offset": 1}, "transform: "),
        ({"colour": 1}, r"unknown fields \['colour'\]"),
    ],
)
def test_a_bad_record_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AdaptkitError, match=message):
        Transform.from_dict({**Transform((8, 8)).to_dict(), **changes})
