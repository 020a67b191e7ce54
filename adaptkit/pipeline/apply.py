"""A base checkpoint and a domain's statistics to that domain's checkpoint."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptkit.checkpoint import SUFFIXES, checkpoint_files, load_checkpoint, output_paths
from adaptkit.errors import CheckpointError, OutputError
from adaptkit.estimation import Statistics
from adaptkit.files import check_outputs, write_files
from adaptkit.pipeline.common import record


def apply_statistics(
    source: str | Path,
    statistics: str | Path,
    out: str | Path,
    *,
    arch: str | None = None,
    arch_kwargs: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Statistics:
    """Give a checkpoint the statistics of a domain pack, and write the adapted checkpoint.

    Raises:
        AdaptkitError: a file is missing or broken, the pack belongs to another model, or `out`
            cannot be written.
    """
    source, out = Path(source), Path(out)
    if not out.name.endswith(SUFFIXES):
        raise OutputError(f"Expected an output ending in {', '.join(SUFFIXES)}, got {out}")
    check_outputs([out], inputs=[source, Path(statistics)], force=force)
    pack = Statistics.load(statistics)
    checkpoint = load_checkpoint(source, arch=arch, arch_kwargs=arch_kwargs)
    if pack.base not in (None, checkpoint.fingerprint()):
        raise CheckpointError(
            f"{statistics} was made for another model than {source}: a layer's statistics mean "
            f"nothing under other weights"
        )
    check_outputs(
        output_paths(out, checkpoint), inputs=[*checkpoint.files, Path(statistics)], force=force
    )
    adapted = pack.apply(copy.deepcopy(checkpoint.model))
    said = record(checkpoint, pack, None) | {"statistics": Path(statistics).name}
    write_files(checkpoint_files(out, adapted, like=checkpoint, adapted=said))
    return pack
