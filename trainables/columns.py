"""The columns of a trial's row: type, unit and meaning of each, stated once, where rows are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ColumnKind = Literal["text", "count", "number", "flag", "list", "json"]

SHARE, SECONDS, IMAGES, BYTES = "fraction", "s", "images", "bytes"


@dataclass(frozen=True)
class Column:
    """One column of the ledger.

    Args:
        name: key in ``trials.jsonl`` and heading in ``trials.csv``.
        kind: ``text``; ``count`` (a whole number); ``number``; ``flag`` (true or false); ``list`` (joined with ``;`` in
            the table); ``json`` (a text that holds JSON).
        meaning: for a reader who sees only the table.
        unit: of a number; empty where there is none. Fractions lie in [0, 1].
    """

    name: str
    kind: ColumnKind
    meaning: str
    unit: str = ""


def _rates(suffix: str, where: str) -> tuple[Column, ...]:
    return (
        Column(f"asr{suffix}", "number", f"attack success rate after the repair, {where}", SHARE),
        Column(f"clean_accuracy{suffix}", "number", f"clean test images classified right, {where}", SHARE),
        Column(f"robust_accuracy{suffix}", "number", f"triggered images given their true label, {where}", SHARE),
    )


def _rates_before(suffix: str, where: str) -> tuple[Column, ...]:
    return (
        Column(f"asr_before{suffix}", "number", f"attack success rate of the victim, {where}", SHARE),
        Column(f"clean_accuracy_before{suffix}", "number", f"clean accuracy of the victim, {where}", SHARE),
        Column(f"robust_accuracy_before{suffix}", "number", f"robust accuracy of the victim, {where}", SHARE),
    )


# Known before the trial runs: also in the row of a trial that failed.
CELL_COLUMNS = (
    Column("attack", "text", "registered name of the attack"),
    Column("defense", "text", "registered name of the defense"),
    Column("defense_label", "text", "its name in this study; the registered one unless the spec gives another"),
    Column("dataset", "text", "the data set that is measured, the user's"),
    Column("model", "text", "registered name of the architecture"),
    Column("seed", "count", "of the attacker: the victim's poison, first weights and training"),
    Column("defense_seed", "count", "of the defender: which clean images he holds, and the draws of the repair"),
)
CONDITION_COLUMNS = (
    Column("scenario", "text", "what the data set is to the attacker: standalone, same-label, new-head, encoder"),
    Column("clean_fraction", "number", "of every class of the training set, what a defender with data holds", SHARE),
    Column("clean_source", "text", "where a defender's images come from: overlap, unpoisoned, heldout, folder:PATH"),
    Column("label_noise", "number", "of a defender's clean images, those with a wrong label", SHARE),
    Column("residual_poison", "number", "of a defender's clean images, those with trigger and target label", SHARE),
    Column("poison_rate", "number", "of the attacker's training set; missing where the attack has none", SHARE),
    Column("width", "count", "channels of the model's first stage; missing where the architecture fixes it"),
    Column("combination", "text", "of a study that sweeps keys: which of its combinations; else empty"),
    Column("swept", "json", "the keys of that combination and their values; missing where nothing is swept"),
)
STATUS = Column(
    "status", "text", "ok, abstained (nothing to repair was found), diverged, failed or backdoor_not_implanted"
)
FLAGS = Column(
    "flags",
    "list",
    "remarks: WHAT_reused (ready-made work was taken), retried_out_of_memory, victim_trained_otherwise (than the trial "
    "computes: see victim_trained_on)",
)
RESULT_COLUMNS = (
    *_rates("", "all test images"),
    *_rates("_search", "the half that the search reads"),
    *_rates("_report", "the half that people read"),
    *_rates_before("", "all test images"),
    Column("steps", "count", "optimiser steps of the repair"),
    Column("forward_samples", "count", "images that went forward through the model in the repair", IMAGES),
    Column("backward_samples", "count", "images whose gradients of the weights were taken", IMAGES),
    Column("wall_seconds", "number", "time of the whole trial, from its first line to its row", SECONDS),
    Column("peak_memory_bytes", "count", "most memory of the card, or of the process on a CPU", BYTES),
    Column("device", "text", "the card, or the processor and its threads"),
    Column("versions", "text", "of superft, Python and the libraries that compute"),
    Column("error", "text", "why there is no result, what diverged, or why the victim holds no backdoor"),
    Column(
        "collapsed", "flag", "the model hardly classifies any more (docs/glossary.md): its ASR is 0 or 1 by accident"
    ),
    Column(
        "moved",
        "flag",
        "whether the repair moved the model: no where its training loss never rose and its weights stayed near; "
        "missing where it edits a part of the model or has a loss of its own, or there is no repair",
    ),
    Column("loss_rise", "number", "how far the repair's training loss rose above that of its first batch", "nats"),
    Column("displacement", "number", "distance of the repaired weights from the victim's"),
    Column("displacement_share", "number", "that distance over the length of the victim's weights"),
    Column("der", "number", "defense effectiveness rating on all test images; 0.5 is no change", SHARE),
    Column("n_clean", "count", "clean test images", IMAGES),
    Column("n_triggered", "count", "triggered test images", IMAGES),
    Column("n_clean_report", "count", "clean test images of the report half", IMAGES),
    Column("n_triggered_report", "count", "triggered test images of the report half", IMAGES),
    Column("asr_base", "number", "success of the trigger on a model without backdoor", SHARE),
    Column("false_target_rate", "number", "clean images of other classes that go to the target class", SHARE),
    *_rates_before("_report", "the half that people read"),
    Column("asr_max", "number", "largest share of triggered images that go to any one wrong class", SHARE),
    Column("asr_max_before", "number", "the same of the victim", SHARE),
    Column(
        "asr_including_target_before",
        "number",
        "ASR of the victim when images that already are of the target class count too; some papers report this",
        SHARE,
    ),
    Column("accuracy_by_class", "json", "clean accuracy per true class, a list", SHARE),
    Column("asr_by_class", "json", "ASR per true class, a list", SHARE),
    Column("target_label", "count", "the class that triggered images should go to; missing where it differs by class"),
    Column("target_class", "text", "its name; missing where the attacker had another data set"),
    Column("train_size", "count", "images of the attacker's training set: the N of the unit E", IMAGES),
    Column("image_size", "count", "side of the images", "pixels"),
    Column("flip", "flag", "whether training mirrored half of the images"),
    Column("input_backward_samples", "count", "images whose gradient of the pixels alone was taken", IMAGES),
    Column("reused_forward_samples", "count", "forward work that an earlier trial had done, found ready made", IMAGES),
    Column("reused_backward_samples", "count", "backward work, likewise", IMAGES),
    Column("reused_input_backward_samples", "count", "work on gradients of pixels, likewise", IMAGES),
    Column("shared_work", "json", "names of the work that was made for others, and of that which was reused"),
    Column(
        "eval_forward_samples",
        "count",
        "images that the evaluator sent through the model, those of a curve included",
        IMAGES,
    ),
    Column("seconds_setup", "number", "of wall_seconds: loading the victim and the defender's data", SECONDS),
    Column("seconds_repair", "number", "of wall_seconds: the defense", SECONDS),
    Column("seconds_evaluate", "number", "of wall_seconds: the measurement", SECONDS),
    Column("started", "text", "when the trial began, UTC, ISO 8601"),
    FLAGS,
    Column("victim", "text", "name of the victim in the store"),
    Column("victim_trained_on", "text", "kind of device, threads and precision that the victim was trained with"),
    Column("resolved_settings", "json", "all settings of the defense, defaults included"),
    Column("threads", "count", "processor threads of the trial: sums in another order can flip single images"),
    Column("precision", "text", "of the arithmetic: float32 or bfloat16"),
    Column("plugins", "text", "names and versions of the plug-ins that attack, defense, model and data come from"),
    Column("code", "text", "version of superft, and the commit where it runs from a repository"),
    Column(
        "batch", "count", "images per optimiser step of the largest stage; missing where nothing was trained", IMAGES
    ),
)
DETECTION_COLUMNS = (
    Column("detection_removed", "number", "share of the training set that the detector removed", SHARE),
    Column("detection_tpr", "number", "share of the poison that it removed", SHARE),
    Column(
        "detection_ceiling_share", "number", "most of the poison that any detector finds by removing as many", SHARE
    ),
    Column("detection_ceiling_classes", "number", "the same, removing as many of every class as this one did", SHARE),
    Column("detection_fpr", "number", "share of the clean images that it removed", SHARE),
    Column("detection_precision", "number", "share of poison among what it removed", SHARE),
    Column("detection_removed_target", "number", "share of the target class that it removed", SHARE),
    Column("detection_auroc", "number", "chance that a poisoned image is more suspect than a clean one", SHARE),
    Column("detection_auprc", "number", "area under precision and recall of the suspicion", SHARE),
    Column("detection_auroc_target", "number", "detection_auroc within the target class alone", SHARE),
    Column("detection_auprc_target", "number", "detection_auprc within the target class alone", SHARE),
    Column("flagged_classes", "list", "labels that the detector calls attacked"),
    Column("target_flagged", "flag", "whether all classes that the attacker wants are among them"),
    Column("false_classes", "count", "how many others are among them"),
)
# Only where a study asks for the aftermath; no part of what a repair costs or takes.
AFTERMATH_COLUMNS = (
    Column("reinjection", "json", "how the backdoor came back in further training on poisoned data, a list of curves"),
    Column("retuning", "json", "whether few poisoned images in a short fine-tuning bring it back, a list of runs"),
    Column("connectivity", "json", "how the backdoor returns on the straight way back to the victim, a list of walks"),
    Column("membership", "json", "how well membership of the training set was told, a list of groups and attacks"),
    Column("aftermath_steps", "count", "optimiser steps of the aftermath: re-injection, shadow models, their repairs"),
    Column("aftermath_forward_samples", "count", "images that went forward in the aftermath", IMAGES),
    Column("aftermath_backward_samples", "count", "images whose gradients of the weights were taken in it", IMAGES),
    Column("aftermath_input_backward_samples", "count", "images whose gradient of the pixels was taken in it", IMAGES),
    Column("seconds_aftermath", "number", "time of the aftermath, beside wall_seconds", SECONDS),
)
# Only where a study keeps models, see the key `keep` of a spec.
KEPT_COLUMNS = (
    Column("kept", "text", "name of the file in the store that holds the repaired model; missing: it was not kept"),
    Column("kept_sha256", "text", "SHA-256 of that file"),
    Column("not_kept", "text", "why the repaired model could not be kept, where it was to be"),
    Column("seconds_keep", "number", "time of writing the repaired model, beside wall_seconds", SECONDS),
)
# What a trial that is run again need not repeat: when, where and how fast it ran, and what it found ready made.
CIRCUMSTANCES = frozenset(
    {
        *("study", "node", "gpus", "schema", "charged_epochs", "started"),
        *("device", "versions", "code", "plugins", "threads", "precision", "victim_trained_on", "victim"),
        *("wall_seconds", "seconds_setup", "seconds_repair", "seconds_evaluate", "peak_memory_bytes"),
        *("flags", "shared_work", "forward_samples", "backward_samples", "input_backward_samples"),
        *("seconds_aftermath", "aftermath_steps", "aftermath_forward_samples", "aftermath_backward_samples"),
        "aftermath_input_backward_samples",
        *("kept", "kept_sha256", "not_kept", "seconds_keep"),
        *("reused_forward_samples", "reused_backward_samples", "reused_input_backward_samples", "steps"),
    }
)
