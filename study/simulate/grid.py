"""A grid of settings to compare searches with: what it comes to on the surrogates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces.space import holds
from study.results.pareto import hypervolume, hypervolume_box
from study.simulate.surrogate import Surrogate
from study.simulate.table import Table
from study.spec.yaml_io import SpecError, parse_yaml
from trainables.registry import nearest


@dataclass(frozen=True)
class Grid:
    """A grid that was tried in full.

    Args:
        trials: its settings.
        epochs: E of all of them, by search.
        targets: box (``hypervolume``, ``corner``) -> search -> what the whole grid comes to.
    """

    trials: int
    epochs: Mapping[str, float]
    targets: Mapping[str, Mapping[str, float]]


def parse_grid(table: Table, given: Sequence[str]) -> list[dict[str, Any]]:
    """All settings of a grid, as searched parameters; what is not named is as published.

    Args:
        given: ``PARAMETER=VALUE,VALUE,...``, one for each parameter that the grid varies.

    Raises:
        SpecError: not such a text, an unknown parameter, or a value outside its range.
    """
    choices: dict[str, list[Any]] = {}
    for text in given:
        name, sign, values = text.partition("=")
        if not sign or not values:
            raise SpecError(f"--grid {text!r}: write PARAMETER=VALUE,VALUE,...")
        if name not in table.space:
            raise SpecError(f"--grid {text!r}: unknown parameter {name!r}: {nearest(name, table.space)}")
        choices[name] = [_value(table, name, value) for value in values.split(",")]
    published = table.search.space.paper_params()
    return [published | dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def _value(table: Table, name: str, text: str) -> Any:
    item, value = table.space[name], parse_yaml(text, "--grid")
    try:
        inside = holds(item, value)
    except (TypeError, ValueError):
        inside = False
    if not inside:
        raise SpecError(f"--grid: {name} = {text} lies outside of what was searched: {item}")
    return value


def measure_grid(
    table: Table, surrogates: Mapping[str, Surrogate], settings: Sequence[Mapping[str, Any]], per: str
) -> Grid:
    """What the settings come to, without noise; the targets of searches per attack, or of one over all of them."""
    points = [table.encoded_params(params) for params in settings]
    answers = {attack: [one.answer(x) for x in points] for attack, one in surrogates.items()}
    groups = {"all": list(surrogates)} if per == "all" else {attack: [attack] for attack in surrogates}
    epochs, whole, corner = dict[str, float](), dict[str, float](), dict[str, float]()
    for group, attacks in groups.items():
        label = f"{group}/{table.label}"
        front = [
            (
                math.fsum(answers[attack][place].asr for attack in attacks) / len(attacks),
                math.fsum(answers[attack][place].clean_accuracy for attack in attacks) / len(attacks),
            )
            for place in range(len(points))
        ]
        before = math.fsum(surrogates[attack].before for attack in attacks) / len(attacks)
        whole[label], corner[label] = hypervolume(front), hypervolume_box(front, before)
        epochs[label] = math.fsum(one.epochs for attack in attacks for one in answers[attack]) / len(attacks)
    return Grid(len(points), epochs, {"hypervolume": whole, "corner": corner})
