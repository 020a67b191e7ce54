"""A checkpoint as it was read."""

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.checkpoint.content import Content
from adaptkit.checkpoint.files import read_from
from adaptkit.checkpoint.nesting import Naming
from adaptkit.errors import AdaptkitError, CheckpointError
from adaptkit.guard import Calibration
from adaptkit.layers.adain import Style
from adaptkit.transform import Transform


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read.

    Args:
        path: of the file.
        sha256: of its bytes; of a sharded one, of the index and then the shards in order of name.
        model: in eval mode on the CPU, the file's weights in it, in float32 unless the model says
            otherwise.
        arch: such as "torchvision:resnet18"; "torch.export" for a program, which brings its own.
        arch_kwargs: for the architecture's constructor.
        recognised: whether the architecture was found in the keys and shapes, being named nowhere.
        classes: the outputs' names, or None where the file does not say.
        transform: from an image to the model's input, or None where that is not known.
        transform_from: "checkpoint", or "architecture" where it is the one published with its
            weights; None without one.
        input_shape: (channels, height, width) of a program's images where it fixes them.
        naming: which of the file's keys are the model's, and under which names.
        content: everything in the file.
    """

    path: Path
    sha256: str
    model: nn.Module
    arch: str
    arch_kwargs: dict[str, Any]
    recognised: bool
    classes: tuple[str, ...] | None
    transform: Transform | None
    transform_from: str | None
    input_shape: tuple[int, int, int] | None
    naming: Naming
    content: Content

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The tensors as found, with their own keys and dtypes."""
        return self.content.state_dict

    @property
    def files(self) -> list[Path]:
        """The files that it was read from: one, or an index and its shards."""
        return read_from(self.path, self.content)

    @property
    def size(self) -> int:
        """Of the files, in bytes."""
        return sum(file.stat().st_size for file in self.files)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the tensors, names and all: the same in any container."""
        digest = hashlib.sha256()
        for key in sorted(self.state_dict):
            value = self.state_dict[key].detach().cpu().contiguous()
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def adapted(self) -> dict[str, Any] | None:
        """Where the statistics come from, if the file was adapted; else None."""
        return self.content.fields.get("adapted")

    @property
    def calibration(self) -> Calibration | None:
        """What the model knows of its own domain, if it was calibrated.

        Raises:
            CheckpointError: it is broken, or of another model.
        """
        stored = self.content.fields.get("calibration")
        if stored is None:
            return None
        try:
            found = Calibration.from_bytes(base64.b64decode(stored, validate=True))
            found.moments.check_fit(self.model)
        except (ValueError, AdaptkitError) as error:
            raise CheckpointError(f"{self.path}: its calibration will not do: {error}") from None
        return found

    @property
    def style(self) -> Style | None:
        """The channel statistics of the images that the model was trained on, if stored."""
        stored = self.content.fields.get("style")
        if stored is None:
            return None
        return Style(torch.tensor(stored["mean"]), torch.tensor(stored["std"]))
