"""The operations that a program may call: each computes from what it is given, and no more."""

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch

from adaptkit.errors import CheckpointError, shown

# Of torch.ops.aten, with all overloads, and in place where there is such a form. Left out are
# random numbers, files, storages, memory as it is found, sizes that values decide, and kernels that
# trust what they are given: some of those that decompositions call write beyond their memory.
_HARMLESS = """
_adaptive_avg_pool2d _adaptive_avg_pool3d _log_softmax _prelu_kernel _softmax _to_copy
_unsafe_index _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa
_upsample_nearest_exact1d _upsample_nearest_exact2d abs acos adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d add addbmm addcdiv addcmul addmm addmv alias all amax amin aminmax any arange
arctan argmax argmin as_strided asin atan atan2 atleast_1d atleast_2d atleast_3d avg_pool1d
avg_pool2d avg_pool3d baddbmm batch_norm bitwise_and bitwise_not bitwise_or bitwise_xor bmm
broadcast_tensors broadcast_to cat ceil celu channel_shuffle chunk clamp clamp_max clamp_min clip
clone col2im concat constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d
conv_transpose2d conv_transpose3d convolution copy cos cosh cosine_similarity cross cummax cummin
cumprod cumsum detach diag_embed diagonal div divide dot dropout einsum elu embedding eq erf exp
exp2 expand expand_as expm1 eye fill flatten flip floor floor_divide fmod frac full full_like
gather ge gelu glu greater greater_equal grid_sampler grid_sampler_2d grid_sampler_3d group_norm
gt hardshrink hardsigmoid hardswish hardtanh hstack im2col index index_add index_copy index_fill
index_put index_select instance_norm isfinite isinf isnan layer_norm le leaky_relu lerp less
less_equal lift_fresh lift_fresh_copy linalg_norm linalg_vector_norm linear linspace log log10
log1p log2 log_sigmoid log_sigmoid_forward log_softmax logaddexp logical_and logical_not
logical_or logical_xor logsumexp lt masked_fill matmul max max_pool1d max_pool2d
max_pool2d_with_indices max_pool3d max_pool3d_with_indices maximum mean meshgrid min minimum mish
mm moveaxis movedim mul multiply mv nan_to_num narrow native_group_norm native_layer_norm ne neg
new_full new_ones new_zeros norm not_equal numpy_T one_hot ones ones_like outer pad permute
pixel_shuffle pixel_unshuffle pow prelu prod reciprocal reflection_pad1d reflection_pad2d
reflection_pad3d relu relu6 remainder repeat repeat_interleave replication_pad1d replication_pad2d
replication_pad3d reshape reshape_as rms_norm roll rot90 round rsqrt rsub scalar_tensor
scaled_dot_product_attention scatter scatter_add select select_scatter selu sigmoid sign silu sin
sinh slice slice_scatter softmax softplus softshrink softsign sort split split_with_sizes sqrt
square squeeze stack std std_mean sub subtract sum swapaxes swapdims sym_numel sym_size sym_stride
t tan tanh tensor_split threshold tile to topk transpose tril triu true_divide trunc type_as
unbind unflatten unfold unsafe_chunk unsafe_split unsqueeze upsample_bicubic2d upsample_bilinear2d
upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
var var_mean view view_as vstack where zero zeros zeros_like
"""
_ALLOWED = frozenset(_HARMLESS.split())
_NAMED = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
_LARGEST = 2**63  # of a number; repeated squaring would have no end


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > 64:
        raise OverflowError("a number is too large")
    return base**exponent


# What computes sizes from sizes.
_OF_NUMBERS: dict[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in (
            *("add", "sub", "mul", "floordiv", "mod", "truediv", "neg", "pos"),
            *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_"),
        )
    },
    "_operator.pow": _power,
    "math.ceil": math.ceil,
    "math.floor": math.floor,
    "math.trunc": math.trunc,
    "torch.sym_float": float,
    "torch.sym_int": int,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_not": operator.not_,
}
# What checks sizes and dtypes that were found on export.
CHECKS = frozenset(
    f"torch.ops.aten.{name}"
    for name in (
        *("_assert_async.default", "_assert_async.msg", "_assert_scalar.default"),
        *("_assert_tensor_metadata.default", "sym_constrain_range.default"),
        "sym_constrain_range_for_size.default",
    )
)


def of_numbers(target: str) -> Callable[..., Any] | None:
    """Return what computes a number from numbers, or None if that is not what is named.

    >>> of_numbers("_operator.mul")(3, 4)
    12
    """
    function = _OF_NUMBERS.get(target)
    if function is None:
        return None

    def bounded(*numbers: Any) -> Any:
        if not all(isinstance(number, (int, float)) for number in numbers):
            raise TypeError(f"{target} expects numbers")
        result = function(*numbers)
        if not -_LARGEST <= result < _LARGEST:
            raise OverflowError(f"{target} gives a number that is too large")
        return result

    return bounded


def packet_of(target: str) -> str:
    """Return the name of an operation of torch.ops.aten, whichever its overload; "" of others."""
    named = _NAMED.fullmatch(target)
    return named[1] if named else ""


def operation(target: str) -> Any:
    """Return the overload of torch.ops.aten that is named, one known to be harmless.

    Raises:
        CheckpointError: it is not known as that.

    >>> operation("torch.ops.aten.relu.default")
    <OpOverload(op='aten.relu', overload='default')>
    """
    named = _NAMED.fullmatch(target)
    if named and (named[1].removesuffix("_") in _ALLOWED or named[1] in _ALLOWED):
        packet = getattr(torch.ops.aten, named[1], None)
        trusting = "upsample" in named[1] and named[2] != "vec"  # scales of any other size
        if packet is not None and named[2] in packet.overloads() and not trusting:
            return getattr(packet, named[2])
    raise CheckpointError(
        f"calls '{shown(target)}', which is none of the operations that adaptkit knows to be "
        f"harmless: adapt the model from its source (--arch)"
    )
