"""Claims of `keep`: what is written and removed, that an export takes the kept file, and what happens without it."""

from __future__ import annotations

import errno
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from safetensors.torch import load_file

from study.plan.jobs import prepare
from study.plan.keeping import kept_lines
from study.record.kept import KEPT_FILE, Keeping, keeping_of
from study.record.ledger import Ledger
from study.record.words import in_bytes
from study.run.kept_models import tidy_kept
from study.run.one_trial import run_job
from study.run.progress import Progress
from study.run.repeat import differences
from study.spec.yaml_io import SpecError
from tests.study.commands import assert_refused, invoke
from tests.study.processes import Place, new_place, rows_of, wait_for
from tests.study.rows import make_row
from tests.study.tiny import TINY, made_up_row, make_driver, tiny_spec
from trainables.job import Job
from trainables.models.build import build_model
from trainables.storage import kept
from trainables.storage.kept import KeptModels, keeper, kept_name
from trainables.storage.store import Store
from trainables.trial import run_trial
from trainables.tune import TrialTrainable, time_limit
from trainables.workbench import Workbench

TRIAL = "badnets/super_ft/0000"
NAME = kept_name("tiny-0123", "badnets--super_ft--0000--badnets--0--0")
FACTS = {"trial": TRIAL, "attack": "badnets", "seed": 0, "defense_seed": 0, "model": "preact_resnet18"}


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A trial run without Ray: without keeping, kept, and on a full disk."""
    folder = tmp_path_factory.mktemp("study")
    spec = tiny_spec(f"store={folder / 'store'}", "keep=all", "victim.epochs=1")
    plan, _, _ = prepare(spec)
    (search,) = plan.searches
    settings = search.settings(search.paper_params()) | {"iterations": 50}
    job = Job("badnets/super_ft", TRIAL, "search", search.cells[0], settings, published=False)

    def run(keep: Any) -> dict[str, Any]:
        return run_job(plan.spec, job, torch.device("cpu"), 1, keep) | {"search": "badnets/super_ft"}

    write = keeper(Store(folder / "store"), NAME, FACTS)
    plain, whole = run(None), run(write)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "save_tensors", _full)
        full = run(write)
    return SimpleNamespace(folder=folder, spec=spec, plain=plain, kept=whole, full=full)


def _full(tensors: Any, path: Path, metadata: Any = None) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


@pytest.fixture
def study(trial: SimpleNamespace, tmp_path: Path) -> Path:
    """A study's folder with that trial, and a store that holds its model and nothing else: no victim, no data."""
    file = tmp_path / "store" / NAME
    file.parent.mkdir(parents=True)
    file.write_bytes((trial.folder / "store" / NAME).read_bytes())
    return _folder(tmp_path, trial.kept)


def _folder(tmp_path: Path, row: dict[str, Any], **changes: Any) -> Path:
    folder = tmp_path / f"study-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    spec = {**TINY, "victim": {**TINY["victim"], "epochs": 1}, "store": str(tmp_path / "store"), "keep": "all"}
    (folder / "study.yaml").write_text(yaml.safe_dump({**spec, **changes}))
    with Ledger(folder / "trials.jsonl") as ledger:
        ledger.append(row)
    return folder


def test_keeping_changes_no_other_number_of_a_row(trial: SimpleNamespace) -> None:
    assert differences(trial.kept, trial.plain) == {}
    assert trial.kept.keys() - trial.plain.keys() == {"kept", "kept_sha256", "seconds_keep"}
    assert trial.kept["kept"] == NAME
    parts = sum(trial.kept[f"seconds_{part}"] for part in ("setup", "repair", "evaluate"))
    assert parts <= trial.kept["wall_seconds"]


def test_a_full_disk_costs_no_row_but_its_model(trial: SimpleNamespace) -> None:
    assert differences(trial.full, trial.plain) == {}
    assert "No space left on device" in trial.full["not_kept"]
    assert "kept" not in trial.full


