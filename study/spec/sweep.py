"""The combinations of a study's sweep, each with a spec of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from study.spec.combinations import as_json, combinations_of, names_of, with_values
from study.spec.schema import StudySpec


@dataclass(frozen=True)
class Combination:
    """One combination of the values of a sweep.

    Args:
        name: as in ids and in the column ``combination``; empty where the study sweeps nothing.
        values: of the swept keys.
        spec: of the study with these values, and without a sweep.
    """

    name: str
    values: Mapping[str, Any]
    spec: StudySpec

    @property
    def json(self) -> str:
        """The values as in the column ``swept``."""
        return as_json(dict(self.values))


def combinations(spec: StudySpec) -> tuple[Combination, ...]:
    """All of a study, in the order of its sweep; the study itself where it sweeps nothing.

    Raises:
        ValidationError, SettingError, SpecError: a value that its key does not take, or that does not fit the others.
    """
    if not spec.sweep:
        return (Combination("", {}, spec),)
    settings = spec.model_dump(mode="json") | {"plugins": [part.model_dump() for part in spec.plugins]}
    return tuple(
        Combination(name, values, StudySpec.model_validate(with_values(settings, values)))
        for name, values in zip(names_of(spec.sweep), combinations_of(spec.sweep), strict=True)
    )
