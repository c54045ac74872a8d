"""One trial, told to people: rates before and after, and what a detector found."""

from __future__ import annotations

from study.run.one_trial import describe
from tests.study.rows import make_row


def test_a_trial_tells_its_rates_before_and_after() -> None:
    told = describe(make_row("badnets/super_ft/baseline", asr=0.25, asr_before=1.0, clean_accuracy=0.9))
    assert "badnets + super_ft on digits, preact_resnet18, seed 0: ok" in told
    assert "attack success rate  1.0000 -> 0.2500" in told
    assert "detector" not in told
    assert "flags" not in told


def test_a_trial_tells_what_a_detector_removed() -> None:
    found = {"detection_removed": 0.15, "detection_tpr": 0.9, "detection_fpr": 0.05, "detection_auroc": 0.97}
    told = describe(make_row("badnets/spectral/baseline", **found, flags=["retraining_reused"]))
    assert "removed 15.0 %, TPR 90.0 %, FPR 5.0 %, AUROC over all classes 0.970" in told
    assert "flags                retraining_reused" in told


def test_a_trial_tells_which_classes_a_detector_flags_and_how_odd_they_are() -> None:
    found = {"flagged_classes": [0, 2], "target_flagged": True, "false_classes": 1}
    told = describe(make_row("badnets/nc/baseline", **found, **{"note.anomaly_indices": [6.61, 0.3, 2.12]}))
    assert "flagged classes 0 (index 6.6), 2 (index 2.1), target found yes, false classes 1" in told


def test_a_diverged_trial_tells_why() -> None:
    told = describe(make_row("badnets/ft/baseline", status="diverged", error="loss is nan at step 3"))
    assert "seed 0: diverged\n  loss is nan at step 3" in told