def test_time_of_writing_is_no_time_of_the_trial(trial: SimpleNamespace) -> None:
    """Writing that is as slow as a whole trial, by the row's own count."""
    plan, _, _ = prepare(trial.spec)
    bench = Workbench(Store(trial.folder / "store"), torch.device("cpu"))
    (search,) = plan.searches
    clock = SimpleNamespace(now=0.0)

    def slow(model: Any) -> dict[str, Any]:
        clock.now += 1000.0
        return {"kept": "x"}

    def reading() -> float:
        return float(clock.now)

    with mock.patch("trainables.trial.time.perf_counter", reading):
        settings = search.settings(search.paper_params()) | {"iterations": 20}
        cell = search.cells[0]
        given = {"dataset": bench.dataset(cell.data), "victim": bench.victim(cell), "device": bench.device}
        row = run_trial(cell, settings, **given, keep=slow).row()
    assert row["kept"] == "x"
    assert {row[name] for name in ("wall_seconds", "seconds_setup", "seconds_repair", "seconds_evaluate")} == {0.0}


def test_a_time_limit_that_ends_the_writing_costs_no_row(trial: SimpleNamespace, tmp_path: Path) -> None:
    plan, _, _ = prepare(trial.spec)
    (search,) = plan.searches
    job = Job("badnets/super_ft", TRIAL, "search", search.cells[0], {}, published=False, keep=NAME)
    actor = TrialTrainable.__new__(TrialTrainable)
    actor.job, actor.bench = job, Workbench(Store(tmp_path), torch.device("cpu"))
    keep = actor._keeper()
    assert keep is not None
    with time_limit(3600):
        told = keep(_Late())
    assert told == {"not_kept": "cut after 3600 s (resources.trial_seconds)"}
    assert not (tmp_path / NAME).exists()


class _Late(torch.nn.Module):
    """Is asked for its weights when the time is over."""

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGALRM)
        raise AssertionError("nobody cut it")


def test_an_export_takes_the_kept_file_and_runs_nothing(study: Path, trial: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    told = invoke("export", study, "--trial", TRIAL, "--out", out)
    assert told.exit_code == 0, told.output
    assert "as the study kept it" in told.stdout
    assert told.stderr == ""
    card, row = json.loads(out.with_suffix(".json").read_text()), trial.kept
    assert card["kept"] == {"name": NAME, "sha256": row["kept_sha256"]}
    assert (card["num_classes"], card["versions"], card["code"]) == (10, row["versions"], row["code"])
    model = build_model(card["arch"], num_classes=card["num_classes"], width=card["width"], image_size=8)
    model.load_state_dict(load_file(out))
    before = load_file(trial.folder / "store" / NAME)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    # No victim was trained, so nothing was run again.
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["kept"]


def test_a_file_that_is_not_what_its_row_says_is_named_and_the_model_made_again(
    study: Path, trial: SimpleNamespace, tmp_path: Path
) -> None:
    file = tmp_path / "store" / NAME
    whole = file.read_bytes()
    other = KeptModels(Store(tmp_path / "store"))
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    calls = {"damaged: its hash": bytes(flipped), "cannot be used": whole[:100], "there no more": None}
    for number, (said, content) in enumerate(calls.items()):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)
        out = tmp_path / f"{number}.safetensors"
        told = invoke("export", study, "--trial", TRIAL, "--out", out, "--store", tmp_path / "store")
        assert told.exit_code == 0, told.output
        assert told.stderr.count("\n") == 1
        assert f"kept model {NAME} of store" in told.stderr
        assert said in told.stderr
        assert "the trial is run again" in told.stderr
        assert "made again: every result equals its row" in told.stdout
        assert json.loads(out.with_suffix(".json").read_text())["kept"] is None
        before = load_file(trial.folder / "store" / NAME)
        assert all(torch.equal(before[name], value) for name, value in load_file(out).items())
    # The file of another trial, with a row that was made to name it.
    digest = other.save(NAME, load_file(trial.folder / "store" / NAME), {**_texts(FACTS), "trial": "x"})
    folder = _folder(tmp_path, {**trial.kept, "kept_sha256": digest})
    told = invoke("export", folder, "--trial", TRIAL, "--out", tmp_path / "o.safetensors")
    assert "is of another trial by its trial" in told.stderr


def _texts(facts: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in facts.items()}


def test_a_name_in_a_strangers_ledger_leads_nowhere(trial: SimpleNamespace, tmp_path: Path) -> None:
    folder = _folder(tmp_path, {**trial.kept, "kept": "../../etc/passwd"}, victim={"epochs": 0.01})
    told = invoke("export", folder, "--trial", TRIAL, "--out", tmp_path / "o.safetensors")
    assert "is no name of a kept model" in told.stderr
    assert not (tmp_path / "o.safetensors").exists()


