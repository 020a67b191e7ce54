"""Adapt a checkpoint to a folder of images with Ray Data.

    pip install "adaptkit[ray]"
    python ray_adapt.py --source adaptkit-demo/source.pt --target adaptkit-demo/target --out out.pt

Partitions of the images go to workers, each partition becomes the moments of every norm layer, and
moments merge by twos in a tree, without loss (Chan's formula). What differs is what a deep layer
sees, as the layers before it have to be normalised by something:

- By default by the partition's own statistics. One pass, and an approximation (that of
  `adaptkit.estimate` with mode="stream"), the better the larger the partitions are.
- With --exact by the statistics of all images: the same as `adaptkit.estimate` in one process, of
  a model whose norm layers are BatchNorm and passed once each. One pass for each of them, as its
  input is not known before all earlier layers are settled.

Without a cluster (RAY_ADDRESS) it starts a Ray of its own. On a cluster every node needs adaptkit
and the folder; for a bucket `ray.data.read_binary_files` takes the place of `from_items`.
"""

import argparse
import logging
import math
import os
from functools import partial, reduce
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports its use to its makers

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import nn

import adaptkit
from adaptkit import Moments, Statistics
from adaptkit.data import decode, list_images
from adaptkit.norms import norm_layers

LayerMoments = dict[str, Moments]
Batch = dict[str, NDArray[Any]]
AT_ONCE = 64  # images in one forward of an exact pass


def decoded(row: dict[str, str], transform: adaptkit.Transform) -> Batch:
    """Read one image."""
    return {"image": transform(decode(row["path"])).numpy()}


def partition_moments(partition: Batch, model: nn.Module) -> Batch:
    """Turn a partition into one row, the moments of every norm layer, by its own statistics."""
    x = torch.tensor(partition["image"])
    # A last image alone has no variance; `adaptkit.estimate` leaves it out as well.
    found = [dict(adaptkit.estimate(model, [x], samples="all"))] if len(x) > 1 else []
    return {"moments": np.array(found, dtype=object)}


def layer_moments(partition: Batch, model: nn.Module, layer: str) -> Batch:
    """Turn a partition into one row, the moments of one layer, by what those before it store."""
    found: list[Moments] = []
    module = norm_layers(model)[layer]
    module.register_forward_pre_hook(lambda _, args: found.append(Moments.of(args[0])))
    with torch.no_grad():
        for x in torch.tensor(partition["image"]).split(AT_ONCE):
            model.eval()(x)
    return {"moments": np.array([{layer: reduce(Moments.__add__, found)}], dtype=object)}


def merged(*blocks: NDArray[Any]) -> NDArray[Any]:
    """Merge rows into one."""
    rows: list[LayerMoments] = [row for block in blocks for row in block]
    merge = partial(reduce, lambda a, b: {name: a[name] + b[name] for name in a})
    return np.array([merge(rows)] if rows else [], dtype=object)


def tree_reduced(moments: ray.data.Dataset) -> LayerMoments:
    """Merge the rows of all partitions where they are, by twos, and fetch the last."""
    merge = ray.remote(merged)
    nodes = moments.to_numpy_refs(column="moments")
    while len(nodes) > 1:
        nodes = [merge.remote(*nodes[i : i + 2]) for i in range(0, len(nodes), 2)]
    found: LayerMoments = merged(ray.get(nodes[0]))[0]
    return found


def estimated(images: ray.data.Dataset, model: nn.Module, partition: int) -> Statistics:
    """Return the statistics of all images from one pass."""
    of_partition = partial(partition_moments, model=model)
    found = tree_reduced(images.map_batches(of_partition, batch_size=partition))
    return Statistics(found, next(iter(found.values())).samples, mode="stream")


def estimated_exactly(images: ray.data.Dataset, model: nn.Module, partition: int) -> Statistics:
    """Return the statistics of all images from a pass for each layer; the model gets them too."""
    images = images.materialize()  # decoded once for all passes
    few = torch.tensor(images.take_batch(2)["image"])
    found: LayerMoments = {}
    for layer in adaptkit.estimate(model, [few]):  # in the order in which they are passed
        of_layer = partial(layer_moments, model=model, layer=layer)
        found |= tree_reduced(images.map_batches(of_layer, batch_size=partition))
        Statistics({layer: found[layer]}, found[layer].samples).apply(model)
    return Statistics(found, found[layer].samples)


def main() -> None:
    """Parse the command line, adapt, save."""
    parser = argparse.ArgumentParser(description="Adapt a checkpoint to images with Ray Data.")
    parser.add_argument("--source", required=True, help="checkpoint that says its architecture")
    parser.add_argument("--target", required=True, help="folder of images")
    parser.add_argument("--out", required=True, help="checkpoint to write")
    parser.add_argument("--exact", action="store_true", help="a pass for each norm layer")
    parser.add_argument("--partition", type=int, default=512, help="images (default %(default)s)")
    args = parser.parse_args()

    source = adaptkit.load_checkpoint(args.source)
    if source.transform is None:
        parser.error(f"{args.source} does not say how images are prepared for it")
    listing = list_images(args.target)
    paths = [{"path": str(Path(args.target, path).resolve())} for path in listing.paths]

    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    partitions = math.ceil(len(paths) / args.partition)
    images = ray.data.from_items(paths, override_num_blocks=partitions)
    images = images.map(partial(decoded, transform=source.transform))
    how = estimated_exactly if args.exact else estimated
    statistics = how(images, source.model, args.partition)
    ray.shutdown()

    adaptkit.save_checkpoint(args.out, statistics.apply(source.model), like=source)
    print(f"{args.out}: {len(statistics)} norm layers, adapted to {statistics.samples} images")


if __name__ == "__main__":
    main()
