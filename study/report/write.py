"""``superft report DIR``: report.html, figures, trials.csv and front.csv, computed from study.yaml and the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from search_spaces.space import Space
from study.plan.jobs import Plan
from study.record.curves import read_curves
from study.record.detectors import read_detectors
from study.record.ended import read_ended
from study.record.files import write_atomically
from study.record.folder import stored_spec
from study.record.ledger import Ledger
from study.record.victims import decided
from study.report.detectors import tuned_table
from study.report.figures.registry import FIGURES, AttackTables
from study.report.figures.trigger import TRIGGER_PREFIX
from study.report.html import plural
from study.report.page import page, places_of, swept_in, title_of
from study.report.sections import attack_section
from study.report.side_by_side import NAMES, side_by_side
from study.report.sweep import SWEEP, sweep_section
from study.report.targets import target_text
from study.results import equal_rules
from study.results.aftermath import (
    connectivity_curves,
    connectivity_table,
    membership_table,
    reinjection_curves,
    reinjection_table,
    retuning_table,
)
from study.results.confirmed import confirmed_settings, winners_curse
from study.results.fronts import fronts, fronts_by_rule, hypervolume_over_trials, marked
from study.results.left import dropped_in_words, plan_in, unfinished_in_words
from study.results.repeats import repeated_searches
from study.results.rows import ALL_ATTACKS, BESIDE, at, backdoored
from study.results.scores import counting, without_backdoor
from study.results.settings import aggregate_all, candidates
from study.results.verdicts import shared_members
from study.spec.yaml_io import SpecError
from trainables.plugins.modules import PluginError
from trainables.registry import SettingError


def write_report(directory: Path | str) -> Path:
    """(Re)write trials.csv, front.csv, figures/*.png and report.html of a study folder; its ledger is only read.

    Where the study asked for the aftermath of its repairs, there are tables of it too: reinjection.csv,
    reinjection_curves.csv, retuning.csv, connectivity.csv, connectivity_curves.csv and membership.csv.

    Each file is replaced in one step, so this may run while the study does.

    Returns:
        The path of report.html, one file that needs no network.

    Raises:
        FileNotFoundError: the folder holds neither study.yaml nor trials.jsonl.
        ValueError: study.yaml is no YAML mapping.
    """
    directory = Path(directory)
    spec = _read_spec(directory)
    ledger = Ledger.read(directory / "trials.jsonl")
    frame = ledger.to_frame()
    write_atomically(directory / "trials.csv", marked(frame).to_csv(index=False).encode())
    members = fronts(frame)
    write_atomically(directory / "front.csv", members.to_csv(index=False).encode())

    for name, whole in (
        ("reinjection", reinjection_table(frame)),
        ("reinjection_curves", reinjection_curves(frame)),
        ("retuning", retuning_table(frame)),
        ("connectivity", connectivity_table(frame)),
        ("connectivity_curves", connectivity_curves(frame)),
        ("membership", membership_table(frame)),
    ):
        if len(whole):
            write_atomically(directory / f"{name}.csv", whole.to_csv(index=False).encode())

    table = aggregate_all(frame)
    searched = candidates(frame)
    history = hypervolume_over_trials(frame)
    by_rule, repeated = fronts_by_rule(frame), repeated_searches(frame)
    confirmed, curse = confirmed_settings(frame), winners_curse(frame)
    beside, costs = equal_rules.parity(frame, _budget(spec)), equal_rules.search_costs(frame)
    drawn: dict[str, bytes] = {}
    troubles: list[str] = []
    sections = []
    wheres = places_of(table, spec)
    attacks = table.groupby(["combination", "dataset", "model"], sort=False)["attack"].unique()
    places = [(*where, attack) for where in wheres for attack in sorted(attacks[where], key=_pooled_first)]
    rows = ledger.rows()
    plan = _plan_of(directory, rows)
    apart = tuple(map(str, spec.get("set_apart") or ()))
    again = {one.label for one in plan.searches if one.repeat} if plan else set()
    detectors, combination_of = read_detectors(directory).values(), _combinations(plan)
    held = [row for row in counting(rows, without_backdoor(rows)) if row.get("role") not in BESIDE]
    curves = read_curves(directory, held, troubles)
    for place in places:
        combination, dataset, model, attack = place
        wholes = {"settings": table, "members": members, "searched": searched, "history": history}
        wholes |= {
            "repeated": repeated,
            "confirmed": confirmed,
            "curse": curse,
            "beside": beside,
            "costs": costs,
            "rows": frame,
            "curves": curves,
            "by_rule": by_rule,
        }
        parts = {name: at(whole, place) for name, whole in wholes.items()}
        tables = AttackTables(
            **parts,
            shared=shared_members(at(members, (*place[:-1], ALL_ATTACKS))),
            apart=apart,
            spaces=_conditional_spaces(plan, combination),
        )
        swept = swept_in(at(frame, place) if attack != ALL_ATTACKS else frame[frame["combination"] == combination])
        title = title_of(str(attack), str(dataset), str(model), len(wheres), swept)
        # Of a sweep, the picture is of the first combination.
        picture = f"{TRIGGER_PREFIX}{attack}.png" if combination == wheres[0][0] else "none"
        own = [
            one
            for one in detectors
            if one.search not in again and combination_of.get(one.search, combination) == combination
        ]
        section, images, wrong = attack_section(
            title,
            directory / "figures" / picture,
            tables,
            target_text(tables.rows, spec),
            tuned_table(own, str(attack)),
        )
        drawn |= images
        troubles += wrong
        sections.append(section)
    sweep, images = sweep_section(table, frame, spec)
    drawn |= images
    panels, images = side_by_side(table, frame, curves, reinjection_curves(backdoored(frame)), wheres, apart)
    drawn |= images
    sections = [panels, *sections] if panels else sections
    _write_figures(directory / "figures", drawn)

    notes = [*ledger.damaged, *troubles]
    if (aside := directory / "trials.jsonl.damaged").exists():
        lines = aside.read_bytes().count(b"\n")
        notes.append(f"{lines} damaged or repeated {plural('line', lines)} kept aside in {aside.name}")
    unfinished = [] if plan is None else unfinished_in_words(plan, rows, read_ended(directory))
    judged = decided(directory, rows)
    dropped = [] if plan is None else dropped_in_words(plan, rows)
    content = page(spec, directory, frame, table, members, sections, notes, unfinished, judged, sweep, dropped)
    write_atomically(directory / "report.html", content.encode())
    return directory / "report.html"


def _conditional_spaces(plan: Plan | None, combination: str) -> dict[str, Space]:
    """By the defense's label, the searched spaces of which some parameters belong to some settings alone."""
    searches = plan.searches if plan else ()
    here = [search for search in searches if search.space.conditions and search.cells]
    return {one.cells[0].defense_label: one.space for one in here if one.cells[0].combination == combination}


def _plan_of(directory: Path, rows: Sequence[Mapping[str, Any]]) -> Plan | None:
    """The plan of the study; None where its spec cannot be read: without it nobody knows whether it is finished."""
    try:
        return plan_in(directory, stored_spec(directory), rows)
    except (SpecError, SettingError, PluginError):
        return None


def _budget(spec: Mapping[str, Any]) -> float | None:
    """E per cell that each search could spend, where the study had such a budget."""
    search = spec.get("search")
    budget = search.get("budget_epochs") if isinstance(search, dict) else None
    return float(budget) if isinstance(budget, int | float) else None


def _read_spec(directory: Path) -> dict[str, Any]:
    path = directory / "study.yaml"
    if not path.exists():
        if (directory / "trials.jsonl").exists():
            return {}
        raise FileNotFoundError(f"{directory} is no study folder: it has neither study.yaml nor trials.jsonl")
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(spec, dict):
        raise ValueError(f"{path} must be a YAML mapping, got {type(spec).__name__}")
    return spec


def _write_figures(folder: Path, drawn: Mapping[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in drawn.items():
        write_atomically(folder / f"{name}.png", content)
    for path in folder.glob("*.png"):
        # A figure that these rows no longer support would be read as theirs.
        if (
            path.name.startswith(tuple(f"{name}_" for name in (*FIGURES.names(), SWEEP, *NAMES)))
            and path.stem not in drawn
        ):
            path.unlink()


def _combinations(plan: Plan | None) -> dict[str, str]:
    """Combination of each search, by its label."""
    return {} if plan is None else {search.label: search.cells[0].combination for search in plan.searches}


def _pooled_first(attack: str) -> tuple[bool, str]:
    return attack != ALL_ATTACKS, attack