# -- which jobs, which files --------------------------------------------------------------------------------------


def test_a_front_keeps_searches_alone_and_all_keeps_every_trial(tmp_path: Path) -> None:
    for what, roles in (("front", {"search"}), ("all", {"search", "baseline"})):
        keeping = keeping_of(tmp_path, tiny_spec(f"keep={what}"))
        assert keeping is not None
        driver = make_driver(tiny_spec(f"keep={what}"), tmp_path / f"{what}.jsonl", keep=keeping.name_of)
        jobs = [driver.next_job() for _ in range(3)]
        assert {job.role for job in jobs if job is not None} == {"search", "baseline"}
        assert {job.role for job in jobs if job is not None and job.keep} == roles
    assert keeping_of(tmp_path, tiny_spec()) is None


def test_a_study_has_one_name_in_its_store_and_two_studies_two(tmp_path: Path) -> None:
    names = []
    for folder in ("a", "b", "a"):
        (tmp_path / folder).mkdir(exist_ok=True)
        keeping = keeping_of(tmp_path / folder, tiny_spec("keep=all"))
        assert keeping is not None
        names.append(keeping.name)
    assert names[0] == names[2] != names[1]
    (tmp_path / "a" / KEPT_FILE).write_text('{"name": "../x"}')
    with pytest.raises(SpecError, match=r"kept.json is damaged .name '../x'.; remove it"):
        keeping_of(tmp_path / "a", tiny_spec("keep=all"))


def test_two_long_ids_have_two_names_that_a_file_system_takes() -> None:
    keeping, long = Keeping("all", "tiny-0123"), "--".join(f"victim.lr-{n}" for n in range(30))
    rows = [make_row(seed=0) | {"trial": f"{long}/badnets/super_ft/{number:04d}"} for number in range(2)]
    names = [*keeping.names_in(rows)]
    assert len(set(names)) == 2
    assert all(len(name.rpartition("/")[2]) < 255 for name in names)


def test_at_the_end_those_on_no_front_are_removed_and_nothing_else(tmp_path: Path) -> None:
    store, keeping = Store(tmp_path), Keeping("front", "tiny-0123")
    rates = {"0000": (0.1, 0.8), "0001": (0.3, 0.9), "0002": (0.4, 0.7), "0003": (0.2, 0.6)}
    rows = []
    for number, (asr, accuracy) in rates.items():
        halves = ("", "_search", "_report")
        told = {f"asr{half}": asr for half in halves} | {f"clean_accuracy{half}": accuracy for half in halves}
        rows.append(make_row(f"badnets/super_ft/{number}", seed=0, **told))
    names = {number: kept_name("tiny-0123", f"badnets--super_ft--{number}--badnets--0--0") for number in rates}
    stranger = kept_name("tiny-0123", "0009"), names["0002"].replace("tiny-0123", "tiny-4567")
    for name in (*names.values(), *stranger):
        KeptModels(store).save(name, {"w": torch.zeros(1)}, {})
    for row, name in zip(rows, names.values(), strict=True):
        row["kept"] = name
    said = tidy_kept(keeping, store, rows)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.safetensors")}
    assert left == {names["0000"], names["0001"], *stranger}
    assert said == [f"kept: models on fronts: 2, in {tmp_path}; removed, since they are on none: 2"]
    assert tidy_kept(keeping, store, rows) == []
    assert tidy_kept(Keeping("all", "tiny-0123"), store, rows) == tidy_kept(None, store, rows) == []


def test_a_removed_model_of_no_front_is_made_again_without_a_warning(trial: SimpleNamespace, tmp_path: Path) -> None:
    assert trial.kept["status"] == "backdoor_not_implanted"  # after one epoch: it is on no front
    folder = _folder(tmp_path, trial.kept, keep="front")
    told = invoke("export", folder, "--trial", TRIAL, "--out", tmp_path / "o.safetensors")
    assert (told.exit_code, told.stderr) == (0, ""), told.output
    assert "made again: every result equals its row" in told.stdout


