"""Samplers by name. The spec checks the name; each sampler is one file of ``study.search.samplers``, or a plug-in's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from trainables.registry import Registry, SettingError

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

Make = TypeVar("Make", bound=Callable[..., Any])

ASKED = 3  # settings asked of a sampler before it is trusted with a study


@dataclass(frozen=True)
class Sampler:
    """A registered sampler.

    Args:
        description: one line for ``superft list samplers``.
        make: (seed, startup_trials) -> Optuna sampler, by keyword; with ``history`` too where it learns from that.
        history: whether it takes ``search.history``, the number of trials to learn from (None: all).
        constraints: whether it prefers trials that keep Optuna's constraints; ``search.accuracy_floor`` is one.
        conditions: whether it searches spaces of which some parameters are there only for some settings; it then takes
            ``conditions``, whether this one is such a space.
    """

    description: str
    make: Callable[..., BaseSampler]
    history: bool = False
    constraints: bool = False
    conditions: bool = False


SAMPLERS: Registry[Sampler] = Registry("sampler", "study.search.samplers")


def register(
    name: str, description: str, *, history: bool = False, constraints: bool = False, conditions: bool = False
) -> Callable[[Make], Make]:
    """Decorator: make the sampler that a function builds known as ``name``; see `Sampler`."""

    def enter(make: Make) -> Make:
        SAMPLERS.add(name, Sampler(description, make, history, constraints, conditions))
        return make

    return enter


def make_sampler(
    name: str, *, seed: int, startup_trials: int, history: int | None = None, conditions: bool = False
) -> BaseSampler:
    """The Optuna sampler called ``name``.

    Args:
        seed: any whole number; samplers take 32 bits of it.
        startup_trials: settings drawn before it learns, where it learns.
        history: trials that it learns from, the newest; None: all.
        conditions: whether only some settings of the space have some of its parameters, see `check_conditions`.

    Raises:
        SettingError: there is none of that name.
    """
    sampler = SAMPLERS.get(name)
    own: dict[str, Any] = {"history": history} if sampler.history else {}
    own |= {"conditions": conditions} if sampler.conditions else {}
    return sampler.make(seed=seed % 2**32, startup_trials=startup_trials, **own)


@cache
def check_sampler(name: str) -> None:
    """Refuse a sampler that cannot search for two objectives: it is asked on a study in memory (SettingError)."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space = {
        "a": FloatDistribution(1e-4, 1.0, log=True),
        "b": IntDistribution(1, 100),
        "c": CategoricalDistribution(["x", "y"]),
    }
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        sampler = make_sampler(name, seed=0, startup_trials=1)
        if not isinstance(sampler, optuna.samplers.BaseSampler):
            raise SettingError(f"sampler {name}: must make an Optuna sampler, got {type(sampler).__name__}")
        study = optuna.create_study(sampler=sampler, directions=["minimize", "maximize"])
        for number in range(ASKED):
            study.tell(study.ask(dict(space)), (1 / (1 + number), 0.5))
    except SettingError:
        raise
    except Exception as error:  # whatever a sampler raises, it is bad input here
        why = " ".join(str(error).split())
        raise SettingError(
            f"sampler {name} cannot search for two objectives (ASR down, clean accuracy up): "
            f"{type(error).__name__}: {why}"
        ) from error
    finally:
        optuna.logging.set_verbosity(verbosity)


def check_constraints(name: str) -> None:
    """Refuse a sampler that knows no constraints, and an Optuna whose trials cannot hold any (ValueError)."""
    import optuna

    if not SAMPLERS.get(name).constraints:
        able = ", ".join(other for other in SAMPLERS.names() if SAMPLERS.get(other).constraints)
        raise ValueError(f"has no meaning with sampler {name}, which knows no constraints; leave it out, or use {able}")
    if not hasattr(optuna.trial.Trial, "set_constraint"):
        raise ValueError(f"needs Optuna 5 or later, this is {optuna.__version__}")


def check_conditions(name: str, startup: str, key: str) -> None:
    """Refuse, for a space with conditions, a sampler or a start that cannot search it (SettingError).

    Args:
        name: of the sampler.
        startup: how the first settings are drawn.
        key: where the space was chosen.
    """
    why = f"{key} has parameters that only some settings have"
    if not SAMPLERS.get(name).conditions:
        able = ", ".join(other for other in SAMPLERS.names() if SAMPLERS.get(other).conditions)
        raise SettingError(f"{why}, and sampler {name} does not learn those; use {able}")
    if startup != "random":
        raise SettingError(f"{why}, which have no place in a sequence of points; leave search.startup: {startup} out")
