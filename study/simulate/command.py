"""`superft simulate`, from its options to its text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from study.simulate.grid import measure_grid, parse_grid
from study.simulate.report import check_out, result_of, result_text, surrogate_text, write
from study.simulate.runs import Question, check, parse_variants, simulate
from study.simulate.surrogate import fit
from study.simulate.table import read_table

LINES = 10  # of progress


def run_simulation(
    places: Sequence[Path],
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
    say: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Read the table, run the searches, write the files; returns what people read. See ``superft simulate --help``.

    Args:
        say: called with (done, total) simulated studies, some ten times.

    Raises:
        SpecError: bad input, before any search runs.
    """
    variants = parse_variants(samplers)
    check_out(out)
    table = read_table(places, defense)
    settings = parse_grid(table, grid) if grid else []
    question = Question(table, {}, variants, trials, seeds, slots, per, noise)
    check(question)
    surrogates = fit(table, noise)
    question = Question(table, surrogates, variants, trials, seeds, slots, per, noise)
    known = measure_grid(table, surrogates, settings, per) if settings else None

    def say_sometimes(done: int, total: int) -> None:
        if done == total or done * LINES // total > (done - 1) * LINES // total:
            say(done, total)

    traces = simulate(question, jobs, say_sometimes)
    result = result_of(question, traces, known)
    files = write(out, table, result)
    return "\n\n".join([surrogate_text(table, surrogates), result_text(result), f"wrote {', '.join(files)} to {out}"])
