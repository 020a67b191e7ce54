"""The main job from files to files; composition only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from typing_extensions import Unpack

from adaptkit.checkpoint import checkpoint_files, output_paths
from adaptkit.data import ImageLoader, Place, place
from adaptkit.device import resolve_device
from adaptkit.distributed import world
from adaptkit.errors import EstimationError
from adaptkit.estimation import Statistics
from adaptkit.estimation import certify as certified
from adaptkit.estimation.precision import Precision
from adaptkit.files import check_outputs, write_files
from adaptkit.guard import ClassMix, Decision, decide
from adaptkit.layers import Style
from adaptkit.pipeline import guarding
from adaptkit.pipeline.class_shares import AUTO, UNIFORM, known_shares
from adaptkit.pipeline.common import (
    Clock,
    Outputs,
    Progress,
    agree,
    check_alike,
    command_line,
    record,
    refuse_too_many_bad,
)
from adaptkit.pipeline.describing import Features, details, more_charts, notes_of
from adaptkit.pipeline.holdout import check_holdout, parts
from adaptkit.pipeline.inputs import fit
from adaptkit.pipeline.long_run import LongRun
from adaptkit.pipeline.methods import (
    Adapted,
    adabn,
    adain,
    check_images,
    check_layers,
    check_method,
    guarded,
    without_layers,
)
from adaptkit.pipeline.mixed import Mixed, Places, as_stored, by_domain
from adaptkit.pipeline.mixed import as_fields as domains_as_fields
from adaptkit.pipeline.mixed import files as mixed_files
from adaptkit.pipeline.opening import (
    Said,
    head_of,
    notes_on,
    open_checkpoint,
    open_samples,
    source_files,
    spelled_out,
    stated,
)
from adaptkit.pipeline.pictures import pictures
from adaptkit.pipeline.scoring import (
    Seen,
    of_classes,
    of_the_same,
    reported,
    score_and_see,
)
from adaptkit.pipeline.shift import SAMPLES, against_source, drawn, pixels, some_readable
from adaptkit.quality import confusion
from adaptkit.report import Report, Row, verdict
from adaptkit.report.cells import csv
from adaptkit.report.charts.projection import POINTS as SHOWN

WEIGHTED = ("balanced", "early")  # choices of the guard in which images weigh unlike


@dataclass(frozen=True)
class Run:
    """What one run of the main job did."""

    report: Report
    outputs: Outputs
    statistics: Statistics | None  # of the target, where the model has layers that store some
    images: int
    skipped: dict[str, str]
    notes: tuple[str, ...]
    written: tuple[Path, ...]
    moved: str  # how far the domain moved, in words
    decision: Decision | None  # the guard's, where it was asked


def adapt_folder(
    source: str | Path,
    target: str | Place,
    *,
    out: str | Path | None = None,
    report: str | Path | None = None,
    method: Literal["adabn", "adain"] = "adabn",
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
    stats_only: bool = False,
    certify: bool = False,
    holdout: float = 0,
    source_data: str | Place | None = None,
    class_shares: str | Path = AUTO,
    guard: Literal["auto", "off", "report"] = "auto",
    domains: Literal["one", "auto"] = "one",
    input_fit: bool = False,
    resume: bool = False,
    seed: int = 0,
    force: bool = False,
    skip_bad: bool = False,
    progress: Progress | None = None,
    **said: Unpack[Said],
) -> Run:
    """Adapt a checkpoint to a folder of images; write the adapted checkpoint and the report.

    Reads `source` and `target`, evaluates, estimates, evaluates again, and only then writes: all
    files or none. In a job of several processes (see `adaptkit.distributed`) call it in each, with
    the same arguments: each reads its part of the images, the result is one process's, and the
    first one writes.

    Args:
        source: a checkpoint file; never written.
        target: class folders, or a flat or nested folder of unlabelled images; or whatever else
            `adaptkit.data.open` takes, also behind a URL.
        out: the adapted checkpoint; by default ``<source stem>-adapted<suffix>`` in the current
            folder.
        report: the CSV; by default beside `out`. The JSON and the page lie beside the CSV.
        method: "adabn" gives the model the target's normalisation statistics. "adain" leaves it
            and restyles each image by itself to the source's channel means and standard deviations
            (`adaptkit.layers.restyle`), through the checkpoint's transform: for mixed domains,
            single images, and models without BatchNorm. The source's style is that of
            `source_data`, else what the checkpoint stores, else the transform's mean and std. The
            options from `mode` to `holdout` are adabn's.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        batch_size: images a batch; it does not change the statistics.
        workers: processes that decode images; 0 decodes in this one.
        fast_jpeg: see `adaptkit.image_folder`.
        mode: as for `estimate`, like the next five.
        samples: how many images the statistics are taken from at most, or "all".
        tolerance: as many as it takes for this standard error.
        memory: bytes that waiting activations may take, and decoded images of each domain that
            are kept for the next pass; by default half and a quarter of what is free. Images beyond
            that are kept in a temporary file.
        precision: of the estimation's forward passes.
        layers: names or globs of the layers to adapt.
        prior: how many images the source's statistics count for, layer by layer. The report's
            figures on layers are then of what the model with that blend sees.
        stats_only: write a domain pack (see `Statistics.save`) instead of a checkpoint.
        certify: report how far the adapted model is from seeing what it stores.
        holdout: the share of the images, drawn at random, that are scored but not adapted to; 0
            scores all images, those that were adapted to included.
        source_data: images of the domain that the model was trained on, to compare with.
        class_shares: how often each class occurs in the target: "auto" lets the guard estimate it,
            if it can; where it is known, "uniform" or a CSV file of ``class,share``. The statistics
            are then corrected for it (`adaptkit.guard.ClassMix`), by the checkpoint's calibration,
            else by what `source_data`, with class folders, shows of each class. Not with mode
            "stream".
        guard: "auto" lets `adaptkit.guard.decide` choose, without labels, whether the target's
            statistics are taken over and how; where it keeps the source's, the file that is written
            is the source's. It knows more with a calibration (see `calibrate_checkpoint`) or with
            `source_data` in class folders. "report" says what it would have chosen and takes the
            target's all the same; "off" does not ask.
        domains: "auto" looks whether the target is several domains (see `adaptkit.domains`), and if
            so adapts to each by itself: a checkpoint a domain, and beside them what
            `adaptkit.domains.RoutedModel` routes images by. The report is of that routed model.
        input_fit: first fit a gain and an offset of the input (`adaptkit.input_fit.fit_input`),
            which undo contrast, brightness and inversion, and record them in the checkpoint's
            transform. It is not AdaBN; the report has its figures apart.
        resume: go on where a run with mode "stream" was stopped, at whatever moment. Such a run
            keeps beside `out`, until it has ended, ``<out>.resume`` (see `estimate`) and
            ``<out>.resume.scores``, of the source model. Where there are none it begins; those of a
            run on something else are refused.
        seed: decides which images are drawn.
        force: replace outputs that exist.
        skip_bad: go on even if more than a tenth of the images cannot be read.
        progress: called as ``progress(stage, done, total)``.
        said: what the checkpoint does not say or says otherwise: architecture, how images are
            prepared, names of classes (see `Said`).

    Raises:
        AdaptkitError: what is wrong with the checkpoint, the folder or the outputs; nothing has
            been written then.
    """
    target, source_data = place(target), place(source_data) if source_data else None
    arguments = {k: v for k, v in locals().items() if k not in ("progress", "said")}
    arguments |= spelled_out(said)
    parameters = signature(adapt_folder).parameters
    check_method(method, arguments, parameters)
    line = command_line("adapt", arguments, {n: p.default for n, p in parameters.items()})
    clock = Clock()
    outputs = Outputs.of(
        Path(source), Path(out) if out else None, Path(report) if report else None, pack=stats_only
    )
    reports = [outputs.csv, outputs.json, outputs.html, outputs.confusion]
    given_shares = None if class_shares == AUTO else class_shares
    shares_file = None if given_shares in (None, UNIFORM) else Path(str(given_shares))
    inputs = [Path(source), *source_files(said), *([shares_file] if shares_file else [])]
    together = world()
    with together.united():
        if together.rank == 0:
            check_outputs([outputs.checkpoint, *reports], inputs=inputs, force=force)
    if given_shares is not None and mode == "stream":
        raise EstimationError("class shares do not go with --mode stream: leave one out")
    guarding.check_mode(guard)
    asked = method == "adabn" and guard != guarding.OFF
    if domains not in ("one", "auto"):
        raise EstimationError(f"Expected domains to be 'one' or 'auto', got {domains!r}")
    if input_fit and (stats_only or domains == "auto"):
        raise EstimationError(
            "an input fit is of one domain and changes how images are prepared: leave out "
            "--stats-only and --domains auto, or --input-fit"
        )
    if domains == "auto" and together.size > 1:
        raise EstimationError(
            "domains are looked for in one process: leave out --domains auto, or torchrun"
        )
    long_run = LongRun.of(outputs.checkpoint, mode=mode, domains=domains)
    with together.united():
        long_run.check(resume=resume, force=force)
    places = Places(outputs.checkpoint)
    beside = places.all() if domains == "auto" else []
    check_holdout(holdout)
    with clock.stage("load"):
        with together.united():
            where = resolve_device(device)
            checkpoint = open_checkpoint(source, **said)
            whole = output_paths(outputs.checkpoint, checkpoint, pack=stats_only)
            if together.rank == 0:
                files_read = [*inputs, *checkpoint.files]
                check_outputs([*whole, *reports, *beside], inputs=files_read, force=force)
            model = checkpoint.model.to(where)
            if method == "adabn":
                check_layers(checkpoint)
            head = head_of(checkpoint, target)
            how = batch_size, workers, fast_jpeg, memory
            loader = open_samples(checkpoint, head, target, *how)
            of_source = source_data and open_samples(checkpoint, head, source_data, *how)
            if method == "adain" or input_fit:
                check_images(loader, *([of_source] if of_source else []))
            if of_source:
                check_alike(of_source, loader)
        agree(together, checkpoint, arguments, {"the target": loader, "the source data": of_source})
        if not resume:  # and not before it is known that the run can begin
            with together.united():
                long_run.end()
        calibration = shares = None
        why_not = ""
        if asked or given_shares is not None:
            calibration, why_not = guarding.known_calibration(
                checkpoint,
                model,
                of_source or None,
                head,
                strict=given_shares is not None,
                seed=seed,
                progress=progress,
            )
        if given_shares is not None:
            known = guarding.needed(calibration, head)
            listed = of_source.listing.classes if of_source else loader.listing.classes
            names = checkpoint.classes or listed or [str(k) for k in range(known.classes)]
            shares = known_shares(given_shares, names)
    total = len(loader.listing)
    to_adapt, to_score = parts(loader, holdout, seed)

    def evaluated(stage: str, net: torch.nn.Module, images: ImageLoader) -> Seen:
        with clock.stage(stage):
            count = together.part(len(images.dataset))  # type: ignore[arg-type]
            watch = progress and (lambda _, n, __: progress(stage, n, count))
            return score_and_see(net, images, head, most=SHOWN, seed=seed, progress=watch)

    score_before = partial(evaluated, "before", model, to_score)
    with some_readable(to_score):
        seen = long_run.scored(checkpoint, model, to_score, arguments, score_before)
    refuse_too_many_bad(to_score, skip_bad)
    fitted = None
    if input_fit:
        with clock.stage("input fit"):
            fitted = fit(model, to_adapt, to_score, head, progress)
        to_adapt, to_score = fitted.to_adapt, fitted.to_score
    mix = None if shares is None or calibration is None else ClassMix(calibration.moments, shares)

    def adapt_one(images: ImageLoader) -> tuple[Decision | None, Adapted]:
        alike: dict[str, Any] = {
            "prior": prior,
            "memory": memory,
            "layers": layers,
            "precision": precision,
            "seed": seed,
            "progress": progress,
            "weight": images.weight,
        }
        how = {**alike, "mode": mode, "samples": samples, "tolerance": tolerance}
        how["resume"] = long_run.resume
        known: dict[str, Any] = {"calibration": calibration, "shares": shares}
        if asked and guard == guarding.AUTO:
            return guarded(model, images, to_score, **known, **how)
        found = decide(model, images, **known, **alike) if asked else None
        return found, adabn(model, images, to_score, correction=mix, **how)

    mixed: Mixed | None = None
    decision: Decision | None = None
    with clock.stage("estimate"):
        if method == "adain":
            style = checkpoint.style
            if of_source:
                style = together.first(Style.of(pixels(drawn(of_source, SAMPLES, seed))))
            done = adain(model, to_score, style, seed=seed, progress=progress)
        elif domains == "one":
            decision, done = adapt_one(to_adapt)
        else:
            several = by_domain(model, to_adapt, adapt_one, progress)
            if isinstance(several, Mixed):
                mixed, done = several, Adapted(several.model, to_score, None)
            else:
                decision, done = several
    if fitted and fitted.transform:
        done = replace(done, transform=fitted.transform)
    refuse_too_many_bad(loader, skip_bad)
    adapted, statistics = done.model, done.seen
    touched = method == "adabn" and not mixed
    unchanged = touched and done.applied is None and done.transform is None
    score_after = partial(evaluated, "after", adapted, done.to_score)
    with clock.stage("after"):  # of the same model on the same images where nothing changed
        then = seen if unchanged else score_after()
    passes = {"before": score_before, "after": score_after}
    same = of_the_same({"before": seen, "after": then}, passes)
    (before, seen_before), (after, seen_after) = same["before"], same["after"]
    refuse_too_many_bad(loader, skip_bad)
    certificate = None
    weighted = guard == guarding.AUTO and decision is not None and decision.choice in WEIGHTED
    certifiable = done.applied is not None and not weighted and not loader.weight
    if certify and statistics is not None and certifiable:
        with clock.stage("certify"):
            certificate = certified(
                adapted,
                to_adapt,
                samples=statistics.samples,
                statistics=None if done.applied is done.seen else statistics,
                layers=layers,
                seed=seed,
            )

    names_of_all = checkpoint.classes or loader.listing.classes
    found = reported(
        before if touched else without_layers(before),
        after if touched else without_layers(after),
        (model, adapted),
        statistics=statistics if touched else None,
        classes=loader.listing.classes or (checkpoint.classes if head.size else None),
        seed=seed,
        details=details(
            line,
            {**arguments, "out": outputs.checkpoint, "report": outputs.csv},
            checkpoint,
            head,
            where,
            loader,
            statistics,
            done,
            before,
            after,
            clock,
            certificate,
            None
            if decision is None
            else guarding.as_fields(decision, guard, names_of_all, given=shares is not None),
            {
                "domains": mixed and domains_as_fields(mixed, guard, names_of_all),
                "input_fit": fitted and fitted.as_fields(),
            },
        ),
    )
    found = replace(found, rows=(*found.rows, *done.rows))
    if certificate and statistics is not None:
        worst = Row("certificate", "all", None, certificate.worst, None, n=statistics.samples)
        found = replace(found, rows=(*found.rows, worst))
    notes = [*notes_on(checkpoint, head), *done.notes, *filter(None, [why_not])]
    if mix and done.applied and not mixed:
        notes.append("the statistics are corrected for the class shares that were given.")
    if certify and loader.weight:
        notes.append("no certificate: samples weigh unlike.")
    elif certify and weighted:
        notes.append("no certificate: each class counts alike, and none is known of that.")
    elif certify and touched and done.applied is None:
        notes.append("no certificate: the statistics are the source's.")
    if done.applied is not None and mode == "stream" != done.applied.mode:
        notes.append("what the guard chose cannot be streamed: the statistics are exact.")
    if tolerance is not None and weighted:
        notes.append("what the guard chose takes no tolerance.")
    if long_run.resume and long_run.resume.went_on:
        count = long_run.resume.went_on
        notes.append(f"went on after {count:,} images of a run that was stopped.")
    if domains == "auto" and not mixed:
        notes.append("the target looks like one domain.")
    if certify and mixed:
        notes.append("no certificate: each image has its own domain's statistics.")
    notes += notes_of(loader, statistics if touched else None)
    skipped = dict(loader.skipped)
    features: Features = (None, seen_before, seen_after)
    if of_source:
        with clock.stage("source"):
            added = against_source(
                model,
                adapted,
                drawn(of_source, SAMPLES, seed),
                drawn(to_score, SAMPLES, seed),
                head,
                None,
                seed,
                progress,
                restyled=done.transform,
            )
        refuse_too_many_bad(of_source, skip_bad)
        found = replace(found, rows=(*found.rows, *added.rows))
        notes += [note for note in added.notes if note not in notes]
        skipped |= added.skipped
        features = added.features
    moved = "" if statistics is None else verdict(found, statistics, loader.listing.of)
    words = {"verdict": moved, "notes": notes, "skipped": skipped}
    first, second = of_classes(before), of_classes(after)
    classes = loader.listing.classes or checkpoint.classes
    found = replace(
        found,
        details={**found.details, **words},
        charts=(*found.charts, *more_charts(done.rows, features, seed)),
    )

    def results() -> dict[Path, bytes]:
        if mixed:
            files = mixed_files(
                places,
                mixed,
                model,
                checkpoint,
                stats_only=stats_only,
                seed=seed,
                transform=stated(checkpoint),
            )
        elif stats_only and statistics is not None:
            pack = done.applied or as_stored(model, statistics)
            files = {outputs.checkpoint: pack.to_bytes(base=checkpoint.fingerprint())}
        else:
            files = checkpoint_files(
                outputs.checkpoint,
                adapted,
                like=checkpoint,
                adapted=record(
                    checkpoint,
                    done.applied,
                    seed,
                    method=method,
                    guard=None if decision is None else decision.choice,
                ),
                transform=done.transform or stated(checkpoint),
            )
        files[outputs.csv] = (found.to_csv() or "").encode()
        files[outputs.json] = (found.to_json() or "").encode()
        files[outputs.html] = (found.to_html() or "").encode()
        if first and second and first.labels is not None:
            table = confusion(first, second, dict(enumerate(classes or ())))
            files[outputs.confusion] = csv(table).encode()
        return files

    written: tuple[Path, ...] = ()
    with together.united():
        if together.rank == 0:
            found = replace(
                found,
                pictures=tuple(pictures(first, second, to_score, classes))
                if first and second
                else (),
            )
            files = results()
            write_files(files)
            written = tuple(files)
    with together.united():
        long_run.end()
    return Run(
        report=found,
        outputs=outputs,
        statistics=statistics,
        images=total,
        skipped=skipped,
        notes=tuple(notes),
        written=together.first(written),
        moved=moved,
        decision=decision,
    )
