"""What a study adds to the row that a job's trial measured: whose it is and what it is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.space import published_for
from study.plan.jobs import CONFIRM, Plan
from study.record.columns import SCHEMA
from study.results.finished import BEYOND_BUDGET
from study.search.optuna_search import OptunaSearch
from study.spec.over_attacks import MEAN
from trainables.job import Job
from trainables.trial import plugins_of


def full_row(
    plan: Plan, job: Job, row: Mapping[str, Any], search: OptunaSearch | None, *, beyond_budget: bool
) -> dict[str, Any]:
    """The row with the study's columns, without its price.

    Args:
        search: that the job is of; None: it is of a baseline, or on fresh seeds.
        beyond_budget: whether it is run beside the search's budget.
    """
    full: dict[str, Any] = {
        "study": plan.spec.name,
        "trial": job.trial,
        **row,
        "role": job.role,
        "search": job.label if search is not None or job.role == CONFIRM else None,
        "published": job.published,
        "published_for": published_for(job.cell.defense, job.cell.data.name) if job.published else None,
        "schema": SCHEMA,
        "models": plan.models(job.role),
    }
    if (rule := plan.spec.search.aggregate) != str(MEAN):
        full["aggregate"] = rule
    if search is not None and search.search.repeat:
        full["repeat"] = search.search.repeat
    if search is not None and job.trial in search.origins:
        full["warm_start"] = search.origins[job.trial]
    if search is not None and (start := search.search.start_named(job.settings)) is not None:
        full["start"] = start
    if beyond_budget:
        full["flags"] = [*full.get("flags", ()), BEYOND_BUDGET]
    return full


def failed_row(job: Job, error: str, columns: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial that could not be measured leaves, with its cause and further columns."""
    return {
        **job.cell.columns(),
        "plugins": plugins_of(job.cell),
        "status": "failed",
        "error": error,
        **{f"param.{key}": value for key, value in job.settings.items()},
        **columns,
    }