def test_progress_tells_the_first_model_that_was_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    driver = make_driver(tiny_spec(), tmp_path / "trials.jsonl")
    progress = Progress(driver)
    for _ in range(3):
        job = driver.next_job()
        assert job is not None
        row = driver.finish(job, made_up_row(job, driver.plan, not_kept="store x: No space left on device"))
        progress.trial(row)
    said = capsys.readouterr().err
    assert said.count("was not kept (store x: No space left on device); its row is recorded") == 1


def test_the_plan_tells_the_bytes_before_they_are_written(trial: SimpleNamespace) -> None:
    size = (trial.folder / "store" / NAME).stat().st_size

    def line(*assignments: str) -> list[str]:
        plan, data, _ = prepare(tiny_spec(*assignments))
        return kept_lines(plan, data)

    assert line() == []
    (both,) = line("keep=all")
    assert both.startswith("kept:      5 models of ")
    (front,) = line("keep=front", "search.trials=100")
    assert "until the study is finished all 100 of its searches" in front
    for told, count in ((both, 5), (front, 100)):
        value, unit = told.rpartition(" in the store")[0].rpartition(", ")[2].split()
        told_bytes = float(value) * {"kB": 1e3, "MB": 1e6}[unit]
        assert told_bytes == pytest.approx(count * size, rel=0.05)
    told = invoke("plan", "quickstart", "--set", "keep=all")
    assert "models of" in told.stdout, told.output


def test_bytes_read_as_people_say_them() -> None:
    assert [in_bytes(n) for n in (912, 44_800_000, 1.23e9, 99_960, 2e15)] == [
        "912 bytes", "44.8 MB", "1.2 GB", "100 kB", "2000 TB",
    ]  # fmt: skip


def test_what_keep_cannot_mean_is_one_line(tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    assert_refused(invoke("run", "quickstart", "--set", "keep=some", *out), "keep", "'front', 'all' or 'none'")
    assert_refused(invoke("run", "quickstart", "--set", "keep=front", "--set", "defenses=[]", *out), "keep: front")
    assert_refused(invoke("run", "quickstart", "--set", "sweep.keep=[all, none]", *out), "keep")
    single = ("trial", "--attack", "badnets", "--defense", "ft", "--dataset", "digits", "--set", "keep=all")
    assert_refused(invoke(*single), "--set keep: a study keeps models")


# -- on Ray -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with new_place(tmp_path_factory.mktemp("kept")) as made:
        yield made


@pytest.mark.timeout(400)
@pytest.mark.slow
def test_a_killed_study_keeps_what_its_front_has_and_nothing_twice(place: Place, tmp_path: Path) -> None:
    search = {"trials": 8, "startup_trials": 2, "ranges": {"super_ft": {"iterations": [20, 500]}}}
    spec, directory = place.spec("killed", search=search, keep="front"), place.folder / "runs" / "killed"
    first = place.start("run", spec, "--out", directory)
    wait_for(lambda: len(rows_of(directory)) >= 4, 180, lambda: first.stderr.read_text())
    first.process.send_signal(signal.SIGKILL)
    first.end()
    place.wait_until_killed()
    before = rows_of(directory)
    name = json.loads((directory / KEPT_FILE).read_text())["name"]
    folder = place.store / "kept" / name
    assert {f"kept/{name}/{path.name}" for path in folder.glob("*.safetensors")} >= {
        row["kept"] for row in before if row["role"] == "search"
    }
    second = place.run("run", spec, "--out", directory)
    assert second.code == 0, second.stderr
    rows = rows_of(directory)
    assert rows[: len(before)] == before
    assert len(rows) == 9
    assert all(("kept_sha256" in row) == (row["role"] == "search") for row in rows)
    front = {line.split(",")[7] for line in (directory / "front.csv").read_text().splitlines()[1:]}
    kept_rows = {row["kept"] for row in rows if row["trial"] in front}
    assert {f"kept/{name}/{path.name}" for path in folder.iterdir()} == kept_rows
    assert 1 <= len(kept_rows) < 8
    member = next(row for row in rows if row["trial"] in front)
    told = place.here("export", directory, "--trial", member["trial"], "--out", tmp_path / "m.safetensors")
    assert "as the study kept it" in told.stdout, told.stderr
    again = place.here("run", spec, "--out", directory)
    assert "nothing was run" in again.stdout
