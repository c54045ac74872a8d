"""Words for generate.py where the code has none beside the thing itself: meaning of spec keys, unit and meaning of columns.

A `description` in the model of the spec, or a typed column, goes before what stands here.
"""

from __future__ import annotations

# Key of a spec -> what it decides.
SPEC_KEYS: dict[str, str] = {
    "name": "Name of the study; its folder is `runs/NAME` unless `--out` says otherwise.",
    "dataset": "The user's task, the one that is measured: see `superft list datasets`, or `folder:PATH` for your own "
    "images (`PATH/train/CLASS/*`, `PATH/test/CLASS/*`, or a zip of the same).",
    "image_size": "Side of the images in pixels; left out: the data set's own.",
    "data_root": "Folder of the data sets' files; left out: the variable `SUPERFT_DATA`, else the user's cache folder.",
    "download": "Fetch the data set if its files are missing. The same as `--download`.",
    "model": "Architecture: see the table below.",
    "width": "Channels of the stem, for `preact_resnet18` and `encoder_resnet18` alone; left out: 64 (digits: 8).",
    "attacks": "Attacks of the study, each once: see [methods](methods.md).",
    "defenses": "Defenses whose settings are searched, the published point first.",
    "baselines": "Defenses that run once per attack and seed, at their published settings.",
    "attack": "Settings of attacks: `attack.NAME.key`.",
    "defense": "Settings of defenses: `defense.NAME.key`. A setting that is searched cannot be fixed here.",
    "seeds": "One victim and one set of trials per seed. It decides poisoning, initial weights and order of the images.",
    "search.trials": "Settings per search. May be raised later; the study is then continued.",
    "search.sampler": "How Optuna chooses settings: see the table below.",
    "search.per": "`attack`: one search per attack. `all`: one search, each setting scored over all attacks.",
    "search.startup_trials": "Settings drawn at random before the sampler learns from results.",
    "search.storage": "Where Optuna keeps its trials: `journal` is a file in the study's folder, or a database URL such "
    "as `postgresql+psycopg://...` (extra `postgres`).",
    "search.budget_epochs": "Equal compute between searches: each ends when its trials have cost this many E per cell, "
    "after at least one and at most `search.trials` settings.",
    "search.history": "For searches of thousands of trials: TPE learns from the newest so many and those on the front. "
    "Left out: from all.",
    "search.space": "A variant of a defense's search space, by name: `super_ft: ordered`.",
    "search.ranges": "Other bounds for searched settings: `super_ft: {iterations: [20, 500]}`; a list of choices for a "
    "setting that has choices. The published value must stay inside.",
    "victim.recipe": "How victims are trained: see the recipes below. Left out: `bb` (digits: `quick`).",
    "victim.epochs": "Passes over the training set, instead of the recipe's.",
    "victim.batch_size": "Images per step, instead of the recipe's.",
    "victim.lr": "Peak learning rate, instead of the recipe's.",
    "victim.poison_rate": "Share of the training set that attacks poison, unless `attack.NAME.poison_rate` says "
    "otherwise. Left out: each attack's own.",
    "scenario.type": "What the task is to the attacker: see [scenarios](#scenarios).",
    "scenario.upstream": "Data set of the attacker, in the scenarios `new-head` and `encoder`.",
    "scenario.head": "`fresh`: defenders with clean images start from a new head, as users do. `probe`: from a head that "
    "was trained on the fixed model, which pruning needs.",
    "scenario.controls": "Run every baseline also on a clean model under the same trigger, in the scenarios `new-head` "
    "and `encoder`.",
    "clean_fraction": "Share of every class that the defender holds. A tenth of it, and at least two images per class, is set apart for validation.",
    "clean_source": "Where the defender's images come from. `overlap`: clean versions of the attacker's images, poisoned "
    "ones included. `unpoisoned`: only images that the attacker left alone. `heldout`: images that the attacker never "
    "had.",
    "precision": "Arithmetic of training and evaluation. `auto`: bfloat16 where the hardware has it.",
    "store": "Where victims are kept and shared: a folder or a URI. Left out: the variable `SUPERFT_STORE`, else the "
    "user's cache folder.",
    "resources.gpus_per_trial": "Share of a GPU per trial: `1/k`, 0 or a whole number; `auto` measures it "
    "([sharing GPUs](cluster.md#sharing-gpus)).",
    "resources.cpus_per_trial": "CPU cores, so threads, per trial.",
    "resources.trial_seconds": "A trial that takes longer is stopped and recorded as failed. Left out: no limit.",
    "tracking": "Tools that follow the study: see [watching a study](results.md#watching-a-study).",
}

