"""Finding a state dict in nested dicts, and the model's names in its keys."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adaptkit.checkpoint.nesting import (
    WRAPPERS,
    find,
    is_state_dict,
    leaf,
    namings,
    with_leaf,
)

STATE = {"w": torch.zeros(2), "b": torch.ones(1)}
PREFIXES = ["module.", "model.", "_orig_mod.", "backbone."]


# Where it stands.


@given(path=st.lists(st.sampled_from(WRAPPERS), max_size=7), beside=st.integers() | st.none())
def test_any_nesting_of_the_known_wrappers_is_found(path: list[str], beside: Any) -> None:
    tree: Any = STATE
    for key in reversed(path):
        tree = {"epoch": beside, key: tree}
    assert find(tree) == [tuple(path)]
    assert leaf(tree, tuple(path)) is STATE


trees = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.just(torch.zeros(1)),
    lambda inner: (
        st.dictionaries(st.sampled_from(["w", 3, *WRAPPERS]), inner, max_size=4)
        | st.lists(inner, max_size=2)
    ),
    max_leaves=12,
)


@given(tree=trees)
def test_what_is_found_is_a_state_dict_and_nothing_is_found_twice(tree: Any) -> None:
    places = find(tree)
    assert len(set(places)) == len(places) <= 8
    assert all(is_state_dict(leaf(tree, place)) for place in places)
    assert places or not is_state_dict(tree)


def test_averaged_weights_come_first() -> None:
    tree = {"state_dict": STATE, "model_ema": {"state_dict": STATE}, "optimizer": {"x": 1}}
    assert find(tree) == [("model_ema", "state_dict"), ("state_dict",)]


@pytest.mark.parametrize(
    "tree",
    [
        None,
        [STATE],
        {},
        {"state_dict": {}},
        {"state_dict": {"w": 1}},
        {"weights of a net": STATE},
        {1: torch.zeros(1)},
    ],
)
def test_elsewhere_none_is_found(tree: Any) -> None:
    assert find(tree) == []


def test_dicts_that_hold_themselves_end() -> None:
    tree: dict[str, Any] = {}
    tree["model"] = tree
    assert find(tree) == []


def test_putting_another_in_its_place_changes_nothing_else() -> None:
    tree = {"a": 1, "model": {"state_dict": STATE, "b": [2]}, "c": 3}
    other = {"w": torch.ones(2)}
    changed = with_leaf(tree, ("model", "state_dict"), other)
    assert leaf(changed, ("model", "state_dict")) is other
    assert leaf(tree, ("model", "state_dict")) is STATE
    assert list(changed) == ["a", "model", "c"]
    assert changed["model"]["b"] is tree["model"]["b"]  # type: ignore[index]


# Which names.

names = st.lists(
    st.from_regex(r"(conv|bn|fc)[0-9](\.(weight|bias))?", fullmatch=True), unique=True, min_size=1
)


@given(names=names, prefixes=st.lists(st.sampled_from(PREFIXES), max_size=5))
def test_prefixes_come_off_in_any_nesting(names: list[str], prefixes: list[str]) -> None:
    keys = ["".join(prefixes) + name for name in names]
    ways = namings(keys)
    assert list(ways[0].names.values()) == keys
    assert names in [list(way.names.values()) for way in ways]
    for way in ways:
        assert list(way.names) == [key for key in keys if key not in way.outside]
        assert way.clash is None


@given(names=names, inner=st.sampled_from(["module", "_orig_mod"]))
def test_so_do_wrappers_of_parts_of_a_model(names: list[str], inner: str) -> None:
    keys = [f"features.{inner}.{name}" if i % 2 else name for i, name in enumerate(names)]
    wanted = [f"features.{name}" if i % 2 else name for i, name in enumerate(names)]
    assert wanted in [list(way.names.values()) for way in namings(keys)]


def test_keys_without_the_prefix_are_outside() -> None:
    keys = ["n_averaged", "module.w", "module.b"]
    way = next(way for way in namings(keys) if list(way.names.values()) == ["w", "b"])
    assert way.outside == ("n_averaged",)
    tensors: dict[str, Tensor] = dict.fromkeys(keys, torch.zeros(1))
    assert way.of(tensors).keys() == {"w", "b"}


@pytest.mark.parametrize(
    "keys", [["w", "module.w"], ["a.module.w", "a._orig_mod.w"], ["model.w", "w", "b"]]
)
def test_two_keys_of_one_name_clash(keys: list[str]) -> None:
    ways = namings(keys)
    assert ways[0].clash is None
    assert [way for way in ways if way.clash and set(way.clash) <= set(keys)]


def test_hostile_keys_give_few_ways() -> None:
    keys = ["module." * 500 + "w", "model.module." * 300 + "w", "." * 1000, "", "module", "module."]
    assert len(namings(keys)) <= 24
