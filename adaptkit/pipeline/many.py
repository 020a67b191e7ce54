"""A target of many domains to a pack for each and one summary, a domain after the other."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from adaptkit.checkpoint import Checkpoint
from adaptkit.data import ImageLoader, Place, place
from adaptkit.data.cache import PixelCache
from adaptkit.device import resolve_device
from adaptkit.distributed import alone, world
from adaptkit.errors import EstimationError, OutputError, few
from adaptkit.estimation.agreement import neighbours
from adaptkit.estimation.memory import allowed
from adaptkit.estimation.precision import Precision, autocast
from adaptkit.estimation.run import checked
from adaptkit.files import check_outputs
from adaptkit.guard import Calibration
from adaptkit.norms import norm_layers
from adaptkit.pipeline import guarding
from adaptkit.pipeline.class_shares import AUTO, UNIFORM, known_shares
from adaptkit.pipeline.common import (
    Progress,
    agree,
    check_alike,
    command_line,
    refuse_too_many_bad,
    stem,
    versions,
)
from adaptkit.pipeline.domain_results import Results
from adaptkit.pipeline.domain_targets import DomainTargets, Listed, are_in_one, folders_in
from adaptkit.pipeline.holdout import check_holdout
from adaptkit.pipeline.methods import check_layers
from adaptkit.pipeline.one_domain import DomainAdapter, reason_of
from adaptkit.pipeline.opening import (
    Head,
    Said,
    head_of,
    notes_on,
    open_checkpoint,
    open_samples,
    preparation,
    source_files,
    spelled_out,
)
from adaptkit.pipeline.pooled import adapt_once, results_of
from adaptkit.pipeline.runs import answer
from adaptkit.report.cells import csv
from adaptkit.report.many import (
    FAILED,
    POOLED,
    DomainRow,
    against_pooled,
    domain_frame,
    page,
    runs_of,
    totals,
    with_figures,
)

_MATTERS = (  # arguments that decide about a result; what the checkpoint can say stands apart
    "mode",
    "samples",
    "tolerance",
    "precision",
    "prior",
    "holdout",
    "guard",
    "seed",
    "fast_jpeg",
)


@dataclass(frozen=True)
class DomainsRun:
    """What came of a target of many domains.

    Args:
        rows: one a domain, in the order of their names.
        pooled: of all domains as one; None of a single domain.
        details: what the summary's JSON says beside them.
        folder: of the results.
        found: how many domains' results were there already.
        written: the files of the summary.
        answer: what the domains come to, in a sentence or two.
    """

    rows: tuple[DomainRow, ...]
    pooled: DomainRow | None
    details: Mapping[str, Any]
    folder: Path
    found: int
    written: tuple[Path, ...]
    answer: str

    @property
    def failed(self) -> list[str]:
        """The names of the domains that failed."""
        return [row.domain for row in self.rows if row.status == FAILED]

    def to_json(self) -> str:
        """Return the summary as JSON, as the file has it."""
        return self.written[0].read_text(encoding="utf-8")


def adapt_domain_folders(
    source: str | Path,
    target: str | Place,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    batch_size: int = 64,
    workers: int = 0,
    fast_jpeg: bool = False,
    mode: Literal["exact", "stream"] = "exact",
    samples: int | Literal["all"] | None = None,
    tolerance: float | None = None,
    memory: int | None = None,
    precision: Precision = "auto",
    layers: Sequence[str] | None = None,
    prior: float = 0,
    holdout: float = 0,
    source_data: str | Place | None = None,
    class_shares: str | Path = AUTO,
    guard: Literal["auto", "off", "report"] = "auto",
    seed: int = 0,
    force: bool = False,
    skip_bad: bool = False,
    progress: Progress | None = None,
    **said: Unpack[Said],
) -> DomainsRun:
    """Adapt a checkpoint to each domain of a target by itself; write a pack for each.

    Each domain's pack is what `adapt_folder` writes for its samples with `stats_only`. It is
    written as soon as it is known, with a record of what it was made from, so that a run that was
    stopped goes on where it was: a domain is left as it is if its pack is there, made from the same
    checkpoint with the same arguments, and its files have the same names, sizes and times of
    change, its rows the same labels and weights. (`batch_size`, `workers`, `device`, `memory` and
    `skip_bad` may differ.) A domain that fails does not stop the others, and is tried again the
    next time.

    Beside them is the pooled result, of all domains as one: a pack that `adapt_folder` would write
    for all their samples. Every domain is scored with it too, to show what its own is worth. It is
    of as many samples as one domain's is at most, drawn from all domains that can be listed, and is
    made anew where those have changed; if its pack is then another one, every domain is scored with
    it again.

    In a job of several processes (see `adaptkit.distributed`) call it in each, with the same
    arguments and target. Each takes the next domain whenever it is done with one, and works on it
    alone; the first one makes the pooled pack and writes the summary. What it decoded for that is
    decoded anew for domains that fall to others.

    Args:
        source: a checkpoint file; never written.
        target: a folder; each folder in it is a domain, read as `adapt_folder` reads its target.
            Hidden ones are passed over, and so are files. Or a file with a column or an array
            "domain", which says of each sample which one it is of (see `adaptkit.data.open`).
        out: the folder for the results, by default ``<source stem>-domains`` in the current folder;
            made if it is missing. In it ``<domain>.safetensors``, the pack, and
            ``<domain>.domain.json``, the record, for each domain, the same two of all as one in the
            folder ``pooled`` (where no domain's can lie), and of all ``summary.csv``,
            ``summary.json`` and ``summary.html``.
        device: as for `adapt_folder`, like all that follow.
        batch_size: as there.
        workers: as there.
        fast_jpeg: as there.
        mode: as there.
        samples: as there.
        tolerance: as there.
        memory: as there.
        precision: as there.
        layers: as there.
        prior: as there.
        holdout: as there.
        source_data: as there, but to calibrate the guard only.
        class_shares: as there; of every domain.
        guard: as there.
        seed: as there; the same for every domain.
        force: make every domain's result anew, also in the place of what is none.
        skip_bad: as there.
        progress: called as ``progress(stage, done, total)``, with "listing" or "domains".
        said: as there.

    Raises:
        AdaptkitError: what is wrong with the checkpoint, the folders, or an argument; or a result
            cannot be written. What concerns one domain alone is said in its row.
    """
    target, source_data = place(target), place(source_data) if source_data else None
    arguments = {k: v for k, v in locals().items() if k not in ("progress", "said")}
    arguments |= {"domains": "folder", **spelled_out(said)}
    defaults = {n: p.default for n, p in signature(adapt_domain_folders).parameters.items()}
    together = world()
    with together.united():
        _check(arguments)
        where = resolve_device(device)
        autocast(precision, where)  # which refuses what is unknown
        folder = Path(out) if out else Path(f"{stem(Path(source))}-domains")
        of_column = are_in_one(target)
        names, notes = ([], []) if of_column else folders_in(target)
        _check_folder(folder, target)
        checkpoint = open_checkpoint(source, **said)
        check_layers(checkpoint)
        norm_layers(checkpoint.model.to(where), layers)  # which refuses names that are none
        head = head_of(checkpoint, target)

        def opened(path: Place) -> ImageLoader:
            return open_samples(checkpoint, head, path, batch_size, workers, fast_jpeg, memory)

        sees = checkpoint.transform
        pixels = PixelCache((sees.channels, *sees.image_size) if sees else (), memory)
        targets = (
            DomainTargets.of_column(target, opened, pixels)
            if of_column
            else DomainTargets(target, names, opened, pixels)
        )
        domains = targets.names
    agree(together, checkpoint, arguments | {"domains": domains}, {"the target": targets.as_one})
    calibration, shares, why_not = _known(checkpoint, head, arguments, targets, progress)
    notes = [*notes_on(checkpoint, head), *filter(None, [why_not]), *notes]
    results = Results(folder, _made_from(checkpoint, arguments, shares))
    with together.united():
        if together.rank == 0:
            results.check(domains, force=force)
            results_of(results).check([POOLED], force=force)
            read = [*checkpoint.files, *source_files(said), *_shares_file(class_shares)]
            here = [target] if isinstance(target, Path) and target.is_file() else []
            _make_folder(folder, [*read, *here])
    adapter = DomainAdapter(
        model=checkpoint.model,
        head=head,
        guard=guard,
        calibration=calibration,
        shares=shares,
        options={
            "mode": mode,
            "samples": samples,
            "tolerance": tolerance,
            "prior": prior,
            "memory": memory,
            "layers": layers,
            "precision": precision,
            "seed": seed,
        },
        holdout=holdout,
        skip_bad=skip_bad,
    )

    def watch(stage: str, number: int) -> None:
        together.beat()
        if progress:
            progress(stage, number + 1, len(domains))

    parts = together.together(
        lambda: _listed(targets, together.deal(len(domains)), partial(watch, "listing"))
    )
    listed = {name: known for part in parts for name, known in part.items() if known}
    base = checkpoint.fingerprint()
    pooled = None
    with together.united():
        if together.rank == 0:
            pooled = adapt_once(targets, listed, adapter, results_of(results), base, force)
    pooled = together.first(pooled)
    adapter = replace(adapter, once=None if pooled is None else pooled.once)
    if memory is None and together.size > 1:  # which work at once, each as if it were alone
        share = allowed(None, where, neighbours(together, where))
        adapter = replace(adapter, options={**adapter.options, "memory": share})
    with together.united(), closing(together.deal(len(domains))) as mine:
        own = _adapt_each(
            targets, mine, listed, adapter, results, base, force, partial(watch, "domains")
        )
    # Not by way of the files: those of another machine may be seen there only after a while.
    every = together.gather(own)
    done = {row.domain: row for part, _ in every for row in part}
    found = sum(there for _, there in every)
    line = command_line("adapt", arguments, defaults)

    def summed_up() -> DomainsRun:
        rows = tuple(done[name] for name in domains)
        all_as_one = None if pooled is None else with_figures(pooled.row, rows, pooled.names)
        said = [*notes, *_of_the_gone(results.beside(domains))]
        about = _details(line, arguments, folder, checkpoint, head, targets, where, said)
        details = {**about, "processes": together.size, **_all_of(rows, all_as_one)}
        found_out = answer(runs_of(rows), "domain"), against_pooled(rows, all_as_one)
        words = " ".join(filter(None, found_out))
        table = csv(domain_frame([*rows, *([all_as_one] if all_as_one else [])]))
        written = results.write_summary(
            details, table, page(rows, all_as_one, words, line, of=about["of"])
        )
        return DomainsRun(rows, all_as_one, details, folder, found, written, words)

    with together.united():
        run = summed_up() if together.rank == 0 else None
    first = together.first(run)
    assert first is not None  # noqa: S101  rank 0 has made it
    return first


def _listed(
    targets: DomainTargets, mine: Iterable[int], watch: Callable[[int], None]
) -> dict[str, Listed | None]:
    """Return what is known of each domain of these numbers; None where it cannot be listed."""
    found: dict[str, Listed | None] = {}
    for number in mine:
        name = targets.names[number]
        try:
            found[name] = targets.listed(name)
        except Exception:  # noqa: BLE001  what it was is said when the domain is adapted to
            found[name] = None
        watch(number)
    return found


def _adapt_each(
    targets: DomainTargets,
    mine: Iterable[int],
    listed: Mapping[str, Listed],
    adapter: DomainAdapter,
    results: Results,
    base: str,
    force: bool,
    watch: Callable[[int], None],
) -> tuple[list[DomainRow], int]:
    """Write the result of each domain of these numbers that is not there.

    Returns:
        What became of each, and how many were there.
    """
    once = None if adapter.once is None else adapter.once.sha256
    rows: list[DomainRow] = []
    found = 0
    for number in mine:
        name = targets.names[number]
        state = listed[name].state if name in listed else ""
        start = time.perf_counter()
        there, current, pack, loader = False, False, None, None
        try:
            there = not force and name in listed and results.holds(name, state)
            current = there and results.scored_with(name) == once
            if there:
                row = results.row(name)
            if not current:
                loader = targets.loader(name)
                with alone():
                    if there:
                        row = adapter.with_once(row, loader)
                    else:
                        row, statistics = adapter.adapt(name, loader)
                        pack = statistics.to_bytes(base=base)
        except Exception as error:  # noqa: BLE001  models, images and disks fail in any way
            row, there, current = DomainRow(name, FAILED, error=reason_of(error)), False, False
        finally:
            if loader is not None:
                loader.forget()
        if there and not current:
            results.write_again(row, once)
        elif not there:
            path = "" if pack is None else results.pack(name).name
            row = replace(row, pack=path, seconds=round(time.perf_counter() - start, 3))
            results.write(row, state, pack, once)
        found += there
        rows.append(row)
        watch(number)
    return rows, found


def _check(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that no domain could be adapted with."""
    guarding.check_mode(arguments["guard"])
    check_holdout(arguments["holdout"])
    checked(**{name: arguments[name] for name in ("mode", "samples", "tolerance", "prior")})
    given = arguments["class_shares"] != AUTO
    if given and arguments["mode"] == "stream":
        raise EstimationError("class shares do not go with --mode stream: leave one out")
    if arguments["source_data"] and arguments["guard"] == guarding.OFF and not given:
        raise EstimationError(
            "of many domains none is compared with source data, which would calibrate the guard, "
            "and that is off: leave it out"
        )


def _check_folder(folder: Path, target: Place) -> None:
    """Refuse a folder for results that would be a domain, or cannot be made."""
    if isinstance(target, Path) and folder.resolve().is_relative_to(target.resolve()):
        raise OutputError(f"{folder} lies in {target} and would be taken for a domain: give --out")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file: give --out a folder")
    if not folder.absolute().parent.is_dir():
        raise OutputError(f"cannot make {folder}: there is no folder {folder.parent}")


def _make_folder(folder: Path, inputs: Sequence[Path]) -> None:
    """Make a folder for results if it is not there; what is read must not lie in it."""
    for path in inputs:
        if path.resolve().parent == folder.resolve():
            raise OutputError(f"{path} is an input, and lies in {folder}: give another --out")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror}") from None
    check_outputs([folder / "summary.json"], force=True)  # whether it can be written to


