"""Jobs on all cores, each on one thread."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import click
import torch

Job = TypeVar("Job")
Found = TypeVar("Found")


def run_on_cores(jobs: Sequence[Job], one: Callable[[Job], Found]) -> Iterator[tuple[Job, Found]]:
    """Yield each job with what `one` makes of it, as they end, and say on stderr how far it is.

    As many run at once as there are cores, in processes of their own.
    """
    # spawn: a forked child would hang on torch's threads.
    with ProcessPoolExecutor(
        os.cpu_count(),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    ) as pool:
        running = {pool.submit(one, job): job for job in jobs}
        for count, done in enumerate(as_completed(running), 1):
            job = running[done]
            yield job, done.result()
            say(count, len(jobs), job)


def say(count: int, total: int, job: object) -> None:
    """Say which job is done, by the fields that are words or numbers."""
    facts = {name: value for name, value in vars(job).items() if isinstance(value, (str, int))}
    click.echo(f"{count}/{total} {', '.join(f'{k} {v}' for k, v in facts.items())}", err=True)
