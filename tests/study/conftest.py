"""What the tests of `study` share: a quiet Optuna, and no trace of the machine's own configuration."""

from pathlib import Path

import optuna
import pytest

# Imported, not collected: without this its assertions would fail without showing values.
pytest.register_assert_rewrite("commands")


@pytest.fixture(scope="session", autouse=True)
def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads or fills the user's store."""
    monkeypatch.setenv("SUPERFT_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
