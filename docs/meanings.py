"""What the keys of a spec mean, for generate.py; a `description` in the model of the spec goes before these."""

from __future__ import annotations

# Key of a spec -> what it decides.
SPEC_KEYS: dict[str, str] = {
    "name": "Name of the study; its folder is `runs/NAME` unless `--out` says otherwise.",
    "dataset": (
        "The user's task, the one that is measured: see `superft list datasets`, or `folder:PATH` for your own images"
        " (`PATH/train/CLASS/*`, `PATH/test/CLASS/*`, or a zip of the same)."
    ),
    "image_size": "Side of the images in pixels; left out: the data set's own.",
    "flip": (
        "Whether training mirrors half of the images of `folder:PATH`; left out: it does, as for `cifar10`."
        " `false` where left and right matter: digits, letters, traffic signs. The known data sets say it themselves."
    ),
    "data_root": (
        "Folder of the data sets' files; left out: the variable `SUPERFT_DATA`, else the user's cache folder."
    ),
    "download": "Fetch the data set if its files are missing. The same as `--download`.",
    "model": "Architecture: see the table below.",
    "width": (
        "Channels of the stem, for `preact_resnet18` and `encoder_resnet18`; of the first group, for `airbench_cnn`;"
        " of a head, for `vit_small`; the other models have a fixed one. Left out: 64, of `vit_small` 48 (digits: 8)."
    ),
    "attacks": "Attacks of the study, each once: see [methods](methods.md).",
    "defenses": "Defenses whose settings are searched, the published point first.",
    "baselines": "Defenses that run once per attack and pair of seeds, at their published settings.",
    "attack": "Settings of attacks: `attack.NAME.key`.",
    "defense": (
        "Settings of defenses: `defense.NAME.key`. A setting that is searched cannot be fixed here. "
        "`defense.LABEL.method: NAME` names a defense under a label of your own."
    ),
    "seeds": (
        "The attackers'. One victim and one set of trials per seed. It decides poisoning, initial weights and order of "
        "the images."
    ),
    "defense_seeds": (
        "The defenders': which clean images they hold, and the draws of the repair. Each meets every victim."
    ),
    "search.trials": (
        "Settings per search. May be raised later; the study is then continued. With `search.budget_epochs` a guard "
        "against searches without end: 1,000 unless given."
    ),
    "search.sampler": "How Optuna chooses settings: see the table below.",
    "search.per": (
        "`attack`: one search per attack. `all`: one search, each setting scored over all attacks: means over the "
        "models that hold a backdoor."
    ),
    "search.aggregate": (
        "With `search.per: all`, what a setting's rates over the attacks come to: `mean`, `worst` (the attack it does "
        "worst on), or `cvar:0.25`, the mean of the worst quarter of the attacks. See "
        "[several attacks](#one-search-over-several-attacks)."
    ),
    "search.repeats": (
        "How often each search is made, with other draws of the sampler: the first is the study's, the others show how "
        "much of its hypervolume is luck. Not with `search.budget_epochs`. See [repeated searches](#repeated-searches)."
    ),
    "search.confirm": (
        "On how many fresh attack seeds the front, the knee and the picks of a search are run again once it is over. "
        "See [confirmed settings](#confirmed-settings)."
    ),
    "search.racing.alpha": (
        "With it a setting is dropped before all of its cells are measured once it is dominated beyond doubt; this is "
        "the chance that a search drops any that is not. `search.racing: 0.05` is short for it. See [racing](#racing)."
    ),
    "search.racing.margin": (
        "A setting that is better than a rival by no more than this in one rate, and worse in the other, counts as "
        "dominated. A fraction: `0.005` is half a point."
    ),
    "search.racing.block": "Cells of a setting that run at a time; more where there are many slots for few settings.",
    "search.published": "Begin each search with the published point. `false` allows a space that leaves it out.",
    "search.startup_trials": "Settings drawn, see `search.startup`, before the sampler learns from results.",
    "search.storage": (
        "Where Optuna keeps its trials: `journal` is a file in the study's folder, or a database URL such as "
        "`postgresql+psycopg://...` (extra `postgres`)."
    ),
    "search.budget_epochs": (
        "Equal compute between searches: each may spend this many E per cell, and starts no setting that would "
        "overspend. The published point is shown whatever it costs."
    ),
    "search.startup": "How start-up settings are drawn: `random`, or `qmc`, quasi-random points (Sobol).",
    "search.warm_start": (
        "Folders or URIs of studies whose fronts this one begins with, after the published point: at most "
        "`search.startup_trials` settings, marked in the column `warm_start`. Settings outside the search space are "
        "left out; a study of which none fits is refused."
    ),
    "search.accuracy_floor": (
        "Most clean accuracy that a setting may give up, a fraction of the test images: `0.02` is two points. To the "
        "sampler (`tpe`, `nsga2`, `gp`) settings beyond it are worse than all others; they are recorded like any."
    ),
    "search.history": (
        "TPE learns from the newest so many finished trials and those on the front. Left out: from 1,000, so that a "
        "search of ten thousand stays as quick as one of one thousand."
    ),
    "search.space": (
        "A variant of a defense's search space, by name: `super_ft: ordered`, `super_ft: family` (see [the family of "
        "schedules](#the-family-of-schedules))."
    ),
    "search.ranges": (
        "Other bounds for searched settings: `super_ft: {iterations: [20, 500]}`; a list of choices for a setting "
        "that has choices. The published value must stay inside."
    ),
    "victim.recipe": "How victims are trained: see the recipes below. Left out: `bb` (digits: `quick`).",
    "victim.epochs": "Passes over the training set, instead of the recipe's.",
    "victim.batch_size": "Images per step, instead of the recipe's.",
    "victim.lr": "Peak learning rate, instead of the recipe's.",
    "victim.weight_decay": "Of the optimiser, instead of the recipe's.",
    "victim.poison_rate": (
        "Share of the training set that attacks poison, unless `attack.NAME.poison_rate` says otherwise. Left out: "
        "each attack's own."
    ),
    "victim.require_implanted": (
        "What becomes of trials on a victim that holds [no backdoor](glossary.md#implanted). `skip`: they are not run. "
        "`stop`: the study ends before any trial. `run`: they run, and count in no front."
    ),
    "scenario.type": "What the task is to the attacker: see [scenarios](#scenarios).",
    "scenario.upstream": "Data set of the attacker, in the scenarios `new-head` and `encoder`.",
    "scenario.head": (
        "`fresh`: defenders with clean images start from a new head, as users do. `probe`: from a head that was "
        "trained on the fixed model, which pruning needs."
    ),
    "scenario.controls": (
        "Run every baseline also on a clean model under the same trigger, in the scenarios `new-head` and `encoder`."
    ),
    "scenario.clean_control": (
        "The same in the scenarios `standalone` and `same-label`: what a defense costs a model without a backdoor, and "
        "whether a detector finds one there. `undefended` only measures the clean model as it is, beside the others "
        "(the baseline `none`)."
    ),
    "clean_fraction": (
        "Share of every class that the defender holds. A tenth of it, and at least two images per class, is set apart"
        " for validation."
    ),
    "clean_source": (
        "Where the defender's images come from. `overlap`: clean versions of the attacker's images, poisoned ones "
        "included. `unpoisoned`: only images that the attacker left alone. `heldout`: images that the attacker never "
        "had. `folder:PATH`: other images of classes of the same names, in PATH/train/CLASS/* "
        "(beside them PATH/test/CLASS/*, which is not used); `clean_fraction` is of these, and classes that the task "
        "does not have are left out."
    ),
    "label_noise": (
        "Share of the defender's clean images, validation included, whose label is wrong: drawn by the seeds, every "
        "wrong class equally likely. The defender does not know which."
    ),
    "residual_poison": (
        "Share of the defender's clean images, validation included, that carry the victim's trigger and the label that "
        "the attacker wants. The defender does not know which."
    ),
    "precision": "Arithmetic of training and evaluation. `auto`: bfloat16 where the hardware has it.",
    "sweep": (
        "Repeats the study over all combinations of values of other keys: `sweep: {clean_fraction: [0.1, 0.2, 1]}`; "
        "see [sweeps](#sweeps)."
    ),
    "curve.every": (
        "Measures ASR and accuracies along every repair: `epoch` or a number of optimiser steps; see "
        "[curves](#curves). Left out: after the repair alone."
    ),
    "keep": (
        "Whose repaired models stay in the store, as safetensors: those of the settings on a search's `front`, of "
        "`all` trials, or of `none`. See [kept models](#kept-models)."
    ),
    "store": (
        "Where victims are kept and shared: a folder or a URI. Left out: the variable `SUPERFT_STORE`, else the "
        "user's cache folder."
    ),
    "resources.gpus_per_trial": (
        "Share of a GPU per trial: `1/k`, 0 or a whole number; `auto` measures it ([sharing "
        "GPUs](cluster.md#sharing-gpus))."
    ),
    "resources.cpus_per_trial": (
        "CPU cores, so threads, per trial, in a study and in `superft trial`; another number gives other results."
    ),
    "resources.trial_seconds": ("A trial that takes longer is stopped and recorded as failed. Left out: no limit."),
    "plugins": (
        "Modules or files of somebody else that add attacks, defenses, models, data sets, samplers or figures: see "
        "[adding your own](extending.md)."
    ),
    "set_apart": (
        "Defenses or baselines that the figures of the whole study draw grey and open, or grey and broken (over a "
        "sweep thin and broken): what was added to compare with, such as another paper's methods beside those of a "
        "figure that is drawn again."
    ),
    "tracking": "Tools that follow the study: see [watching a study](results.md#watching-a-study).",
    "aftermath.trials": (
        "Whose repaired models the [aftermath](#aftermath-what-becomes-of-a-repaired-model) is asked of: the "
        "`baselines`, or `all`: every searched setting too, at the same cost each."
    ),
    "aftermath.reinjection.rates": (
        "Shares of the attacker's training set that carry the trigger again; `original`: the attack's own. All of "
        "`aftermath.reinjection` holds only where it is given: `aftermath: {reinjection: {}}` takes the defaults."
    ),
    "aftermath.reinjection.counts": (
        "Numbers of images that carry the trigger again. 0 asks whether clean training alone brings the backdoor back."
    ),
    "aftermath.reinjection.lrs": "Constant learning rates of SGD with momentum 0.9; every amount is tried at each.",
    "aftermath.reinjection.epochs": "Passes over the attacker's training set.",
    "aftermath.reinjection.batch_size": "Images per step.",
    "aftermath.retuning.share": (
        "Share of the attacker's training set that is fine-tuned on, for 5 epochs. All of `aftermath.retuning` holds "
        "only where it is given."
    ),
    "aftermath.retuning.counts": "How many of these images carry the trigger; 0 is the comparison.",
    "aftermath.retuning.draws": "Draws of the images, each a run of its own: with so few, which they are decides much.",
    "aftermath.connectivity.points": (
        "Points on the straight way from the repaired weights back to the backdoored ones, both ends included. All of "
        "`aftermath.connectivity` holds only where it is given: `aftermath: {connectivity: {}}`."
    ),
    "aftermath.membership.images": (
        "Members, and as many non-members; half of both set thresholds, half is judged. Left out: 5,000, or as many "
        "as the data set has. All of `aftermath.membership` holds only where it is given."
    ),
    "aftermath.membership.attacks": (
        "`loss`: one threshold on the loss. `entropy`: modified entropy, a threshold per class. `shadow`: a network "
        "that learned on one shadow model. `lira`: offline LiRA, over `shadows` shadow models."
    ),
    "aftermath.membership.shadows": "Shadow models of `lira`, each trained on half of the images that are not asked.",
    "aftermath.membership.adaptive": (
        "Shadow models go through the same attack and the same repair. `false`: they are trained on clean images and "
        "not repaired, which is cheaper and measures a weaker asker."
    ),
}
