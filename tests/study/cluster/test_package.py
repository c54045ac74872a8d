"""What `superft submit` packs: the code and the spec, no data, the same each time."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from study.cluster import submit
from study.spec.load import load_spec
from study.spec.yaml_io import SpecError
from tests.study.processes import ROOT
from tests.study.tiny import tiny_spec


def names(package: Path) -> list[str]:
    with zipfile.ZipFile(package) as archive:
        return archive.namelist()


def test_the_package_is_the_code_and_the_spec_and_small(tmp_path: Path) -> None:
    submit.write_package(ROOT, tiny_spec(), tmp_path / "a.zip")
    packed = names(tmp_path / "a.zip")
    assert {name.split("/")[0] for name in packed} == {*submit.CODE, "study.yaml"}
    assert {"study/cli.py", "study/recipes/quickstart.yaml", "trainables/trial.py"} <= set(packed)
    assert not [name for name in packed if "__pycache__" in name or name.endswith(".pyc")]
    # The code alone, growing as it may: a fiftieth of what a cluster takes.
    assert (tmp_path / "a.zip").stat().st_size < submit.LARGEST_PACKAGE / 50


def test_the_same_code_and_spec_make_the_same_package(tmp_path: Path) -> None:
    for name in ("a", "b"):
        submit.write_package(ROOT, tiny_spec(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_spec_in_the_package_is_complete(tmp_path: Path) -> None:
    spec = tiny_spec("search.storage=postgresql://ann:s3cret@db/superft", "store=/shared/victims")
    submit.write_package(ROOT, spec, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extract("study.yaml", tmp_path)
    assert load_spec(str(tmp_path / "study.yaml")) == spec


def checkout(folder: Path) -> Path:
    for name in ("superft", "study", "search_spaces", "trainables", "runs"):
        (folder / name).mkdir(parents=True)
        (folder / name / "code.py").write_text("pass\n")
    (folder / "pyproject.toml").write_text("")
    return folder


@pytest.mark.parametrize("name", ["trainables/cifar.tar.gz", "study/victim.safetensors", "trainables/a/cat.PNG"])
def test_data_among_the_code_are_refused_unless_they_are_ignored(name: str, tmp_path: Path) -> None:
    root = checkout(tmp_path / "root")
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes(b"0")
    with pytest.raises(SpecError, match=rf"^{name} \(0\.0 MiB\) lies among the code.*\.rayignore$"):
        submit.write_package(root, tiny_spec(), tmp_path / "a.zip")
    (root / ".rayignore").write_text(f"{name}\n")
    submit.write_package(root, tiny_spec(), tmp_path / "a.zip")
    assert name not in names(tmp_path / "a.zip")


def test_a_large_file_is_data_whatever_its_name(tmp_path: Path) -> None:
    root = checkout(tmp_path / "root")
    (root / "study" / "table.py").write_bytes(b"#" * (submit.LARGEST_FILE + 1))
    with pytest.raises(SpecError, match=r"study/table\.py \(1\.0 MiB\)"):
        submit.write_package(root, tiny_spec(), tmp_path / "a.zip")


def test_a_package_above_the_clusters_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "LARGEST_PACKAGE", 100)
    with pytest.raises(SpecError, match=r"packs to 0 MiB, the cluster takes 0: .*\.rayignore"):
        submit.write_package(checkout(tmp_path / "root"), tiny_spec(), tmp_path / "a.zip")


def test_folders_beside_the_code_do_not_travel(tmp_path: Path) -> None:
    root = checkout(tmp_path / "root")
    (root / "runs" / "big.npy").write_bytes(b"0")
    assert {file.relative_to(root).parts[0] for file in submit.code_files(root)} == {*submit.CODE}


def test_rayignore_leaves_the_code_and_specs_for_rays_own_submit(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    root = checkout(tmp_path / "root")
    (root / ".rayignore").write_text((ROOT / ".rayignore").read_text())
    for name in ("runs/big.npy", "my.yaml", "cifar.zip"):
        (root / name).write_bytes(b"0")
    create_package(str(root), tmp_path / "a.zip", include_gitignore=True)
    packed = {name.split("/")[0] for name in names(tmp_path / "a.zip") if not name.endswith("/")}
    assert packed == {*submit.CODE, "my.yaml"}
