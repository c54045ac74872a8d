"""What a study has left to do, from its ledger, for ``plan``, ``show`` and the report.

A run asks the same `Standing` of each search, and knows besides which settings it has handed out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from study.plan.jobs import Plan, make_plan
from study.record.detectors import read_detectors
from study.record.ledger import row_key
from study.record.victims import absent, decided
from study.results.chosen import jobs_to_confirm, left_to_confirm
from study.results.finished import Standing
from study.spec.schema import StudySpec


def plan_in(directory: Path, spec: StudySpec, rows: Iterable[Mapping[str, Any]]) -> Plan:
    """The plan of the study in ``directory``, without the victims that it found to hold no backdoor."""
    return with_chosen_detectors(make_plan(spec).without(absent(decided(directory, rows))), directory)


def with_chosen_detectors(plan: Plan, directory: Path) -> Plan:
    """The plan with the detectors that the study in ``directory`` has chosen (SpecError: their file is damaged)."""
    return plan.with_detectors({label: one.settings for label, one in read_detectors(directory).items()})


def standings(
    plan: Plan, rows: Iterable[Mapping[str, Any]], ended: Mapping[str, int] = MappingProxyType({})
) -> dict[str, Standing]:
    """How far each search is, by its label.

    Args:
        plan, rows: of the study.
        ended: see `record.ended`.
    """
    found = {search.label: Standing(plan, search, ended.get(search.label)) for search in plan.searches}
    for row in rows:
        if (search := found.get(str(row.get("search")))) is not None:
            search.add(row)
    return found


def trials_left(
    plan: Plan, rows: Iterable[Mapping[str, Any]], ended: Mapping[str, int] = MappingProxyType({})
) -> Counter[str]:
    """Trials without a row, by the label of their search or baseline; those that have none left are not in it.

    Of what a search will choose, to be run on fresh seeds: the most that it can be.
    """
    rows = list(rows)
    done = {row_key(row) for row in rows}
    left = Counter(job.label for job in plan.baselines if job.key not in done)
    found = standings(plan, rows, ended)
    left += Counter({label: one.rows_left() for label, one in found.items()})
    for search in plan.searches:
        standing = found[search.label]
        jobs = jobs_to_confirm(search, standing, rows)
        left[search.confirm_label] = left_to_confirm(search, standing, jobs, lambda job: job.key in done)
    return +left


def unfinished_in_words(
    plan: Plan, rows: Iterable[Mapping[str, Any]], ended: Mapping[str, int] = MappingProxyType({})
) -> list[str]:
    """What still has trials to come, one line each: ``badnets / super_ft: 3 of 12 settings``."""
    rows = list(rows)
    left, searches = trials_left(plan, rows, ended), standings(plan, rows, ended)
    unknown = {one.confirm_label for one in plan.searches if not searches[one.label].over}
    lines = []
    for label, count in left.items():
        name = label.replace("/", " / ")
        if (one := searches.get(label)) is None:
            lines.append(f"{name}: {'at most ' if label in unknown else ''}{count} to run")
        else:
            done = f"{one.finished} of {one.settings_in_the_end()} settings" if one.rows else "not begun"
            lines.append(f"{name}: {done}")
    return lines


def dropped_in_words(plan: Plan, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What races have saved so far, a line for each search in which a setting was dropped."""
    return [
        f"{label.replace('/', ' / ')}: {len(one.dropped)} of {one.finished} settings were dropped as dominated, "
        f"which saved {one.saved} of {one.finished * len(one.cells)} trials"
        for label, one in standings(plan, rows).items()
        if one.dropped
    ]
