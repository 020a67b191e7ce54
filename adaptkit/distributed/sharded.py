"""Models whose parameters lie in parts in several processes (FSDP), held whole for a while."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from weakref import WeakSet

from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from adaptkit.distributed.world import world
from adaptkit.errors import ModelError

_whole: WeakSet[nn.Module] = WeakSet()  # modules whose parameters are held now


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Hold all parameters of a model in every process, so that a forward needs no other one.

    Of FSDP, of both its forms; any other model is left alone. Beginning is collective: all
    processes that share the parameters have to come here. Within the block they may run unequal
    numbers of forwards, leave some unfinished, and read parameters as those of a plain model. At
    its end each has its part again.

    Raises:
        ModelError: parameters are dealt out otherwise, and there are several processes to work on
            parts of the data; or torch is too old.
    """
    dealt = [m for m in model.modules() if isinstance(m, FSDPModule) and m not in _whole]
    wrapped = [
        m for m in model.modules() if isinstance(m, FullyShardedDataParallel) and m not in _whole
    ]
    with ExitStack() as undo:
        if wrapped:
            undo.enter_context(FullyShardedDataParallel.summon_full_params(model, writeback=False))
            undo.enter_context(_passed_through(wrapped))
        if dealt:
            undo.enter_context(_unsharded(dealt))
        for module in (*dealt, *wrapped):
            _whole.add(module)
            undo.callback(_whole.discard, module)
        if world().size > 1:
            _refuse_parts(model)
        yield


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model.

    Raises:
        ModelError: it is one of FSDP, which cannot be copied.
    """
    if is_dealt_out(model):
        raise ModelError(
            "a model that FSDP deals out over processes cannot be copied: adapt it with "
            "inplace=True, and leave device= out"
        )
    return copy.deepcopy(model)


def is_dealt_out(model: nn.Module) -> bool:
    """Whether FSDP deals a model's parameters out over processes."""
    return any(isinstance(m, (FSDPModule, FullyShardedDataParallel)) for m in model.modules())


@contextmanager
def _passed_through(wrappers: Sequence[FullyShardedDataParallel]) -> Iterator[None]:
    """Let wrappers call what is in them and do nothing else; they refuse to while all is whole."""
    for wrapper in wrappers:
        wrapper.forward = wrapper.module.__call__  # type: ignore[method-assign]
    try:
        yield
    finally:
        for wrapper in wrappers:
            del wrapper.forward


@contextmanager
def _unsharded(modules: Sequence[FSDPModule]) -> Iterator[None]:
    if not hasattr(FSDPModule, "reset_iter_state"):
        raise ModelError("a model of fully_shard needs a torch with FSDPModule.reset_iter_state")
    states = list(dict.fromkeys(module._get_fsdp_state() for module in modules))
    for state in states:
        state._lazy_init()  # which decides what is done after a forward
    groups = [group for state in states for group in state._fsdp_param_groups]
    after_forward = [group.post_forward_mesh_info for group in groups]
    try:
        for group in groups:
            group.post_forward_mesh_info = None  # stay whole; torch has no way to ask what it was
        for module in modules:
            module.unshard()
        yield
    finally:
        for root in dict.fromkeys(state._state_ctx.all_states[0] for state in states):
            root._modules[0].reset_iter_state()  # also where a forward was not finished
        for group, mesh in zip(groups, after_forward, strict=True):
            group.post_forward_mesh_info = mesh


def _refuse_parts(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor) or getattr(parameter, "ds_tensor", None) is not None:
            raise ModelError(
                f"{name} is dealt out over processes (tensor parallel, ZeRO-3), and each needs the "
                f"whole model: plain.load_state_dict(get_model_state_dict(model, options="
                f"StateDictOptions(full_state_dict=True))), and adapt the plain one"
            )
