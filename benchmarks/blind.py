"""Rules that choose super-FT's settings without an ASR, each on attacks that it never saw: the study `blind`.

    python -m benchmarks.blind --store DIR --attacks badnets blended --seeds 0 --candidates few
    python -m benchmarks.blind --store DIR --stability          # 6 attacks x 3 seeds
    python -m benchmarks.blind --summary                        # the tables of what is there

For every attack and seed a victim is trained (or taken from the store), every rule chooses with nothing but the model
and a tenth of the training images, and what it chose is measured on the whole test set. `planted` draws no trigger of
the attack's own kind (LIKE), so that it too has never seen the attack; `planted_like` may use all kinds. `transfer`
takes the candidate that was best on the other attacks. The oracle knows the ASR of all candidates: `regret` is the ASR
of a choice less the least ASR of any candidate with at least its clean accuracy. E counts all the work of choosing, as
if no other rule had been there, and the repair. `spread` is the mean distance in ASR to the choices of the same rule
with one of its own settings changed.

Rows go to ``results/blind.jsonl``, one per candidate, rule and variant; a pair of attack and seed that stands there is
not run again under the same conditions.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.common import RESULTS, machine
from study.record.cost import epochs
from study.results.intervals import reach
from study.results.transfer import best_elsewhere
from trainables.choice.base import CANDIDATES, RULES, Attempt, Candidate, Choice, Rule, Suspect, super_ft
from trainables.choice.own_triggers import KINDS
from trainables.data.load import DataSource
from trainables.defenses.base import DEFENSES, CleanData
from trainables.evaluation.metrics import Evaluation, evaluate
from trainables.job import Cell
from trainables.machine.threads import on_threads
from trainables.storage.store import Store
from trainables.training.loop import Counters
from trainables.training.recipes import RECIPES
from trainables.trial import assets_for, defender_seed
from trainables.victims.make import make_trainer
from trainables.victims.spec import VictimSpec
from trainables.victims.victim import Victim
from trainables.workbench import Workbench

LEDGER = RESULTS / "blind.jsonl"
# Those that take on digits; `sig` and `adap_blend` do not (ASR 0.00 to 0.03), `inputaware` with one seed of three.
ATTACKS = ("badnets", "blended", "wanet", "imc", "lf", "sbl")
# Attack -> the kind of own trigger that is most like it.
LIKE = {
    "badnets": "patch",
    "imc": "patch",
    "inputaware": "patch",
    "sbl": "patch",
    "blended": "noise",
    "adap_blend": "noise",
    "sig": "waves",
    "lf": "waves",
    "wanet": "waves",
}
FEW = tuple(super_ft(length, peak) for length, peak in ((25, 0.1), (60, 0.03), (60, 0.1), (120, 0.03), (120, 0.1)))
GRIDS = {"all": CANDIDATES, "few": FEW}
# Rule -> settings that are changed one at a time.
CHANGES: dict[str, tuple[dict[str, Any], ...]] = {
    "planted": ({"margin": 0.02}, {"margin": 0.1}, {"gone": 0.05}, {"gone": 0.2}, {"finalists": 1}),
    "validation": ({"displacement_share": 0.2}, {"displacement_share": 0.45}),
    "highest_peak": ({"drop": 0.02}, {"drop": 0.1}),
    "range_test": ({"factor": 2.0}, {"factor": 8.0}),
}
GONE = 0.1  # ASR up to which a backdoor counts as removed


@dataclasses.dataclass
class Case:
    """A victim, what its defender owns, and the judge who measures what rules choose; rules get the suspect alone."""

    victim: Victim
    suspect: Suspect
    test: Any
    common: dict[str, Any]

    def measured(self, attempt: Attempt) -> dict[str, Any]:
        """Rates of a repaired model on the whole test set; the worst where its training diverged."""
        if attempt.model is None:
            return {"status": "diverged", "asr": 1.0, "clean_accuracy": 0.0, "collapsed": True}
        found = evaluate(copy.deepcopy(attempt.model), self.test, self.victim.triggered)
        return {"status": "ok", **rates(found), **moved(attempt)}

    def chosen(self, choice: Choice) -> dict[str, Any]:
        """What a choice comes to; a rule that refuses leaves the model as it is."""
        if choice.candidate is None:
            work, result = choice.work, {"status": "refused", **rates(self.victim.evaluation), "moved": False}
        else:
            attempt = choice.attempt or self.suspect.attempt(choice.candidate)
            work, result = choice.work, self.measured(attempt)
            if choice.attempt is None:  # the rule did not pay for the repair yet
                work = Counters(**{key: value + getattr(attempt.work, key) for key, value in vars(work).items()})
        return {
            "chosen": None if choice.candidate is None else choice.candidate.label,
            **result,
            "E": epochs_of(work, self.common["train_size"]),
            "reasons": choice.reasons,
            "table": choice.table,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="folder of the victims")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=sorted(LIKE))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--candidates", choices=sorted(GRIDS), default="all")
    parser.add_argument("--stability", action="store_true", help="also choose with one setting of a rule changed")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--image-size", type=int, default=16)
    parser.add_argument("--model", default="airbench_cnn")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--recipe", default="quick", choices=sorted(RECIPES))
    parser.add_argument("--clean-fraction", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--summary", action="store_true", help="only print the tables")
    arguments = parser.parse_args()
    if not arguments.summary:
        if arguments.store is None:
            parser.error("--store: give the folder of the victims")
        with on_threads(arguments.threads):
            run(arguments)
    print(summary(read(arguments.ledger)))


def run(arguments: argparse.Namespace) -> None:
    """Every pair of attack and seed that the ledger has not yet."""
    bench = Workbench(Store(arguments.store), torch.device(arguments.device), threads=arguments.threads)
    known = {(row["conditions"], row["attack"], row["seed"]) for row in read(arguments.ledger)}
    for seed in arguments.seeds:
        for attack in arguments.attacks:
            case = make_case(bench, arguments, attack, seed)
            if (case.common["conditions"], attack, seed) in known:
                print(f"{attack}, seed {seed}: known", flush=True)
                continue
            if (why := case.victim.why_not_implanted) is not None:
                print(f"{attack}, seed {seed}: no backdoor ({why}), left out", flush=True)
                continue
            rows = list(rows_of(case, GRIDS[arguments.candidates], arguments.stability))
            append(arguments.ledger, rows)
            print(f"{attack}, seed {seed}: {len(rows)} rows", flush=True)


def make_case(bench: Workbench, arguments: argparse.Namespace, attack: str, seed: int) -> Case:
    """The victim, and exactly what a defender with clean data owns of its task."""
    victim_spec = VictimSpec(attack, arguments.model, RECIPES[arguments.recipe], seed, width=arguments.width)
    source = DataSource(arguments.data, image_size=arguments.image_size)
    cell = Cell(source, victim_spec, "super_ft", arguments.clean_fraction)
    victim, dataset, device = bench.victim(cell), bench.dataset(source), bench.device
    owned = assets_for(DEFENSES.create("super_ft"), cell, dataset, victim, device)
    assert isinstance(owned, CleanData)
    trainer = make_trainer(victim_spec, dataset, device, seed=defender_seed(cell))
    conditions = {
        key: getattr(arguments, key)
        for key in ("data", "image_size", "model", "width", "recipe", "clean_fraction", "candidates", "stability")
    }
    common = {
        "attack": attack,
        "seed": seed,
        "conditions": json.dumps(conditions, sort_keys=True),
        "train_size": len(victim.attacker_indices),
        "images": [len(owned.train), len(owned.validation)],
        "victim": victim.name,
        **{f"{key}_before": value for key, value in rates(victim.evaluation).items() if key != "collapsed"},
        **machine(device),
        "threads": arguments.threads,
        "date": datetime.now(UTC).date().isoformat(),
    }
    return Case(victim, Suspect(victim.model.to(device), owned, trainer), dataset.test.to(device), common)


def rows_of(case: Case, candidates: tuple[Candidate, ...], stability: bool) -> Iterator[dict[str, Any]]:
    """One row per candidate, rule and changed rule."""
    common, unlike = case.common, [kind for kind in KINDS if kind != LIKE[case.common["attack"]]]
    rules: dict[str, tuple[str, dict[str, Any]]] = {
        name: (name, {}) for name in ("published", "short_ramp", "ft_peak", "validation", "highest_peak", "range_test")
    }
    rules["planted"] = ("planted", {"kinds": ",".join(unlike)})
    rules["planted_like"] = ("planted", {"kinds": ",".join(KINDS)})
    for candidate in candidates:
        attempt = case.suspect.attempt(candidate)
        yield {
            **common,
            "kind": "candidate",
            "chosen": candidate.label,
            "defense": candidate.defense,
            **{f"param.{key}": value for key, value in candidate.settings.items()},
            **case.measured(attempt),
            "validation_accuracy": attempt.accuracy,
            "E": epochs_of(attempt.work, common["train_size"]),
        }
    for label, (name, settings) in rules.items():
        rule: Rule = RULES.create(name, settings)
        yield {**common, "kind": "rule", "rule": label, **case.chosen(rule.choose(case.suspect, candidates))}
        for change in variants(label, settings) if stability else ():
            changed = RULES.create(name, {**settings, **change})
            found = case.chosen(changed.choose(case.suspect, candidates))
            yield {**common, "kind": "variant", "rule": label, "change": change, **found}


def variants(label: str, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Changes of a rule, one at a time; of `planted` also every kind of trigger left out once."""
    yield from CHANGES.get(label, ())
    kinds = settings.get("kinds", "").split(",")
    for kind in kinds if label == "planted" else ():
        yield {"kinds": ",".join(other for other in kinds if other != kind)}


