"""A user's model that knows the toy task, trained once."""

import pytest

from tests.trainables.foreign.nets import PlainCNN, trained


@pytest.fixture(scope="session")
def own_model() -> PlainCNN:
    """Shared: do not modify."""
    return trained()
