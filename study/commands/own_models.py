"""Commands for models as files: repair one from outside, take one out of a study, measure one against a victim."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from study.commands.shared import DOWNLOAD, METHOD_FAILED, PLUGIN, SEED, STORE, bad_input_is_one_line
from trainables.storage.remote import Place, as_place

DIVERGED = 1
FILE = click.Path(dir_okay=False, path_type=Path)
OUT = click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The file to write: .safetensors, .pt or .pth; a card (.json) beside it.",
)
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace what is there.")
WEIGHTS = click.option(
    "--weights",
    required=True,
    type=FILE,
    help="A state dict: safetensors, or a file of torch.save; opened without running code.",
)
KEY = click.option("--key", help="Which state dict, where a file holds several that fit; the message names them.")
WIDTH = click.option("--width", type=click.IntRange(min=1), help="Of a model of superft's own.")
MEAN = click.option("--mean", metavar="R,G,B", help="What images are normalised with, in units of [0, 1] pixels.")
STD = click.option(
    "--std", metavar="R,G,B", help="Likewise. Default: ImageNet's for torchvision: and timm:, else none."
)
DEVICE = click.option("--device", help="cpu, cuda, cuda:1, ... Default: cuda where there is one.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one line of JSON, and nothing else.")


@click.command()
@WEIGHTS
@click.option(
    "--arch",
    required=True,
    metavar="ARCH",
    help="torchvision:NAME, timm:NAME, package.module:function, file.py:function, or a NAME of superft list models.",
)
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="Clean images, DIR/CLASS/*; or a zip.")
@click.option("--images", type=FILE, metavar="FILE.npz", help="Instead: arrays images (uint8) and labels.")
@click.option("--size", type=click.IntRange(min=8), help="Side of the images in pixels.  [default: as they are]")
@MEAN
@STD
@click.option(
    "--classes",
    metavar="FILE | A,B,...",
    help="Names of the model's outputs in their order.  [default: the folders of --data, sorted]",
)
@WIDTH
@KEY
@click.option("--defense", help="See superft list defenses.  [default: super-fine-tuning]")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of the defense: lr_max1=0.3; with --choose one of the rule: rule.gone=0.05.",
)
@click.option(
    "--choose", metavar="RULE", help="Let a rule choose the settings without an ASR, e.g. planted; superft list rules."
)
@click.option("--trials", type=int, help="Candidates that the rule tries, on Ray.  [default: those that are known]")
@click.option(
    "--ledger",
    "ledgers",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A study of other attacks, for --choose transfer; may be repeated.",
)
@OUT
@OVERWRITE
@click.option(
    "--export", type=click.Choice(["onnx"]), help="Also write NAME.onnx beside --out, by PyTorch's own exporter."
)
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--flip/--no-flip", default=True, help="Whether a mirrored image keeps its class.  [default: flip]")
@click.option("--neural-cleanse", is_flag=True, help="Seek a trigger for each class before and after (slow).")
@click.option("--accept", is_flag=True, help="Repair also a model that is hardly right on these images.")
@DEVICE
@PLUGIN
@JSON
@bad_input_is_one_line
def repair(
    weights: Path,
    arch: str,
    data: Path | None,
    images: Path | None,
    size: int | None,
    mean: str | None,
    std: str | None,
    classes: str | None,
    width: int | None,
    key: str | None,
    defense: str | None,
    assignments: Sequence[str],
    choose: str | None,
    trials: int | None,
    ledgers: Sequence[Path],
    out: Path,
    overwrite: bool,
    export: str | None,
    seed: int,
    flip: bool,
    neural_cleanse: bool,
    accept: bool,
    device: str | None,
    plugins: Sequence[str],
    as_json: bool,
) -> None:
    """Repair your own model with your own clean images, and write it with a card.

    The file that is written has the names and types of --weights and loads with load_state_dict. A fifth of the images
    is held out: the repair never sees it, and what is printed was measured on it.

    superft repair --weights my.pth --arch torchvision:resnet18 --data photos --size 224 --out repaired.safetensors

    With --choose planted, triggers of our own are planted into copies, many schedules are tried on them, and one that
    removes them at least cost of accuracy repairs the model; what was tried lies in NAME.tried, and the same command
    goes on from there.
    """
    from study.run.own_model import Request, repair_file
    from trainables.choice.base import NothingSafeError
    from trainables.training.loop import DivergedError

    request = Request(
        weights=weights,
        arch=arch,
        defense=defense,
        choose=choose,
        trials=trials,
        ledgers=ledgers,
        out=out,
        data=data,
        images=images,
        size=size,
        mean=mean,
        std=std,
        classes=classes,
        width=width,
        key=key,
        assignments=assignments,
        seed=seed,
        flip=flip,
        device=device,
        neural_cleanse=neural_cleanse,
        accept=accept,
        overwrite=overwrite,
        export=export,
        plugins=plugins,
    )
    try:
        result, card = repair_file(request, None if as_json else lambda line: click.echo(line, err=True))
    except DivergedError as error:
        click.echo(f"superft: the repair diverged: {error}; nothing was written; lower its learning rates", err=True)
        sys.exit(DIVERGED)
    except NothingSafeError as error:
        for line in (f"superft: {error}; no weights were written", *error.choice.reasons[1:]):
            click.echo(line, err=True)
        sys.exit(METHOD_FAILED)
    if as_json:
        click.echo(json.dumps(card, allow_nan=False))
        return
    click.echo(str(result))
    click.echo(f"weights: {out}")
    if export is not None:
        click.echo(f"graph: {card['onnx'].get('error') or out.with_suffix('.onnx')}")
    click.echo(f"card: {out.with_suffix('.json')}")


@click.command()
@click.argument("directory", type=as_place, required=False)
@click.option("--trial", help="Id of the trial, as in trials.csv.")
@click.option("--pick", help="Instead: knee, or drop_0.5, drop_1, drop_2, drop_5, max_der of the front.")
@click.option("--victim", help="Instead of DIRECTORY: a victim of the store, with --format folder or backdoorbench.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["weights", "onnx", "folder", "backdoorbench"]),
    default="weights",
    show_default=True,
    help="Of a trial: its weights, or a graph (onnx). Of a victim: --out is a folder, for victim.json, weights and "
    "images (folder), or for attack_result.pt and its images (backdoorbench).",
)
@click.option("--attack", help="Which front or cell, where there are several.")
@click.option("--defense", help="Likewise.")
@click.option("--seed", type=SEED, help="Of the victim, likewise.")
@OUT
@OVERWRITE
@STORE
@DOWNLOAD
@DEVICE
@bad_input_is_one_line
def export(
    directory: Place | None,
    trial: str | None,
    pick: str | None,
    victim: str | None,
    form: str,
    attack: str | None,
    defense: str | None,
    seed: int | None,
    out: Path,
    overwrite: bool,
    store: Place | None,
    download: bool,
    device: str | None,
) -> None:
    """Write the repaired model of a trial of a study, or a victim as a folder that others can read.

    Where the study kept the model (the key keep of a study), that file is taken. Else the trial is run again, which
    takes as long as it took, and held against its row: a model that does not measure as the row says is not written.
    """
    from study.run.export import export_trial
    from study.run.peers import export_backdoorbench
    from study.run.victim_folder import export_folder
    from study.spec.yaml_io import SpecError

    if (form in ("folder", "backdoorbench")) != (victim is not None) or (directory is None) == (victim is None):
        raise SpecError("give either DIRECTORY, or --victim NAME --format folder or backdoorbench")
    if victim is not None:
        write = export_folder if form == "folder" else export_backdoorbench
        written = write(victim, out, store=store, download=download, overwrite=overwrite)
        click.echo(f"wrote {written}; its images lie beside it")
        return
    assert directory is not None
    card = export_trial(
        directory,
        out,
        trial=trial,
        pick=pick,
        attack=attack,
        defense=defense,
        seed=seed,
        store=store,
        device=device,
        overwrite=overwrite,
        form=form,
        say=lambda line: click.echo(f"superft: {line}", err=True),
    )
    row, checked = card["row"], card["checked"]
    if card["kept"] is not None:
        said = "as the study kept it: its hash is the row's"
    elif checked["equal"]:
        said = "made again: every result equals its row"
    else:
        said = f"made again: differs from its row in {len(checked['differs'])} columns"
    click.echo(
        f"{card['trial']}: {card['arch']}, ASR {row['asr']:.4f}, clean accuracy {row['clean_accuracy']:.4f}; {said}"
    )
    click.echo(f"{'graph' if form == 'onnx' else 'weights'}: {out}")
    click.echo(f"card: {out.with_suffix('.json')}")


@click.command()
@WEIGHTS
@click.option("--victim", required=True, help="Its name in the store (column victim of a row), or how that begins.")
@STORE
@click.option("--arch", metavar="ARCH", help="As for superft repair.  [default: the victim's]")
@WIDTH
@KEY
@MEAN
@STD
@DOWNLOAD
@DEVICE
@PLUGIN
@JSON
@bad_input_is_one_line
def evaluate(
    weights: Path,
    victim: str,
    store: Place | None,
    arch: str | None,
    width: int | None,
    key: str | None,
    mean: str | None,
    std: str | None,
    download: bool,
    device: str | None,
    plugins: Sequence[str],
    as_json: bool,
) -> None:
    """Measure weights against a stored victim: ASR of its trigger, clean and robust accuracy on its test set."""
    from study.run.evaluate_weights import describe_evaluation, evaluate_file

    found = evaluate_file(
        weights,
        victim,
        store=store,
        arch=arch,
        width=width,
        key=key,
        mean=mean,
        std=std,
        download=download,
        device=device,
        plugins=plugins,
    )
    click.echo(json.dumps(found, allow_nan=False) if as_json else describe_evaluation(found))
