"""A streaming run that may be stopped at any moment: what it keeps, and how it goes on."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptkit.checkpoint import Checkpoint
from adaptkit.data import ImageLoader
from adaptkit.dense import DenseEvaluation
from adaptkit.device import resolve_device
from adaptkit.distributed import world
from adaptkit.errors import EstimationError, Interrupted, OutputError
from adaptkit.estimation import Resume
from adaptkit.evaluation import Evaluation
from adaptkit.files import remove_file
from adaptkit.norms import norm_layers, read
from adaptkit.partial import read_partial, write_partial
from adaptkit.pipeline.common import Outputs, command_line, versions
from adaptkit.pipeline.scoring import Scores, Vectors

_MOST_BYTES = 2**30  # of scores that are kept: beyond it making them anew is no slower
_KINDS = {kind.__name__: kind for kind in (Evaluation, DenseEvaluation)}


@dataclass(frozen=True)
class LongRun:
    """The files of a streaming run beside its outputs, which are there only until it has ended.

    Args:
        resume: the file of the estimation (see `Resume`); None of a run that does not stream.
        scores: the file of the source model's scores, which the first process writes.
    """

    resume: Resume | None
    scores: Path

    @classmethod
    def of(cls, out: Path, *, mode: str, domains: str) -> "LongRun":
        """Return those of a run that writes `out`.

        >>> LongRun.of(Path("net-adapted.pt"), mode="stream", domains="one").resume.path.name
        'net-adapted.pt.resume'
        """
        path = out.with_name(f"{out.name}.resume")
        streams = mode == "stream" and domains == "one"
        return cls(Resume(path) if streams else None, path.with_name(f"{path.name}.scores"))

    def check(self, *, resume: bool, force: bool) -> None:
        """See to it that files of a run that was stopped are used, or removed, only when asked.

        Raises:
            EstimationError: there is nothing to go on with in such a run.
            OutputError: they are there, and neither to be used nor, by `force`, to be removed.
        """
        if resume and self.resume is None:
            raise EstimationError(
                "only a run with --mode stream, on one domain, can go on where it was stopped: "
                "leave out --resume"
            )
        there = self.there()
        if there and not resume and not force:
            raise OutputError(
                f"{there[0]} is of a run that was stopped: give --resume to go on, or --force to "
                f"begin anew"
            )

    def there(self) -> list[Path]:
        """Return the files that are there."""
        if self.resume is None:
            return []
        return [*self.resume.files(), *([self.scores] if self.scores.exists() else [])]

    def end(self) -> None:
        """Remove the files."""
        if self.resume is not None:
            self.resume.remove()
            if world().rank == 0:
                remove_file(self.scores)

    def scored(
        self,
        checkpoint: Checkpoint,
        model: nn.Module,
        images: ImageLoader,
        arguments: Mapping[str, Any],
        score: Callable[[], tuple[Scores, Vectors | None]],
    ) -> tuple[Scores, Vectors | None]:
        """Return a model's scores: what `score` gives, or what it gave before the run was stopped.

        Raises:
            OutputError: the file cannot be used, or is of scores of something else.
        """
        if self.resume is None:
            return score()
        together = world()
        found = None
        made_from = _made_from(checkpoint, images, arguments)
        with together.united():
            if together.rank == 0:
                found = read_partial(self.scores, made_from)
        found = together.first(found)
        if found is not None:
            state, tensors = found
            images.skipped.update(state["skipped"])
            return _unpacked(state, tensors, model)
        scores, vectors = score()
        with together.united():
            if together.rank == 0 and scores is not None:
                state, tensors = _packed(scores, vectors)
                if sum(value.nbytes for value in tensors.values()) <= _MOST_BYTES:
                    state["skipped"] = dict(images.skipped)
                    write_partial(self.scores, made_from, state, tensors)
        return scores, vectors


@contextmanager
def interruptible(work: Callable[..., Any], arguments: Mapping[str, Any]) -> Iterator[None]:
    """Let Ctrl-C say how to go on, where that is possible.

    Args:
        work: `adapt_folder`, or `adapt_domain_folders`, which goes on whenever it is called again.
        arguments: that it is called with in the block.

    Raises:
        Interrupted: Ctrl-C was pressed; its message says how to go on.
    """
    try:
        yield
    except KeyboardInterrupt:
        defaults = {name: p.default for name, p in signature(work).parameters.items()}
        if "resume" in defaults:
            out = Outputs.of(
                Path(arguments["source"]),
                arguments["out"],
                arguments["report"],
                pack=arguments["stats_only"],
            )
            if not LongRun.of(
                out.checkpoint, mode=arguments["mode"], domains=arguments["domains"]
            ).there():
                raise
            arguments = {**arguments, "resume": True}
        else:  # which would make anew what is there
            arguments = {**arguments, "force": False}
        line = command_line("adapt", arguments, defaults)
        where = "" if world().size == 1 else f" in {world().size:,} processes"
        raise Interrupted(f"Go on{where} with: {line}") from None


def _made_from(
    checkpoint: Checkpoint, images: ImageLoader, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return all that decides about a model's scores."""
    return {
        **versions(),
        **{name: arguments[name] for name in ("holdout", "seed")},
        "device": resolve_device(arguments["device"]).type,
        "sha256 of the checkpoint": checkpoint.sha256,
        "checksum of the images": images.fingerprint()[:12],
    }


def _packed(
    scores: Evaluation | DenseEvaluation, vectors: Vectors | None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return scores as numbers and tensors, without the layers, which the model has."""
    values = {f.name: getattr(scores, f.name) for f in fields(scores) if f.name != "layers"}
    values["vectors"] = vectors
    numbers = {k: v for k, v in values.items() if v is None or isinstance(v, int)}
    tensors = {k: torch.tensor(v) for k, v in values.items() if k not in numbers}
    return {"kind": type(scores).__name__, "numbers": numbers}, tensors


def _unpacked(
    state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], model: nn.Module
) -> tuple[Evaluation | DenseEvaluation, Vectors | None]:
    values = {**state["numbers"], **{name: value.numpy() for name, value in tensors.items()}}
    vectors = values.pop("vectors")
    layers = {name: read(layer) for name, layer in norm_layers(model).items()}
    return _KINDS[state["kind"]](**values, layers=layers), vectors
