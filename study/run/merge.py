"""Several studies of one spec as one: parts that a job array ran over seeds or attacks, or a colleague's half.

Rows are taken as they are. What the parts do not agree on is refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from study.plan.jobs import CONFIRM, make_plan
from study.record.detectors import read_detectors, write_detectors
from study.record.ended import read_ended, write_ended
from study.record.files import write_atomically
from study.record.folder import LEDGER_FILE, SPEC_FILE, driving, stored_spec
from study.record.ledger import Ledger, row_key
from study.record.victims import decided, write_victims
from study.report.figures.trigger import TRIGGER_PREFIX
from study.report.write import write_report
from study.results.left import plan_in, trials_left
from study.spec.load import make_spec
from study.spec.schema import StudySpec, differences
from study.spec.yaml_io import SpecError

# What the parts of one study may differ in: along these it was cut.
CUT_ALONG = ("attacks", "seeds", "defense_seeds")


class Merged(NamedTuple):
    """What came of it.

    Args:
        name: of the new study.
        rows: in the new ledger.
        repeated: rows that several parts had; the first one counts.
        differ: of these, how many had another ASR or clean accuracy there (another machine rounds differently).
        left: trials that the new study still lacks; running it makes them.
        report: path of report.html.
    """

    name: str
    rows: int
    repeated: int
    differ: int
    left: int
    report: Path

    def text(self, parts: int) -> str:
        """In words, a line for each thing that there is to say."""
        lines = [f"{self.name}: {self.rows} rows of {parts} studies"]
        if self.repeated:
            lines[0] += f"; {self.repeated} that several of them had are there once"
        if self.differ:
            lines.append(f"of these, {self.differ} had another ASR or clean accuracy; the first study's count")
        if self.left:
            folder = self.report.parent
            again = f"superft run {folder / SPEC_FILE} --out {folder}"
            lines.append(f"{self.left} trials are still to be run: {again}")
        return "\n".join([*lines, f"report: {self.report}"])


def merge_studies(parts: Mapping[str, Path], out: Path, *, name: str | None = None) -> Merged:
    """Make one study of several that have one spec, but for attacks and seeds; the parts stay as they are.

    Searches of different attacks are different searches. One search on different seeds is one only where both parts
    measured the same settings under the same numbers: of two that each chose for themselves no mean can be taken.

    Args:
        parts: at least two study folders, by what people call them.
        out: a new folder, or an empty one.
        name: of the new study; None: the name of the first part.

    Raises:
        SpecError: fewer than two parts, parts that do not belong together (the line says in what), or ``out`` holds
            something already. Nothing is written then.
    """
    if len(parts) < 2:
        raise SpecError("merge needs at least two studies: superft merge DIR DIR ... --out DIR")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SpecError(f"--out {out} is there already; name a new folder")
    spec = _whole_spec({called: stored_spec(path) for called, path in parts.items()}, name)
    rows: dict[Any, dict[str, Any]] = {}
    repeated = differ = 0
    settings: dict[str, Any] = {}
    victims: dict[Any, Any] = {}
    detectors: dict[str, Any] = {}
    ended: dict[str, int] = {}
    for called, path in parts.items():
        ledger = Ledger.read(path / LEDGER_FILE)
        if ledger.damaged:
            raise SpecError(f"{called}: {ledger.damaged[0]}")
        for row in ledger.rows():
            chosen = {key: value for key, value in row.items() if key.startswith("param.")}
            _agree(settings, {row["trial"]: chosen}, f"{called}: other settings than in a part before it of trial")
            first = rows.setdefault(row_key(row), row)
            repeated += first is not row
            differ += any(first.get(rate) != row.get(rate) for rate in ("asr", "clean_accuracy"))
        judged = decided(path, ledger.rows())
        _agree(victims, judged, f"{called}: another victim, or judged otherwise, than in a part before it:")
        _agree(detectors, read_detectors(path), f"{called}: another detector than in a part before it of the search")
        _agree(ended, read_ended(path), f"{called}: another number of settings than in a part before it of the search")
    plan = make_plan(spec)
    models = plan.models
    # With more seeds other seeds are fresh: what a part confirmed on one that another part searched is none.
    fresh = {(search.confirm_label, *cell.place) for search in plan.searches for cell in search.fresh}
    rows = {
        key: row
        for key, row in rows.items()
        if row.get("role") != CONFIRM or (row["search"], *row_key(row)[1:]) in fresh
    }
    with driving(out, spec):
        write_victims(out, victims.values())
        if detectors:
            write_detectors(out, detectors.values())
        if ended:
            write_ended(out, ended)
        with Ledger(out / LEDGER_FILE) as whole:
            for row in rows.values():
                whole.append({**row, "study": spec.name, "models": models(row["role"])})
        _copy_trigger_pictures(parts.values(), out)
        report = write_report(out)
        left = trials_left(plan_in(out, spec, rows.values()), rows.values(), read_ended(out)).total()
    return Merged(spec.name, len(rows), repeated, differ, left, report)


def _whole_spec(specs: Mapping[str, StudySpec], name: str | None) -> StudySpec:
    """The spec of the whole: attacks and seeds of all parts in the order in which they come, all else alike."""
    given = {called: spec.model_dump(mode="json") for called, spec in specs.items()}
    first, whole = next(iter(given.items()))
    whole = {**whole, "name": name or whole["name"]}
    for key in CUT_ALONG:
        whole[key] = list(dict.fromkeys(value for part in given.values() for value in part[key]))
    for part in given.values():
        whole["attack"] = {**part["attack"], **whole["attack"]}
    for called, part in given.items():
        # The whole, cut as this part is: what then differs is no cut. An attack's settings count where it is run.
        cut = {**whole, "name": part["name"], **{key: part[key] for key in CUT_ALONG}}
        ran = {*part["attacks"], *part["attack"]}
        cut["attack"] = {attack: settings for attack, settings in whole["attack"].items() if attack in ran}
        if changed := differences(make_spec(cut), specs[called]):
            more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise SpecError(
                f"{first} and {called} are no parts of one study ({'; '.join(changed[:3])}{more}); parts may differ in "
                f"{', '.join(CUT_ALONG)} alone"
            )
    return make_spec(whole)


def _agree(known: dict[Any, Any], more: Mapping[Any, Any], complaint: str) -> None:
    """Take up ``more``; what is known already must be the same (SpecError: ``complaint`` and its key)."""
    for key, value in more.items():
        if known.setdefault(key, value) != value:
            shown = " ".join(map(str, key)).strip() if isinstance(key, tuple) else key
            raise SpecError(f"{complaint} {shown}")


def _copy_trigger_pictures(parts: Iterable[Path], out: Path) -> None:
    for part in parts:
        for picture in sorted((part / "figures").glob(f"{TRIGGER_PREFIX}*.png")):
            target = out / "figures" / picture.name
            target.parent.mkdir(exist_ok=True)
            if not target.exists():
                write_atomically(target, picture.read_bytes())