def _shares_file(class_shares: str | Path) -> list[Path]:
    return [] if class_shares in (AUTO, UNIFORM) else [Path(class_shares)]


def _known(
    checkpoint: Checkpoint,
    head: Head,
    arguments: Mapping[str, Any],
    targets: DomainTargets,
    progress: Progress | None,
) -> tuple[Calibration | None, Tensor | None, str]:
    """Return what is known of the model's own domain, the domains' class shares, and a note."""
    given, source_data = arguments["class_shares"], arguments["source_data"]
    if given == AUTO and arguments["guard"] == guarding.OFF:
        return None, None, ""
    of_source = None
    if source_data:
        how = (arguments[name] for name in ("batch_size", "workers", "fast_jpeg", "memory"))
        of_source = open_samples(checkpoint, head, source_data, *how)
        if targets.as_one is not None:
            check_alike(of_source, targets.as_one)
    calibration, why_not = guarding.known_calibration(
        checkpoint,
        checkpoint.model,
        of_source,
        head,
        strict=given != AUTO,
        seed=arguments["seed"],
        progress=progress,
    )
    if of_source is not None:
        refuse_too_many_bad(of_source, arguments["skip_bad"])
    if given == AUTO:
        return calibration, None, why_not
    known = guarding.needed(calibration, head)
    listed = of_source.listing.classes if of_source is not None else None
    names = checkpoint.classes or listed or [str(k) for k in range(known.classes)]
    return calibration, known_shares(given, names), why_not


