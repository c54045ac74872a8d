"""`superft simulate`, from its options to its text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from study.record.remote_folder import open_folder
from study.simulate.grid import measure_grid, parse_grid
from study.simulate.report import check_out, result_of, result_text, surrogate_text, write
from study.simulate.runs import Question, check, parse_variants, simulate
from study.simulate.surrogate import fit
from study.simulate.table import Table, read_table
from trainables.storage.remote import Place

LINES = 10  # of progress


def run_simulation(
    places: Sequence[Place],
    *,
    samplers: str,
    trials: int,
    seeds: int,
    slots: int,
    per: str,
    defense: str | None,
    noise: bool,
    grid: Sequence[str],
    out: Path,
    jobs: int | None,
    plugins: Sequence[str] = (),
    say: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Read the table, run the searches, write the files; returns what people read. See ``superft simulate --help``.

    Args:
        plugins: modules or files with samplers of your own.
        say: called with (done, total) simulated studies, some ten times.

    Raises:
        SpecError: bad input, before any search runs.
    """
    variants = parse_variants(samplers)
    check_out(out)
    table = _read(places, defense)
    settings = parse_grid(table, grid) if grid else []
    question = Question(table, {}, variants, trials, seeds, slots, per, noise, tuple(plugins))
    check(question)
    surrogates = fit(table, noise)
    question = replace(question, surrogates=surrogates)
    known = measure_grid(table, surrogates, settings, per) if settings else None

    def say_sometimes(done: int, total: int) -> None:
        if done == total or done * LINES // total > (done - 1) * LINES // total:
            say(done, total)

    traces = simulate(question, jobs, say_sometimes)
    result = result_of(question, traces, known)
    files = write(out, table, surrogates, result)
    return "\n\n".join([surrogate_text(table, surrogates), result_text(result), f"wrote {', '.join(files)} to {out}"])


def _read(places: Sequence[Place], defense: str | None) -> Table:
    """The table of folders and files, and of studies at a URI."""
    with ExitStack() as stack:
        paths = []
        for place in places:
            if isinstance(place, str):
                folder = stack.enter_context(open_folder(place))
                folder.fetch(rows_only=True)
                paths.append(folder.path)
            else:
                paths.append(place)
        return read_table(paths, defense)
