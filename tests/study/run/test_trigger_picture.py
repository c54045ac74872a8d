"""Claims of `superft trigger`: what is drawn, that nothing is trained for it needlessly, and bad input."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from study.cli import main
from study.plan.jobs import load_data, make_plan
from study.report.figures.trigger import difference, example_indices, trigger_figure
from study.run.trigger_picture import write_trigger_figures
from tests.study.tiny import tiny_spec
from tests.toy import toy_dataset
from trainables.attacks.badnets import BadNets
from trainables.attacks.triggers import stamp
from trainables.storage.store import Store


def superft(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["trigger", *arguments])


def test_difference_is_ten_times_the_change_cut_at_white() -> None:
    clean = torch.tensor([[0, 100, 200]], dtype=torch.uint8)
    assert difference(clean, torch.tensor([[3, 98, 255]], dtype=torch.uint8)).tolist() == [[30, 20, 255]]


def test_examples_are_of_different_classes_and_none_has_the_target_label() -> None:
    data = toy_dataset()
    indices = example_indices(data, BadNets(target_label=2), 12)
    labels = data.test.labels[indices].tolist()
    assert sorted(labels[:9]) == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert 2 not in labels
    assert indices.unique().numel() == 12


def test_picture_shows_clean_triggered_and_difference_of_the_same_images() -> None:
    data, attack = toy_dataset(), BadNets()
    trigger = attack.make_trigger(16, 0)
    figure = trigger_figure(attack, trigger, data, count=4)
    panels = [axes.images[0].get_array() for axes in figure.axes]
    assert len(panels) == 12
    clean = data.test.images[example_indices(data, attack, 4)]
    triggered = stamp(trigger, clean)
    for column in range(4):
        for row, images in enumerate((clean, triggered, difference(clean, triggered))):
            assert (panels[4 * row + column] == images[column].permute(1, 2, 0).numpy()).all()
    assert [axes.get_xlabel() for axes in figure.axes[8:]] == ["→ disc 0"] * 4


@pytest.mark.parametrize("attack", ["sig", "wanet"])
def test_trigger_that_is_known_before_training_is_drawn_without_a_victim(attack: str, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "picture.png"
    ran = superft(attack, "--dataset", "digits", "--out", str(out), "--images", "3")
    assert ran.exit_code == 0, ran.output
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height > 300
    assert not (tmp_path / "store").exists()


def test_pictures_of_a_study_are_drawn_once_and_train_nothing(tmp_path: Path) -> None:
    spec = tiny_spec("attacks=[badnets, lf, clean]", "baselines=[none]")
    plan, (data, _) = make_plan(spec), load_data(spec)
    folder, store = tmp_path / "figures", Store(tmp_path / "store")
    written = write_trigger_figures(plan, data, store, folder)
    assert written == [folder / "trigger_badnets.png"], "lf's trigger is learned and its victim is not there"
    assert not store.root.exists()
    assert write_trigger_figures(plan, data, store, folder) == []


def test_bare_settings_are_the_attacks_own(tmp_path: Path) -> None:
    pictures = []
    for alpha in (0.1, 0.9):
        pictures.append(tmp_path / f"{alpha}.png")
        ran = superft("blended", "--dataset", "digits", "--out", str(pictures[-1]), "--set", f"alpha={alpha}")
        assert ran.exit_code == 0, ran.output
    assert pictures[0].read_bytes() != pictures[1].read_bytes()


def test_trigger_that_is_learned_is_drawn_from_a_stored_victim(tmp_path: Path) -> None:
    sizes = ("image_size=8", "width=2", "victim.epochs=0.2", "precision=float32")
    cheap = ("draws=4", "max_passes=1", "deepfool_steps=20")
    settings = [item for setting in (*sizes, *cheap) for item in ("--set", setting)]
    out = tmp_path / "lf.png"
    ran = superft("lf", "--dataset", "digits", "--out", str(out), "--device", "cpu", *settings)
    assert ran.exit_code == 0, ran.output
    assert out.is_file()
    assert list((tmp_path / "store").glob("lf-digits-*/artifact.json"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("blendid", "--dataset", "digits"), "unknown attack 'blendid': did you mean 'blended'?"),
        (("sig", "--dataset", "digitz"), "digitz"),
        (("clean", "--dataset", "digits"), "attack 'clean' has no trigger to draw"),
        (("sig", "--dataset", "digits", "--set", "deltas=3"), "deltas"),
        (("sig", "--dataset", "digits", "--set", "delta=-1"), "delta must be in (0, 255] grey levels, got -1"),
        (("sig", "--dataset", "digits", "--set", "frequency=9"), "frequency must be below half the image size (8)"),
        (("sig", "--dataset", "digits", "--set", "poison_rate=0.5"), "images of target class 0"),
        (("wanet", "--dataset", "digits", "--set", "poison_rate=0.5"), "poison_rate may be at most 0.3333"),
        (("badnets", "--dataset", "digits", "--set", "attacks=[blended]"), "a picture is of one attack"),
        (("badnets", "--dataset", "digits", "--set", "target_label=10"), "target_label must be below"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    out = tmp_path / "pictures" / "picture.png"
    ran = superft(*arguments, "--out", str(out))
    assert ran.exit_code == 2
    assert ran.output.count("\n") == 1
    assert words in ran.output
    assert not out.parent.exists()


def test_only_png_files_are_written(tmp_path: Path) -> None:
    ran = superft("sig", "--dataset", "digits", "--out", str(tmp_path / "picture.jpg"))
    assert (ran.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "ends in .png" in ran.output
