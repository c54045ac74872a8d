"""Every suite over what is registered, or what the options of `superft.testing.options` choose."""

from __future__ import annotations

from typing import Any

import pytest

from superft.testing.registered import KINDS, chosen, is_at_hand, subject
from superft.testing.threads import one_thread


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    kind = metafunc.function.__name__.removeprefix("test_")
    cases = [(name, check) for name in chosen(metafunc.config, kind) for check in KINDS[kind].checks]
    metafunc.parametrize(("name", "check"), cases, ids=[f"{name}-{check.__name__}" for name, check in cases])


def test_attack(name: str, check: Any) -> None:
    with one_thread():
        check(subject("attack", name))


def test_defense(name: str, check: Any) -> None:
    with one_thread():
        check(subject("defense", name))


def test_model(name: str, check: Any) -> None:
    with one_thread():
        check(subject("model", name))


def test_data(name: str, check: Any, request: pytest.FixtureRequest) -> None:
    asked_for = name in request.config.getoption("--data", [])
    if not asked_for and not is_at_hand(name):
        pytest.skip(f"the files of {name} are not on this machine")
    check(subject("data", name))


def test_sampler(name: str, check: Any, request: pytest.FixtureRequest) -> None:
    it = subject("sampler", name)
    it.modules = tuple(request.config.getoption("--plugin", []))
    with one_thread():
        check(it)
