"""A study as one run of Weights & Biases; WANDB_MODE=offline keeps it in the study's folder for `wandb sync`."""

from __future__ import annotations

import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from study.spec.schema import StudySpec
from study.spec.trackers import register
from study.spec.yaml_io import SpecError
from study.tracking.files import front_table, kept_files, parameters
from study.tracking.marks import Home
from study.tracking.points import Point
from trainables.storage.remote import Place

PROJECT = "superft"
OPEN_SECONDS = 30.0
CLOSE_SECONDS = 15.0  # what is not sent by then stays on the disk


def check(directory: Place) -> None:
    """Refuse a missing login, which W&B would ask for in the terminal (SpecError)."""
    import wandb

    settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
    known = settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or _in_netrc(settings.base_url)
    if settings.mode == "online" and not known:
        raise SpecError("tracking: wandb has no API key; wandb login, set WANDB_API_KEY, or WANDB_MODE=offline")


def _in_netrc(url: str) -> bool:
    """Whether `wandb login` has left a key for the server."""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return path.is_file() and netrc.netrc(path).authenticators(urlsplit(url).hostname or "") is not None


@register("wandb", "a run of Weights & Biases", module="wandb", extra="wandb", check=check)
class WandB:
    """See `follower.Tracker`. WANDB_PROJECT names the project; default `PROJECT`."""

    def __init__(self, spec: StudySpec, home: Home) -> None:
        self._spec, self._home = spec, home
        self._project = os.environ.get("WANDB_PROJECT", PROJECT)
        self.place = "/".join([*(os.environ.get(f"WANDB_{key}", "") for key in ("BASE_URL", "ENTITY")), self._project])
        self._groups: set[str] = set()

    def open(self, run: str | None) -> str:
        import wandb

        self._run = wandb.init(
            project=self._project,
            name=self._spec.name,
            id=run,
            resume="allow",
            dir=str(self._home.path),
            config=parameters(self._spec),
            settings=wandb.Settings(
                console="off",  # the study's own lines stay as they are
                init_timeout=OPEN_SECONDS,
                finish_timeout=CLOSE_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        return str(self._run.id)

    def link(self) -> str:
        return f"wandb sync {Path(self._run.dir).parent}" if self._run.offline else str(self._run.url)

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            step = f"{point.group}/step"
            if point.group not in self._groups:  # its curves run over its own steps, not over W&B's count of calls
                self._groups.add(point.group)
                self._run.define_metric(step)
                self._run.define_metric(f"{point.group}/*", step_metric=step)
            self._run.log(
                {step: point.step, **{f"{point.group}/{name}": value for name, value in point.values.items()}}
            )

    def close(self, finished: bool) -> None:
        import wandb

        for path in kept_files(self._home.path):
            self._run.save(str(path), base_path=str(self._home.path), policy="now")
        self._run.log({"front": wandb.Table(dataframe=front_table(self._home.path))})
        self._run.finish(exit_code=0 if finished else 1)
