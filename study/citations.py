"""References of what a study used, as BibTeX: for ``superft cite``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from study.record.folder import LEDGER_FILE, stored_spec
from study.record.ledger import Ledger

PROJECT = ("superft", "sha2022finetuning")
# Method -> keys of references.bib; an empty tuple is a method that belongs to nobody.
ATTACKS: dict[str, tuple[str, ...]] = {
    "adap_blend": ("qi2023revisiting",),
    "badencoder": ("jia2022badencoder", "chen2020simclr"),
    "badnets": ("gu2017badnets",),
    "blended": ("chen2017targeted",),
    "clean": (),
    "clean_encoder": ("chen2020simclr",),
    "handcrafted": ("hong2022handcrafted",),
    "imc": ("pang2020imc",),
    "inputaware": ("nguyen2020inputaware",),
    "latent": ("yao2019latent",),
    "lf": ("zeng2021frequency",),
    "sbl": ("pham2024sbl",),
    "sig": ("barni2019sig",),
    "wanet": ("nguyen2021wanet",),
}
DEFENSES: dict[str, tuple[str, ...]] = {
    "abl": ("li2021abl",),
    "ac": ("chen2018ac",),
    "anp": ("wu2021anp",),
    "awm": ("chai2022awm",),
    "clp": ("zheng2022clp",),
    "fp": ("liu2018finepruning",),
    "fst": ("min2023fst",),
    "ft": (),
    "ft_sam": ("zhu2023ftsam",),
    "ibau": ("zeng2022ibau",),
    "nad": ("li2021nad",),
    "nc": ("wang2019nc",),
    "none": (),
    "rnp": ("li2023rnp",),
    "sau": ("wei2023sau",),
    "scratch": (),
    "spectral": ("tran2018spectral",),
    "super_ft": ("sha2022finetuning",),
}
RUNS = ("liaw2018tune", "paszke2019pytorch")
SEARCHES = ("akiba2019optuna",)


def references(directory: Path | None = None) -> str:
    """BibTeX of the attacks, defenses and tools of the study in ``directory``; without one, of this project.

    What counts is what trials were finished of. A method that this table does not know (somebody's plug-in) is named in
    a comment.

    Raises:
        SpecError: the folder holds no study.
    """
    if directory is None:
        return _bibtex([("superft and the paper that it grew out of", PROJECT)])
    stored_spec(directory)
    rows = Ledger.read(directory / LEDGER_FILE).rows()
    parts: list[tuple[str, Sequence[str] | None]] = [("superft", PROJECT[:1])]
    for kind, table in (("attack", ATTACKS), ("defense", DEFENSES)):
        parts += [(f"{kind} {name}", table.get(name)) for name in sorted({str(row[kind]) for row in rows})]
    if rows:
        parts.append(("trials: Ray Tune, PyTorch", RUNS))
    if any(row.get("role") == "search" for row in rows):
        parts.append(("searches: Optuna", SEARCHES))
    return _bibtex(parts)


def entries() -> dict[str, str]:
    """The entries of references.bib by their key."""
    text = (resources.files("study") / "references.bib").read_text(encoding="utf-8")
    found = re.findall(r"^@\w+\{([^,\s]+),\n.*?^\}$", text, flags=re.M | re.S)
    whole = re.finditer(r"^@\w+\{.*?^\}$", text, flags=re.M | re.S)
    return dict(zip(found, (match[0] for match in whole), strict=True))


def _bibtex(parts: Iterable[tuple[str, Sequence[str] | None]]) -> str:
    """Each part under a comment; an entry stands where it is needed first."""
    known, printed, lines = entries(), set[str](), list[str]()
    for title, keys in parts:
        if keys is None:
            lines.append(f"% {title}: no reference is known here; ask its author\n")
        for key in keys or ():
            if key not in printed:
                lines.append(f"% {title}\n{known[key]}\n")
                printed.add(key)
    return "\n".join(lines).rstrip()
