"""What every test shares: one thread (so that results do not depend on the machine's cores) and small tasks."""

import logging
import os
import sys
from collections.abc import Iterator

import pytest
import torch

from trainables.data.images import Dataset
from trainables.models.classifier import Classifier
from trainables.plugins import load, origin
from trainables.registry import Registry
from trainables.storage.store import Store
from trainables.training.trainer import Trainer
from trainables.victims.make import make_trainer
from trainables.victims.victim import Victim

# The suites are imported, not collected: without this their assertions would fail without showing values.
pytest.register_assert_rewrite(
    *(f"superft.testing.{kind}_checks" for kind in ("attack", "trigger", "defense", "space")),
    *(f"superft.testing.{kind}_checks" for kind in ("model", "data", "sampler")),
    *(f"superft.testing.{name}" for name in ("attack_settings", "defense_settings", "claims", "refusals")),
)

from superft.testing import toy_victims  # noqa: E402 - after the line above, as everything of ours
from tests.network import leave_the_network  # noqa: E402
from tests.toy import toy_spec  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="session", autouse=True)
def _own_network() -> None:
    """Servers that tests start are reachable from the tests alone; see `network` for where this is not possible."""
    if "SUPERFT_TEST_POSTGRES" not in os.environ:  # that one is somewhere else
        leave_the_network()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _log_levels() -> Iterator[None]:
    """The command line sets levels of the whole process; the next test must not see them."""
    names = ["superft", "trainables"]
    levels = [logging.getLogger(name).level for name in names]
    yield
    for name, level in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def _as_before() -> Iterator[None]:
    """What a test registers, and the modules that it imports for that, are forgotten afterwards."""
    registries = Registry.all()
    for registry in registries:
        registry.names()  # all of ours are there, before somebody else's come
    kept = [(registry, dict(registry._things), dict(registry._modules)) for registry in registries]
    plugins, modules = dict(load._loaded), set(sys.modules)
    yield
    for registry, things, by in kept:
        registry._things, registry._modules = things, by
    for name in set(load._loaded) - set(plugins):
        del load._loaded[name]
    for name in set(sys.modules) - modules:
        if not name.startswith(("trainables", "study", "search_spaces", "superft", "tests", "torch", "numpy")):
            file = getattr(sys.modules[name], "__file__", None) or ""
            if "site-packages" not in file and "/tmp" in file:
                del sys.modules[name]
    origin._source_of.cache_clear()


@pytest.fixture(scope="session")
def toy() -> Dataset:
    """200 + 100 images of 10 shapes, 16 pixels. Shared: do not modify."""
    return toy_victims.toy()


@pytest.fixture
def trainer(toy: Dataset) -> Trainer:
    """A bench on the CPU with seed 0 and models of width 2."""
    return make_trainer(toy_spec("clean"), toy, CPU, seed=0)


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that all tests of a session may read victims from."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def toy_victim(toy_store: Store) -> Victim:
    """A BadNets victim that knows its training set somewhat: defenses that look at accuracies have something to see.

    Shared: do not modify.
    """
    return toy_victims.obtain(toy_store)


@pytest.fixture(scope="session")
def learned() -> Classifier:
    """A clean model of width 2 that is right about most of its training images. Shared: do not modify."""
    return toy_victims.accurate_model()