def rates(found: Evaluation) -> dict[str, Any]:
    """Rates on the whole test set."""
    return {
        "asr": found.full.asr,
        "clean_accuracy": found.full.clean_accuracy,
        "collapsed": found.why_collapsed is not None,
    }


def moved(attempt: Attempt) -> dict[str, Any]:
    """The columns of a trial's row that say whether the repair moved the model."""
    seen = attempt.movement
    return {} if seen is None else {**dataclasses.asdict(seen), "moved": seen.moved}


def epochs_of(work: Counters, train_size: int) -> float:
    """Work in E: epochs of training on the attacker's whole set."""
    return float(epochs(work.forward_samples, work.backward_samples, work.input_backward_samples, train_size))


def read(ledger: Path) -> list[dict[str, Any]]:
    """Rows so far."""
    return [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.is_file() else []


def append(ledger: Path, rows: list[dict[str, Any]]) -> None:
    """Rows of one pair of attack and seed, all at once: a pair is there whole or not at all."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with ledger.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def summary(rows: list[dict[str, Any]]) -> str:
    """Tables in Markdown, per set of conditions: each rule over all pairs, and its ASR by attack."""
    if not rows:
        return "no rows yet"
    frame = pd.DataFrame(rows)
    parts = []
    for conditions, own in frame.groupby("conditions", sort=False):
        found = pd.concat([with_regret(own[own["kind"] == "rule"], own), transfer(own), oracle(own)], ignore_index=True)
        pairs = own[["attack", "seed"]].drop_duplicates()
        seeds = pairs.groupby("attack").size()
        title = f"{len(seeds)} attacks, {seeds.min()} to {seeds.max()} seeds each; {conditions}"
        parts.append(f"{title}\n\n{table_of(found, own)}\n\n{by_attack(found)}")
    return "\n\n".join(parts)


def with_regret(found: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """``found`` with ``lost``, the clean accuracy given up, and ``regret`` to the oracle's front."""
    found = found.assign(lost=found["clean_accuracy_before"] - found["clean_accuracy"])
    candidates = own[own["kind"] == "candidate"]

    def regret(row: pd.Series[Any]) -> float:
        rivals = candidates[(candidates["attack"] == row["attack"]) & (candidates["seed"] == row["seed"])]
        as_accurate = rivals[rivals["clean_accuracy"] >= row["clean_accuracy"] - 1e-9]
        return float(row["asr"] - min(row["asr"], as_accurate["asr"].min() if len(as_accurate) else row["asr"]))

    return found.assign(regret=[regret(row) for _, row in found.iterrows()])


def transfer(own: pd.DataFrame) -> pd.DataFrame:
    """What the candidate that was best on the other attacks comes to on each."""
    tried = own[own["kind"] == "candidate"].assign(role="search", dataset="", model="", combination="")
    parts = []
    for attack in tried["attack"].unique():
        best = best_elsewhere(tried, attack)
        if best is not None:
            parts.append(tried[(tried["attack"] == attack) & (tried["chosen"] == best.candidate.label)])
    if not parts:
        return own.iloc[:0]
    return with_regret(pd.concat(parts).assign(rule="transfer (ASR elsewhere)"), own)


def oracle(own: pd.DataFrame) -> pd.DataFrame:
    """The candidates that somebody would choose who knows the ASR: least ASR at 2 and at 5 points lost at most."""
    tried = own[own["kind"] == "candidate"]
    tried = tried.assign(lost=tried["clean_accuracy_before"] - tried["clean_accuracy"])
    parts = []
    for points in (2, 5):
        for _, group in tried[tried["lost"] <= points / 100 + 1e-9].groupby(["attack", "seed"]):
            parts.append(
                group.sort_values(["asr", "lost"]).head(1).assign(rule=f"oracle, {points} points (knows the ASR)")
            )
    return with_regret(pd.concat(parts), own) if parts else own.iloc[:0]


def table_of(found: pd.DataFrame, own: pd.DataFrame) -> str:
    """One line per rule, least mean ASR first, of equals the one that lost least."""
    changed = own[own["kind"] == "variant"] if "change" in own else own.iloc[:0]
    heads = ["rule", "pairs", "ASR", "ASR <= 0.1", "refused", "hardly moved", "points lost", "more than published"]
    heads += ["regret", "E", "spread"]
    found = found.assign(points=100 * found["lost"], more=less_published(found))
    lines = [heads, ["---"] * len(heads)]
    for rule, group in sorted(found.groupby("rule"), key=lambda pair: least_first(pair[1])):
        refused = int((group["status"] == "refused").sum())
        still = int(((group["moved"] == False) & (group["status"] != "refused")).sum())  # noqa: E712 - may be missing
        lines.append(
            [
                str(rule),
                str(len(group)),
                mean_text(group, "asr", "{:.3f}"),
                f"{int((group['asr'] <= GONE).sum())} of {len(group)}",
                str(refused or ""),
                str(still or ""),
                mean_text(group, "points", "{:.1f}"),
                "" if rule == "published" or group["more"].isna().any() else mean_text(group, "more", "{:+.1f}"),
                f"{group['regret'].mean():.3f}",
                f"{group['E'].mean():.0f}",
                spread(group, changed[changed["rule"] == rule]),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def least_first(group: pd.DataFrame) -> tuple[float, float]:
    """Mean ASR, to a thousandth; of equals the points lost."""
    return round(float(group["asr"].mean()), 3), float(group["lost"].mean())


def mean_text(group: pd.DataFrame, column: str, form: str) -> str:
    """A mean over pairs with Student's 95 % interval over attacks; none where they do not differ or there is one."""
    mean = float(group[column].mean())
    far = reach([float(group.loc[group["attack"] != one, column].mean()) for one in group["attack"].unique()])
    if not far > 0:
        return form.format(mean)
    least, most = (0.0, 1.0) if column == "asr" else (-math.inf, math.inf)
    return f"{form.format(mean)} [{form.format(max(least, mean - far))}, {form.format(min(most, mean + far))}]"


def less_published(found: pd.DataFrame) -> pd.Series[float]:
    """Points of clean accuracy that each choice lost more than the published setting did on the same pair."""
    of = found[found["rule"] == "published"].set_index(["attack", "seed"])["lost"]
    pairs = pd.MultiIndex.from_frame(found[["attack", "seed"]])
    return pd.Series(100 * (found["lost"].to_numpy() - of.reindex(pairs).to_numpy()), found.index)


def by_attack(found: pd.DataFrame) -> str:
    """ASR / points of accuracy lost of each rule on each attack, means over the seeds."""
    attacks = list(dict.fromkeys(found["attack"]))
    lines = [["rule", *attacks], ["---"] * (1 + len(attacks))]
    for rule, group in found.groupby("rule", sort=False):
        means = group.groupby("attack")[["asr", "lost"]].mean()
        cells = [
            f"{means.loc[one, 'asr']:.3f} / {100 * means.loc[one, 'lost']:.1f}" if one in means.index else ""
            for one in attacks
        ]
        lines.append([str(rule), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(group: pd.DataFrame, changed: pd.DataFrame) -> str:
    """Mean distance in ASR between a rule's choice and those of the rule with one setting changed."""
    pairs = changed.merge(group[["attack", "seed", "asr"]], on=["attack", "seed"], suffixes=("", "_kept"))
    return f"{(pairs['asr'] - pairs['asr_kept']).abs().mean():.3f}" if len(pairs) else ""


if __name__ == "__main__":
    main()
