"""Reports of tests take few resamples of importance: what the intervals are worth is tested where they are computed."""

from __future__ import annotations

import pytest

from study.results import importance


def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """For reports that a module's tests share: made before any test's own changes."""
    monkeypatch.setattr(importance, "RESAMPLES", 4)
    monkeypatch.setattr(importance, "CHANCE_COLUMNS", 1)


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    few_resamples(monkeypatch)
