"""Reports of tests take few resamples of importance: what the intervals are worth is tested where they are computed."""

from __future__ import annotations

import pytest

from study.results import importance


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "RESAMPLES", 4)
    monkeypatch.setattr(importance, "CHANCE_COLUMNS", 1)
