"""A trial of known length that measures nothing. Every actor imports what a job needs, as one that measures does."""

from __future__ import annotations

import json
import time
from typing import Any

from ray import tune

from trainables.job import Row


class Sleeper(tune.Trainable):
    """Sleeps, and reports a row of the usual size with the time at which it slept (seconds since the epoch)."""

    def setup(self, config: dict[str, Any], seconds: float = 2.0) -> None:
        self.seconds = seconds
        self.reset_config(config)

    def step(self) -> dict[str, Any]:
        began = time.time()
        time.sleep(self.seconds)
        rate = self.settings["lr_max1"] % 1.0
        row = {"attack": "badnets", "defense": "super_ft", "dataset": "digits", "model": "none", "seed": 0}
        row |= {"status": "ok", "wall_seconds": self.seconds, "asr_search": rate, "clean_accuracy_search": rate**0.5}
        row |= {"began": began, "ended": time.time()}
        row |= {f"filler_{number}": number / 7 for number in range(60)}
        row |= {f"param.{key}": value for key, value in self.settings.items()}
        return {"report": Row(json.dumps(row)), "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.settings = new_config["job"].settings
        return True