# Column of a row -> (unit, meaning). All rates are fractions in [0, 1].
COLUMNS: dict[str, tuple[str, str]] = {
    "study": ("", "Name of the study."),
    "trial": ("", "Name of the setting within the study: `ATTACK/DEFENSE/NUMBER` in a search, "
              "`ATTACK/DEFENSE/baseline`, `ATTACK/DEFENSE/control`. Rows that share it are one setting on several cells."),
    "attack": ("", "Attack of the victim."),
    "defense": ("", "Defense that repaired it."),
    "dataset": ("", "The user's task."),
    "model": ("", "Architecture."),
    "seed": ("", "Seed of the cell."),
    "status": ("", "`ok`; `abstained`: the defense found nothing to repair and returned the model as it was; "
               "`diverged`: training left the finite numbers, counted as ASR 1 and accuracy 0; "
               "`backdoor_not_implanted`: the victim holds no backdoor, so the row measures nothing; "
               "`failed`: no result, see `error`."),
    "asr": ("fraction", "Attack success rate after the repair, on the whole test set: share of triggered images, not of "
            "the target class, that go to it."),
    "clean_accuracy": ("fraction", "Accuracy on clean test images after the repair."),
    "robust_accuracy": ("fraction", "Share of triggered images that get their true class after the repair."),
    "asr_search": ("fraction", "ASR on the search half, the only one that a search sees."),
    "clean_accuracy_search": ("fraction", "Clean accuracy on the search half."),
    "robust_accuracy_search": ("fraction", "Robust accuracy on the search half."),
    "asr_report": ("fraction", "ASR on the report half, the one to read and to print."),
    "clean_accuracy_report": ("fraction", "Clean accuracy on the report half."),
    "robust_accuracy_report": ("fraction", "Robust accuracy on the report half."),
    "asr_before": ("fraction", "ASR of the victim before the repair, whole test set."),
    "clean_accuracy_before": ("fraction", "Clean accuracy of the victim, whole test set."),
    "robust_accuracy_before": ("fraction", "Robust accuracy of the victim, whole test set."),
    "param.NAME": ("", "One column per setting that was searched, published or fixed by the spec."),
    "steps": ("steps", "Optimiser steps of the repair."),
    "forward_samples": ("images", "Images that the repair sent forward through a model."),
    "backward_samples": ("images", "Images whose gradient of the weights the repair computed."),
    "wall_seconds": ("s", "Time of the trial, from the victim to the last measurement."),
    "peak_memory_bytes": ("bytes", "Most memory that the process held: of the GPU where there is one."),
    "device": ("", "Where it ran."),
    "versions": ("", "Versions of Python and of the libraries."),
    "error": ("", "Cause of a failed or diverged trial."),
    "role": ("", "`search`, `baseline`, or `control`: the baseline on a clean model under the same trigger."),
    "n_clean": ("images", "Clean test images behind the rates."),
    "n_triggered": ("images", "Triggered test images behind the rates."),
    "n_clean_report": ("images", "Clean test images of the report half."),
    "n_triggered_report": ("images", "Triggered test images of the report half."),
    "asr_base": ("fraction", "ASR-base: what the trigger does to a clean model. An ASR near it is no backdoor."),
    "false_target_rate": ("fraction", "Share of *untriggered* images of other classes that go to the target class."),
    "asr_before_report": ("fraction", "`asr_before` on the report half."),
    "clean_accuracy_before_report": ("fraction", "`clean_accuracy_before` on the report half."),
    "robust_accuracy_before_report": ("fraction", "`robust_accuracy_before` on the report half."),
    "train_size": ("images", "Images of the attacker's training set, the N of E."),
    "seconds_setup": ("s", "Part of `wall_seconds`: loading the victim, splitting the defender's data."),
    "seconds_repair": ("s", "Part of `wall_seconds`: the defense."),
    "seconds_evaluate": ("s", "Part of `wall_seconds`: measuring the repaired model."),
    "started": ("UTC", "When the trial began."),
    "flags": ("", "Remarks, joined by `;`: `collapsed` (see the [glossary](glossary.md)), `retried_out_of_memory`, "
              "`WHAT_reused` (work of an earlier trial was taken over)."),
    "published": ("", "Whether these are exactly the published settings."),
    "charged_epochs": ("E", "What the search was charged for this row: its own work, and once what it found ready made."),
    "input_backward_samples": ("images", "Images whose gradient of the input alone was computed."),
    "reused_forward_samples": ("images", "Work of an earlier trial that was taken over; likewise the next two columns."),
    "reused_backward_samples": ("images", "See above."),
    "reused_input_backward_samples": ("images", "See above."),
    "shared_work": ("JSON", "Names of the work that this trial made for others or took from them."),
    "eval_forward_samples": ("images", "Images sent forward to measure the repaired model; no part of E."),
    "gpus": ("GPUs", "Share of a GPU that the trial had."),
    "resolved_settings": ("JSON", "All settings of the defense, defaults included."),
    "scenario": ("", "What the task was to the attacker."),
    "victim": ("", "Name of the victim in the store."),
    "asr_max": ("fraction", "Largest share of triggered images that go to any one wrong class."),
    "asr_max_before": ("fraction", "The same before the repair."),
    "asr_including_target_before": ("fraction", "ASR before the repair with images of the target class counted too, as "
                                    "some papers do. Higher, and not to be mixed with `asr`."),
    "accuracy_by_class": ("JSON", "Clean accuracy of each true class."),
    "asr_by_class": ("JSON", "ASR of each true class; `null` for the target class."),
    "detection_removed": ("fraction", "Detectors: share of the training set that was left out."),
    "detection_tpr": ("fraction", "Detectors: share of the poison that was left out."),
    "detection_fpr": ("fraction", "Detectors: share of the clean images that was left out."),
    "detection_precision": ("fraction", "Detectors: share of poison in what was left out."),
    "detection_auroc": ("fraction", "Detectors: area under the ROC curve of the suspicion score, over all classes."),
    "detection_auprc": ("fraction", "Detectors: area under the precision-recall curve of the suspicion score."),
    "flagged_classes": ("", "Detectors: classes that were called attacked."),
    "target_flagged": ("", "Detectors: whether every class that the attacker wants is among them."),
    "false_classes": ("classes", "Detectors: how many others are."),
    "note.NAME": ("", "Further numbers of a method, such as `note.displacement` (how far the weights moved) or "
                  "`note.pruned` (how many channels were cut)."),
}  # fmt: skip
