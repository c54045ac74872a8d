"""The command: a newcomer's help, bad input in one line with nothing written, one line of JSON, listings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from study.cli import main
from study.record.folder import check_folder
from study.record.ledger import Ledger
from study.spec.load import recipe_names
from tests.study.commands import assert_refused, invoke
from tests.study.tiny import TINY, tiny_spec
from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES

ROOT = Path(__file__).parents[2]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with the store elsewhere."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def superft(here: Path) -> Callable[..., Result]:
    return invoke


def images(folder: Path, classes: dict[str, int]) -> Path:
    """An image folder with so many pictures per class in train and test."""
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
        for number, (name, count) in enumerate(classes.items()):
            (folder / part / name).mkdir()
            for index in range(count):
                picture = Image.new("RGB", (16, 16), (40 * number, 10 * index, 90))
                picture.save(folder / part / name / f"{index}.png")
    return folder


BAD = [
    ("--set attacks=[badnet]", "unknown attack 'badnet'", "did you mean 'badnets'"),
    ("--set defenses=[superft]", "unknown defense 'superft'", "did you mean 'super_ft'"),
    ("--set baselines=[nonne]", "unknown defense 'nonne'", "did you mean 'none'"),
    ("--set dataset=digit", "'digit'", "digits"),
    ("--set serch.trials=3", "unknown key 'serch'", "did you mean 'search'"),
    ("--set search.sampler=tp", "search.sampler: unknown sampler 'tp'", "did you mean 'tpe'"),
    ("--set model=preact_resnet", "unknown model 'preact_resnet'", "did you mean 'preact_resnet18'"),
    ("--set attack.badnets.poison_rate=0", "poison_rate must be in (0, 1], got 0"),
    ("--set victim.poison_rate=1.5", "victim.poison_rate", "got 1.5"),
    ("--set attack.blended.alpha=0", "attack.blended: alpha must be in (0, 1], got 0"),
    ("--set attack.blended.alpha=1.01", "attack.blended: alpha must be in (0, 1], got 1.01"),
    ("--set defense.ft.lr=0", "defense.ft: lr must be > 0, got 0"),
    ("--set defense.ft.lr=-3e-4", "defense.ft: lr must be > 0, got -0.0003"),
    ("--set victim.lr=-1", "victim.lr", "got -1"),
    ("--set clean_fraction=1e-3", "clean_fraction 0.001 leaves 10 of 10 classes", "use at least"),
    ("--set clean_fraction=0", "clean_fraction", "got 0"),
    ("--set search.trials=0", "search.trials", "got 0"),
    ("--set search.trials=-1", "search.trials", "got -1"),
    ("--set attack.badnets.size=40", "size 40", "does not fit an image of 16 pixels"),
    ("--set model=resnet18", "width: resnet18 has a fixed width, got 8"),
    ("--set defense.super_ft.lr_max1=0.5", "defense.super_ft.lr_max1 is fixed by the spec but searched"),
    ("--set search.storage=postgresql://ann:s3cret@127.0.0.1:1/db", "search.storage: cannot open postgresql://ann:***@"),
    ("--set nonsense", "--set 'nonsense': write key=value"),
    ("--set defense.super_ft.lr_maxx=1", "unknown setting defense.super_ft.lr_maxx: did you mean 'lr_max1', 'lr_max2'"),
    ("--set super_ft.lr_max1=1", "unknown key 'super_ft': settings of a method are written defense.super_ft.lr_max1"),
    ("--set lr_maxx=1", "unknown key 'lr_maxx': did you mean 'defense.super_ft.lr_max1'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "named"), [(row[0], row[1:]) for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_one_line_with_exit_code_2_and_nothing_is_written(
    arguments: str, named: tuple[str, ...], superft: Callable[..., Result], here: Path
) -> None:
    assert_refused(superft("run", *arguments.split(" ", 1), "--out", "out"), *named)
    assert list(here.iterdir()) == []
    assert not (here.parent / "store").exists() or not list((here.parent / "store").iterdir())


def test_a_detector_is_not_set_on_a_victim_without_a_poisoned_training_set(
    superft: Callable[..., Result], here: Path
) -> None:
    words = ("defense abl needs the poisoned training set, and attack handcrafted releases none",)
    both = ("--set", "attacks=[handcrafted]", "--set", "attack.handcrafted.form=head", "--set", "baselines=[none, abl]")
    assert_refused(superft("run", "quickstart", *both, "--out", "out"), *words)
    one = ("--attack", "handcrafted", "--defense", "abl", "--dataset", "digits")
    assert_refused(superft("trial", *one, "--store", "store"), *words)
    assert list(here.iterdir()) == []


def test_what_plan_refuses_is_what_run_refuses(superft: Callable[..., Result]) -> None:
    for arguments, *named in BAD:
        if "storage" not in arguments:  # a plan opens no database
            assert_refused(superft("plan", "quickstart", *arguments.split(" ", 1)), *named)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("name: [a\nb: c\n", "line 2"),
        ("- a\n- b\n", "a study is a mapping of keys, got list"),
        ("", "a study is a mapping of keys"),
        ("attacks: [badnets]\n", "name at least one defense"),
    ],
)
def test_a_broken_yaml_file_is_refused(
    content: str, named: str, superft: Callable[..., Result], here: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    assert_refused(superft("run", tmp_path / "bad.yaml"), named)
    assert list(here.iterdir()) == []


def test_plan_and_run_read_a_spec_from_standard_input(superft: Callable[..., Result], here: Path) -> None:
    text = superft("recipe", "quickstart").stdout
    piped = CliRunner().invoke(main, ["plan", "-", "--set", "search.trials=7"], input=text)
    assert piped.exit_code == 0, piped.output
    assert piped.stdout == superft("plan", "quickstart", "--set", "search.trials=7").stdout
    for command in ("plan", "run", "submit"):
        for content, named in (
            ("attacks: [\n", "standard input, line 2"),
            ("- a", "standard input: a study is a mapping of keys, got list"),
            ("", "standard input: a study is a mapping of keys"),
            (text.replace("attacks", "atacks"), "unknown key 'atacks': did you mean 'attacks'"),
        ):
            assert_refused(CliRunner().invoke(main, [command, "-"], input=content), named)
    assert list(here.iterdir()) == []


def test_a_recipe_or_file_that_is_not_there_is_refused(superft: Callable[..., Result]) -> None:
    assert_refused(superft("run", "quickstat"), "unknown recipe 'quickstat'", "did you mean 'quickstart'")
    assert_refused(superft("run", "none.yaml"), "no such file: none.yaml")
    assert_refused(superft("plan", "runs/x"), "no such file: runs/x")


@pytest.mark.parametrize(
    ("classes", "named"),
    [({"cat": 5}, "only one class, 'cat'"), ({}, "no class folders"), ({"cat": 5, "dog": 0}, "has no images")],
)
def test_an_image_folder_that_is_no_task_is_refused(
    classes: dict[str, int], named: str, superft: Callable[..., Result], here: Path, tmp_path: Path
) -> None:
    folder = images(tmp_path / "pictures", classes)
    assert_refused(superft("run", "quickstart", "--set", f"dataset=folder:{folder}", "--out", "out"), named)
    assert list(here.iterdir()) == []


def test_an_image_folder_that_does_not_exist_is_refused(superft: Callable[..., Result], here: Path) -> None:
    assert_refused(superft("run", "--set", "dataset=folder:/nowhere/at/all"), "/nowhere/at/all does not exist")
    assert list(here.iterdir()) == []


def test_a_clean_fraction_that_leaves_one_class_of_a_folder_empty_is_refused(
    superft: Callable[..., Result], tmp_path: Path
) -> None:
    folder = images(tmp_path / "pictures", {"cat": 3, "dog": 40})
    arguments = ("--set", f"dataset=folder:{folder}", "--set", "clean_fraction=0.1")
    assert_refused(superft("plan", "quickstart", *arguments), "leaves 1 of 2 classes", "use at least")


# -- places -----------------------------------------------------------------------------------------------------------


def test_an_out_that_is_a_file_or_lies_in_one_is_refused(superft: Callable[..., Result], here: Path) -> None:
    (here / "file").write_text("mine")
    assert_refused(superft("run", "--out", "file"), "--out file is a file")
    assert_refused(superft("run", "--out", "file/below"), "cannot write to --out file/below")
    assert (here / "file").read_text() == "mine"


def test_an_out_that_cannot_be_written_is_refused(superft: Callable[..., Result]) -> None:
    assert_refused(superft("run", "--out", "/proc/superft-study"), "cannot write to --out /proc/superft-study")


@pytest.mark.parametrize("option", ["--out", "--store"])
def test_a_uri_of_an_unknown_protocol_is_refused(option: str, superft: Callable[..., Result], here: Path) -> None:
    assert_refused(superft("run", option, "wonder://bucket/x"), f"{option} wonder://bucket/x", "not known")
    assert list(here.iterdir()) == []


def test_an_out_with_other_things_in_it_is_refused_and_left_alone(superft: Callable[..., Result], here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "thesis.tex").write_text("mine")
    assert_refused(superft("run", "--out", "out"), "--out out is not empty and holds no study.yaml")
    assert [item.name for item in (here / "out").iterdir()] == ["thesis.tex"]


def test_what_a_driver_killed_at_its_start_left_does_not_block_the_folder(here: Path) -> None:
    (here / ".lock").touch()
    (here / ".study.yaml.123.tmp").write_text("na")
    check_folder(here, tiny_spec())


@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_store_that_cannot_be_written_is_refused(
    by: str, superft: Callable[..., Result], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every victim, and with it every trial, would fail for it."""
    if by == "environment":
        monkeypatch.setenv("SUPERFT_STORE", "/proc/superft-store")
    option = ("--store", "/proc/superft-store") if by == "option" else ()
    assert_refused(superft("run", "--out", "out", *option), "--store /proc/superft-store", "SUPERFT_STORE")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--address", "127.0.0.1:9"), "superft: --address 127.0.0.1:9: cannot reach a Ray cluster: "),
        (("--set", "resources.cpus_per_trial=4096"), "superft: no node fits one trial of 4096 CPUs"),
        pytest.param(
            ("--set", "resources.gpus_per_trial=0.5"),
            "superft: resources.gpus_per_trial is 0.5 but no node has a GPU; use 0 or auto",
            # The same way as the one above; the plan's own tests have the message.
            marks=[pytest.mark.slow, pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")],
        ),
    ],
)
def test_a_cluster_that_cannot_do_it_is_told_before_the_folder_is_made(
    arguments: tuple[str, ...], message: str, here: Path
) -> None:
    """In a process of its own: Ray would stay in this one."""
    out = here / "new"
    command = [sys.executable, "-m", "study.cli", "run", "--out", str(out), "--store", str(here / "store"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    # Without a network Ray warns of it from C++, in lines of its own that nothing silences.
    assert len([line for line in done.stderr.splitlines() if "network_util.cc" not in line]) == 1
    assert not out.exists()


def test_a_folder_made_by_another_spec_is_refused_and_left_alone(superft: Callable[..., Result], here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "study.yaml").write_text(yaml.safe_dump(TINY))
    before = (here / "out" / "study.yaml").read_bytes()
    assert_refused(superft("run", "quickstart", "--out", "out"), "made by another spec", "name another --out")
    (here / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    assert_refused(
        superft("run", "tiny.yaml", "--set", "search.trials=2", "--out", "out"), "search.trials: 4 -> 2 (may only grow)"
    )
    assert (here / "out" / "study.yaml").read_bytes() == before
    assert [item.name for item in (here / "out").iterdir()] == ["study.yaml"]


# -- reading commands -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["report", "front", "show"])
def test_what_is_no_study_folder_is_refused(command: str, superft: Callable[..., Result], here: Path) -> None:
    assert_refused(superft(command, "nowhere"), "nowhere", "study.yaml")
    (here / "empty").mkdir()
    assert_refused(superft(command, "empty"), "empty is no study folder", "study.yaml")
    assert list((here / "empty").iterdir()) == []
    (here / "broken").mkdir()
    (here / "broken" / "study.yaml").write_text("name: [")
    assert_refused(superft(command, "broken"), "study.yaml", "not valid YAML")


@pytest.fixture
def made(here: Path) -> Path:
    """The folder of a made-up study."""
    from tests.study.rows import made_up_study

    folder = here / "made"
    folder.mkdir()
    spec = {**TINY, "name": "made-up", "attacks": ["badnets", "blended"], "baselines": ["none", "ft", "scratch"]}
    (folder / "study.yaml").write_text(yaml.safe_dump({**spec, "search": {**TINY["search"], "trials": 40}}))
    with Ledger(folder / "trials.jsonl") as ledger:
        for row in made_up_study():
            ledger.append(row)
    return folder


def test_front_prints_the_fronts_and_the_baselines(
    superft: Callable[..., Result], made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # of fewer the settings are left out
    result = superft("front", made)
    assert result.exit_code == 0
    for text in ("badnets on digits", "blended on digits", "super_ft", "scratch", "published", "lr_max1="):
        assert text in result.stdout


def test_front_compares_several_studies(superft: Callable[..., Result], made: Path) -> None:
    result = superft("front", made, made)
    assert result.exit_code == 0
    assert "hypervolume" in result.stdout


def test_show_tells_how_far_a_study_is_and_touches_nothing(superft: Callable[..., Result], made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    result = superft("show", made)
    assert result.exit_code == 0
    assert "86 of 86 trials done" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in made.iterdir()} == before


def test_show_and_front_of_a_study_without_results(superft: Callable[..., Result], here: Path) -> None:
    (here / "new").mkdir()
    (here / "new" / "study.yaml").write_text(yaml.safe_dump(TINY))
    assert "0 of 5 trials done" in superft("show", "new").stdout
    assert "no trial is finished yet" in superft("front", "new").stdout
    assert superft("report", "new").exit_code == 0


def test_report_writes_the_page_from_the_ledger(superft: Callable[..., Result], made: Path) -> None:
    result = superft("report", made)
    assert result.exit_code == 0
    assert result.stdout.strip() == str(made / "report.html")
    assert (made / "report.html").stat().st_size > 10_000


def test_plan_prints_the_work_and_its_cost_without_starting_it(superft: Callable[..., Result], here: Path) -> None:
    result = superft("plan", "quickstart", "--set", "search.trials=7")
    assert result.exit_code == 0
    for text in (
        "2 of 7 settings each (tpe), 42 trials",
        "victims:   9",
        "baselines: 30 trials",
        "total:     72 trials",
    ):
        assert text in result.stdout
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("attacks", ATTACKS.names()),
        ("defenses", DEFENSES.names()),
        ("recipes", recipe_names()),
        ("datasets", ["digits", "cifar10", "folder:PATH"]),
        ("models", ["preact_resnet18", "resnet18"]),
        ("spaces", ["super_ft", "ft", "scratch"]),
    ],
)
def test_list_prints_one_per_line_the_name_first(what: str, names: list[str], superft: Callable[..., Result]) -> None:
    result = superft("list", what)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert {line.split()[0] for line in lines} >= set(names)
    assert all(len(line.split()) > 1 for line in lines), "each says what it is"


def test_an_unknown_command_or_list_is_refused(superft: Callable[..., Result]) -> None:
    assert superft("rum").exit_code == 2
    assert superft("list", "attack").exit_code == 2


# -- one trial --------------------------------------------------------------------------------------------------------

TRIAL = (
    *("trial", "--attack", "badnets", "--defense", "super_ft", "--dataset", "digits"),
    *("--set", "image_size=8", "--set", "width=2", "--set", "victim.epochs=1", "--set", "iterations=3"),
)


def test_trial_prints_one_line_of_json_and_imports_no_ray(tmp_path: Path) -> None:
    code = (
        "import sys; from study.cli import main\n"
        f"try: main({[*TRIAL, '--json', '--store', str(tmp_path / 's')]!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'ray'], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.stdout.count("\n") == 1
    row = json.loads(done.stdout)
    assert (row["attack"], row["defense"], row["dataset"], row["seed"]) == ("badnets", "super_ft", "digits", 0)
    assert (row["param.iterations"], row["steps"], row["published"]) == (3, 6, False)


def test_trial_prints_a_table_for_people_and_is_repeatable(superft: Callable[..., Result]) -> None:
    first, second = (superft(*TRIAL) for _ in range(2))
    assert first.exit_code == 0
    assert "attack success rate" in first.stdout
    assert first.stdout.splitlines()[:4] == second.stdout.splitlines()[:4]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--attack", "badnet", "--defense", "none", "--dataset", "digits"), "did you mean 'badnets'"),
        (("--attack", "badnets", "--defense", "nonne", "--dataset", "digits"), "did you mean 'none'"),
        (("--attack", "badnets", "--defense", "none", "--dataset", "digit"), "digits"),
        ((*TRIAL[1:], "--set", "lr_max1=0"), "lr_max1 must be > 0, got 0"),
        ((*TRIAL[1:], "--set", "lr_max=1"), "did you mean 'defense.super_ft.lr_max1', 'defense.super_ft.lr_max2'"),
        ((*TRIAL[1:], "--set", "super_ft.lr_max1=1"), "written defense.super_ft.lr_max1"),
        ((*TRIAL[1:], "--set", "seeds=[1]"), "use --attack, --defense, --dataset and --seed"),
        ((*TRIAL[1:], "--device", "tpu9"), "--device tpu9"),
        ((*TRIAL[1:], "--model", "resnet"), "unknown model 'resnet'"),
        ((*TRIAL[1:], "--store", "/proc/superft-store"), "/proc/superft-store"),
    ],
)
def test_bad_input_of_a_trial_is_one_line(
    arguments: tuple[str, ...], named: str, superft: Callable[..., Result], here: Path
) -> None:
    assert_refused(superft("trial", *arguments), named)
    assert list(here.iterdir()) == []


def test_a_victim_that_diverges_ends_a_trial_in_one_line(superft: Callable[..., Result]) -> None:
    result = superft(*TRIAL, "--set", "victim.lr=1e12")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "not finite" in result.stderr
    assert "lower victim.lr" in result.stderr


# -- help -------------------------------------------------------------------------------------------------------------


def test_help_is_instant_because_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; from study.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'ray', 'optuna', 'pandas', 'numpy', 'matplotlib', 'plotly', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr.strip() == "[]"
    assert "superft run" in done.stdout


@pytest.mark.parametrize("command", ["run", "trial", "report", "front", "show", "plan", "list", "recipe"])
def test_every_command_explains_itself(command: str, superft: Callable[..., Result]) -> None:
    result = superft(command, "--help")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) > 5
    assert command in superft("--help").stdout
