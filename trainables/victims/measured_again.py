"""Whether a stored victim is still what it was when it was stored."""

from __future__ import annotations

import torch

from trainables.attacks.triggers import stamp
from trainables.data.images import DataError, Dataset
from trainables.evaluation.metrics import Evaluation
from trainables.machine.provenance import describe_device, versions
from trainables.victims.victim import Victim

# How far a victim may move between two measurements on different machines, see `check_measured_again`.
SLACK_IMAGES, SLACK_SHARE, SLACK_STAMPED = 3, 0.01, 32


def check_measured_again(victim: Victim, evaluation: Evaluation, dataset: Dataset, device: torch.device) -> None:
    """Refuse a victim whose stored rates and triggered images are not what it gives now: code has changed since.

    On the same processor with as many threads, under the same versions, every sum is formed in the same order, and not
    one image may differ. Elsewhere (a GPU, which may choose other kernels; other threads, which add in another order;
    bfloat16, where close images tie) single images fall on the other side of a border: `SLACK_IMAGES` or `SLACK_SHARE`
    of them, whichever is more. An edited model or trigger moves far more.

    Raises:
        DataError: one line with what was stored and what is measured.
    """
    if victim.is_control:  # measured just now, under another victim's trigger
        return
    stored, now, facts = victim.evaluation.full, evaluation.full, victim.facts
    same = device.type == "cpu" and facts["device"] == describe_device(device) and facts["versions"] == versions()
    changes = []
    for measure, n in (("clean_accuracy", now.n_clean), ("asr", now.n_triggered), ("robust_accuracy", now.n_triggered)):
        before, after = getattr(stored, measure), getattr(now, measure)
        if round(abs(before - after) * n) > (0 if same else max(SLACK_IMAGES, SLACK_SHARE * n)):
            changes.append(f"{measure} {before:.4f} -> {after:.4f}")
    if victim.trigger.applies:
        sources = victim.triggered.sources[:SLACK_STAMPED]
        again = stamp(victim.trigger.cpu(), dataset.test.images[sources])
        moved = (again.int() - victim.triggered.images[:SLACK_STAMPED].int()).abs()
        if int(moved.max()) > 0 if same else float((moved > 1).float().mean()) > SLACK_SHARE:
            changes.append("other triggered images")
    if changes:
        raise DataError(
            f"victim {victim.name} is not what was stored ({', '.join(changes)}): the code of its attack or model, or "
            "the store, was changed; remove it from the store, so that it is trained again"
        )
