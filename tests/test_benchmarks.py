"""Claims of benchmarks/: the command for a GPU machine goes through all its stages on any machine."""

import io
import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import common, driver_scale, engine_overhead, gpu, growth, made_up, own_model, packing, racing, recipes
from benchmarks.packing import gain, pick
from study.record.ledger import Ledger
from study.results.fronts import fronts
from study.simulate.table import read_table
from tests.study.simulate.made_up import finished_study
from tests.test_architecture import ROOT
from tests.toy import toy_dataset

ON_A_CPU = ("--device", "cpu", "--width", "2", "--small", "--repeats", "2")


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zip of image folders; its decoded copy is kept in the test's own folder."""
    monkeypatch.setenv("SUPERFT_DATA", str(tmp_path))
    drawn, path = toy_dataset(train=200, test=40), tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for part, images in (("train", drawn.train), ("test", drawn.test)):
            for number, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
                file = io.BytesIO()
                Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "PNG")
                archive.writestr(f"{part}/{label}/{number}.png", file.getvalue())
    return path


def rows(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """What `benchmarks.gpu` prints, by stage."""
    monkeypatch.setattr(sys, "argv", ["gpu", *ON_A_CPU, *arguments])
    gpu.main()
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {row["stage"]: row for row in found}


def test_stages_of_one_process_give_their_numbers(
    photographs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = ("peak", "training", "victim", "trial")
    found = rows(capsys, monkeypatch, "--data", str(photographs), "--stages", *stages)
    assert tuple(found) == stages
    assert found["training"]["images_per_second"]["bfloat16"]["n"] == 2
    for side, share in found["training"]["share_of_peak"].items():
        rate = found["training"]["images_per_second"][side]["median"]
        operations = rate * found["training"]["operations_per_image"]
        assert math.isclose(share, operations / found["peak"]["operations_per_second"][side], abs_tol=1e-4)
    assert found["victim"]["images"] == "200 + 40"
    assert found["trial"]["steps"] == 4
    assert 0 < found["trial"]["seconds_repair"]["median"] < found["trial"]["wall_seconds"]["median"]
    assert found["trial"]["before"] != [None, None]


@pytest.mark.slow
def test_processes_share_the_device_and_the_compiled_loss_serves_the_next_model(
    photographs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rows(capsys, monkeypatch, "--data", str(photographs), "--stages", "compiled", "packing")
    compiled = found["compiled"]
    first, following = (
        compiled[f"seconds_of_{which}"]["compiled"]["wall"] for which in ("first_step", "next_models_first_step")
    )
    assert following < 0.2 * first
    packed = found["packing"]["shared"]
    assert [packed[count]["trial_seconds"]["n"] for count in ("1", "2")] == [1, 2]
    assert found["packing"]["pick_shared"] in (1, 2)


def test_images_are_asked_for_where_a_stage_needs_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="--data: the stages victim, trial and packing need images"):
        rows(capsys, monkeypatch, "--stages", "victim")


@pytest.mark.parametrize(
    ("hourly", "picked"),
    [
        ({1: 100.0, 2: 180.0, 4: 240.0, 8: 245.0}, 4),  # the last 2 % are not worth twice the memory
        ({1: 100.0, 2: 99.0, 4: 80.0}, 1),
        ({1: 100.0, 2: 130.0, 4: 0.0}, 2),  # four did not fit
    ],
)
def test_pick_is_the_fewest_processes_near_the_best(hourly: dict[int, float], picked: int) -> None:
    assert pick(hourly) == picked


def test_a_benchmark_whose_processes_fail_keeps_its_row() -> None:
    assert (pick({1: 0.0, 2: 0.0}), gain({1: 0.0, 2: 0.0})) == (None, None)
    assert (pick({1: 0.0, 2: 50.0}), gain({1: 0.0, 2: 50.0})) == (2, None)
    assert gain({1: 100.0, 2: 150.0}) == 1.5


def test_without_an_mps_server_the_other_side_of_the_benchmark_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], **_: Any) -> Any:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(packing.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(packing.subprocess, "run", refuse)
    monkeypatch.setattr(packing, "_rate", lambda *_: {"trials_per_hour": 60.0})
    question = {"steps": 1, "batch": 1, "trials": 1, "width": 1}
    found = packing.measure(None, None, torch.device("cuda", 0), [1, 2], question)  # type: ignore[arg-type]
    assert (found["pick_in_turns"], found["gain_in_turns"]) == (1, 1.0)
    assert found["mps"]["failed"].startswith("no MPS server could be had: Command '['nvidia-cuda-mps-control'")
    assert "pick_mps" not in found


def test_it_runs_where_only_torch_and_torchvision_are_installed(photographs: Path) -> None:
    absent = "ray,optuna,pydantic,click,rich,pandas,plotly,matplotlib,sklearn,yaml,safetensors,study,search_spaces"
    program = f"import sys\nsys.modules |= dict.fromkeys({absent.split(',')})\nfrom benchmarks.gpu import main\nmain()"
    arguments = ("--data", str(photographs), "--stages", "trial", *ON_A_CPU)
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["steps"] == 4


def test_time_to_a_victim_is_told_beside_backdoorbenchs(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of two victims, mirrored and not, of which the second is another one."""
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    arguments = ["recipes", f"folder:{photographs}", "--store", str(tmp_path / "store"), "--attacks", "clean"]
    arguments += ["--recipes", "sprint:epochs=1.0,batch_size=64", "--model", "airbench_cnn", "--width", "2"]
    arguments += ["--device", "cpu", "--rival-rate", "10"]
    for more in (["--no-flip"], [], []):
        monkeypatch.setattr(sys, "argv", [*arguments, *more])
        recipes.main()
    assert capsys.readouterr().out.endswith("seed 0: known\n")
    found = [json.loads(line) for line in (tmp_path / "results" / "recipes.jsonl").read_text().splitlines()]
    assert [row["mirrored"] for row in found] == [False, True]
    for row in found:
        assert row["steps"] == 4
        assert row["backdoorbench_seconds"] == 100 * 200 / 10
        ours, times = row["images_per_second"], row["times_faster_than_backdoorbench"]
        assert math.isclose(ours / times, 4 * 64 / 2000, rel_tol=0.01)  # both are divided by the same seconds


def test_a_repair_of_ones_own_model_is_timed_beside_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    sizes = ["--images", "60", "--pixels", "16", "--iterations", "1", "--repeats", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["own_model", *sizes])
    own_model.main()
    found = json.loads((tmp_path / "own_model.jsonl").read_text())
    assert 0 < found["trained_on"] < 48, "a fifth is held out, and a part of the rest is for validation"
    assert found["ratio"]["median"] > 1


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponents_are_those_of_known_costs_and_of_the_largest_two_decades(power: float) -> None:
    sizes = (10, 100, 1000, 10_000)
    assert growth.exponent([(size, 3.0 * size**power) for size in sizes]) == power
    fixed = [(10, 1e9), *((size, 3.0 * size**power) for size in sizes[1:])]
    assert growth.exponent(fixed) == power
    assert growth.exponent(fixed[:1]) is None


def test_made_up_pictures_are_read_as_what_they_are(tmp_path: Path) -> None:
    pixels = torch.arange(5 * 7 * 3, dtype=torch.uint8).reshape(5, 7, 3).numpy()
    with Image.open(io.BytesIO(made_up.png(pixels))) as opened:
        assert (np.asarray(opened) == pixels).all()


def test_growth_of_decoding_is_measured_and_told_in_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(growth, "RESULTS", tmp_path)
    monkeypatch.setitem(growth.SWEEPS, "decode", {"images": (20, 40)})
    monkeypatch.setattr(sys, "argv", ["growth", "--stages", "decode", "--axes", "images", "--repeats", "1"])
    growth.main()
    found = [json.loads(line) for line in (tmp_path / "growth.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in found] == ["decode", "open"]
    for row in found:
        assert [point["size"] for point in row["points"]] == [20, 40]
        assert row["exponent_seconds"] is not None
        assert f"| {row['stage']} | images | 20: " in growth.table()


@pytest.mark.parametrize("stage", ["victim", "trial"])
def test_growth_of_victims_and_trials_is_measured(tmp_path: Path, stage: str) -> None:
    found = growth.measure(stage, {"images": 100, "classes": 2, "pixels": 16}, tmp_path)
    assert found["seconds"] > 0


def test_growth_of_a_search_is_measured(tmp_path: Path) -> None:
    assert growth.measure("search_random", {"trials": 20}, tmp_path)["seconds"] > 0


@pytest.mark.parametrize("more", [["--searches", "2"], ["--latency", "0.0001"]])
def test_the_drivers_own_work_is_measured_over_as_many_trials_as_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["driver_scale", "--slots", "4", "--trials", "24", "--sampler", "random", *more])
    driver_scale.main()
    found = json.loads((tmp_path / "driver_scale.jsonl").read_text())
    assert found["finished"] == 24
    assert 0 < found["busy"] <= 1


@pytest.mark.cluster
def test_what_the_engine_adds_is_measured_over_as_many_trials_as_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["engine_overhead", "--slots", "2", "--trials", "12", "--seconds", "0.1"])
    engine_overhead.main()
    found = json.loads((tmp_path / "engine_overhead.jsonl").read_text())
    assert found["trials"] == 12
    assert found["overhead_seconds_per_trial"] > 0


@pytest.mark.parametrize("dearest", [False, True])
def test_a_made_up_study_has_so_many_trials_and_the_front_that_was_asked_for(tmp_path: Path, dearest: bool) -> None:
    frame = Ledger.read(made_up.finished_study(tmp_path / "study", 200, dearest=dearest) / "trials.jsonl").to_frame()
    assert (frame["role"] == "search").sum() == 200
    assert len(fronts(frame)) > 100 if dearest else len(fronts(frame)) < 60


def test_racing_over_a_table_counts_what_ran_and_what_stayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rates that follow from the settings, two defenders 4 points of ASR apart: half of the settings are dominated."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    study = finished_study(tmp_path / "study", "defense_seeds=[0, 1]", noise=0.02)
    monkeypatch.setattr(sys, "argv", ["racing", str(study), "--repeats", "2", "--margin", "0"])
    racing.main()
    found = json.loads(capsys.readouterr().out)
    assert (found["settings"], found["cells_of_a_setting"], found["wrong"]) == (60, 4, 0.0)
    assert found["kept"]["min"] == 1.0
    assert 0.25 < found["cells"]["median"] <= 1.0
    assert (found["dropped"]["min"] > 0) == (found["cells"]["max"] < 1.0)
    problem = racing.measured(read_table([study]))
    bare = racing.race(problem, {"alpha": 1e-12, "margin": 0.0}, 3, 0)
    assert bare["lost"] == 0
    assert bare["busy"] == pytest.approx(1.0)
