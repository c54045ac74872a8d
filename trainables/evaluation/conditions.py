"""The conditions under which a number counts: that a model still classifies, and that a victim holds a backdoor.

Judged from rates each time, never from a verdict that somebody stored: rules change, and numbers stay.
"""

from __future__ import annotations

from dataclasses import dataclass

# A model has collapsed up to this share of the way from the largest class's share of the test set to 1.
COLLAPSED_SHARE = 0.1
IMPLANTED_ASR = 0.8
IMPLANTED_GAIN = 0.5  # of ASR over ASR-base
IMPLANTED_ACCURACY_DROP = 0.05  # below a clean model trained alike
# 0.8 - 0.3 is a little less than 0.5 in binary.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Conditions:
    """What decides, of one model before any repair; rates in [0, 1], on all test images.

    Args:
        asr, clean_accuracy: of the model.
        asr_base: of the trigger on a clean model; None where there is none to compare with.
        control_accuracy: clean accuracy of that model, which was trained alike; None likewise.
        majority_share: of the largest class in the test set; None where it is not known.
        predicted_classes: how many classes the model predicts for clean test images; None likewise.
        test_classes: how many classes the test set has.
    """

    asr: float
    clean_accuracy: float
    asr_base: float | None
    control_accuracy: float | None
    majority_share: float | None
    predicted_classes: int | None
    test_classes: int | None


def collapsed_accuracy(majority_share: float) -> float:
    """Clean accuracy up to which a model has collapsed: predicting the largest class alone gives ``majority_share``."""
    return majority_share + COLLAPSED_SHARE * (1.0 - majority_share)


def why_collapsed(
    clean_accuracy: float, majority_share: float | None, predicted_classes: int | None, test_classes: int | None
) -> str | None:
    """Why a model counts as collapsed, in words; None if it does not. What is not known (None) is not asked."""
    if majority_share is not None and clean_accuracy <= collapsed_accuracy(majority_share) + _ROUNDING:
        return (
            f"the model collapsed: clean accuracy {clean_accuracy:.3f}, where predicting the largest class alone gives "
            f"{majority_share:.3f}"
        )
    if predicted_classes is not None and test_classes is not None and 2 * predicted_classes < test_classes:
        return f"the model collapsed: it predicts {predicted_classes} of {test_classes} classes"
    return None


def why_not_implanted(seen: Conditions) -> str | None:
    """Which of the conditions for a backdoor failed, in words; None if all hold."""
    why = []
    if seen.asr < IMPLANTED_ASR - _ROUNDING:
        why.append(f"ASR {seen.asr:.3f} is below {IMPLANTED_ASR:g}")
    if seen.asr_base is not None and seen.asr - seen.asr_base < IMPLANTED_GAIN - _ROUNDING:
        why.append(
            f"ASR {seen.asr:.3f} is not {IMPLANTED_GAIN:g} above what the trigger does to a clean model "
            f"({seen.asr_base:.3f})"
        )
    collapse = why_collapsed(seen.clean_accuracy, seen.majority_share, seen.predicted_classes, seen.test_classes)
    if collapse is not None:
        why.append(collapse)
    control = seen.control_accuracy
    if control is not None and seen.clean_accuracy < control - IMPLANTED_ACCURACY_DROP - _ROUNDING:
        why.append(
            f"clean accuracy {seen.clean_accuracy:.3f} is more than {100 * IMPLANTED_ACCURACY_DROP:g} points below "
            f"that of a clean model trained alike ({control:.3f})"
        )
    return "; ".join(why) or None