def _made_from(
    checkpoint: Checkpoint, arguments: Mapping[str, Any], shares: Tensor | None
) -> dict[str, Any]:
    """Return all that decides about a domain's result, but for its images."""
    source_data = arguments["source_data"]
    layers = arguments["layers"]
    found = {
        "checkpoint": checkpoint.sha256,
        "target": _whole(arguments["target"]),
        "arch": checkpoint.arch,
        "arch_kwargs": {name: str(value) for name, value in checkpoint.arch_kwargs.items()},
        "transform": checkpoint.transform and checkpoint.transform.to_dict(),
        "classes": list(checkpoint.classes or ()) if arguments["classes"] else None,
        **{name: arguments[name] for name in _MATTERS},
        "layers": None if layers is None else list(layers),
        "source_data": source_data and _whole(source_data),
        "class_shares": AUTO if shares is None else shares.tolist(),
    }
    as_read_again: dict[str, Any] = json.loads(json.dumps(found))
    return as_read_again


def _whole(where: Place) -> str:
    """Return a place as text that is the same from every folder."""
    return str(where.resolve() if isinstance(where, Path) else where)


def _details(
    line: str,
    arguments: Mapping[str, Any],
    folder: Path,
    checkpoint: Checkpoint,
    head: Head,
    targets: DomainTargets,
    where: torch.device,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return what the summary's JSON says beside the rows."""
    given = {k: str(v) if isinstance(v, Place) else v for k, v in arguments.items()}
    return {
        "command": line,
        "versions": versions(),
        "arguments": {**given, "out": str(folder)},
        "seed": arguments["seed"],
        "device": str(where),
        "checkpoint": {
            "sha256": checkpoint.sha256,
            "arch": checkpoint.arch,
            "arch_kwargs": checkpoint.arch_kwargs,
            "adapted": checkpoint.adapted,
        },
        "outputs": {"kind": head.kind, "classes": head.size},
        "of": "images" if targets.as_one is None else targets.as_one.listing.of,
        "prepared": preparation(checkpoint, targets.shape),
        "transductive": None
        if arguments["holdout"]
        else "what was scored includes what was adapted to",
        "notes": list(notes),
    }


def _of_the_gone(names: Sequence[str]) -> list[str]:
    """Say which domains' packs stay in the folder though the target has no such domain.

    >>> _of_the_gone(["old"])
    ['1 pack stays of a domain that is not in the target any more: old.']
    """
    if not names:
        return []
    one = len(names) == 1
    of = "pack stays of a domain that is" if one else "packs stay of domains that are"
    return [f"{len(names):,} {of} not in the target any more: {few(names, 10)}."]


def _all_of(rows: Sequence[DomainRow], pooled: DomainRow | None) -> dict[str, Any]:
    of_all = None if pooled is None else asdict(pooled)
    return {"totals": totals(rows), "rows": [asdict(row) for row in rows], "pooled": of_all}
