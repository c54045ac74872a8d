"""References of what a study used, as BibTeX: for ``superft cite``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from study.record.folder import LEDGER_FILE, stored_spec
from study.record.ledger import Ledger
from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES
from trainables.registry import Registry, SettingError


def references(directory: Path | None = None) -> str:
    """BibTeX of the attacks, defenses and tools of the study in ``directory``; without one, of this project.

    What counts is what trials were finished of. A method of somebody else is cited by its class's ``reference``, a
    text in BibTeX; where it has none, a comment names the method.

    Raises:
        SpecError: the folder holds no study.
    """
    if directory is None:
        return _bibtex(["project"])
    stored_spec(directory)
    rows = Ledger.read(directory / LEDGER_FILE).rows()
    wanted = ["study"]
    for kind in ("attack", "defense"):
        wanted += [f"{kind} {name}" for name in sorted({str(row[kind]) for row in rows})]
    if rows:
        wanted.append("trials")
    if any(row.get("role") == "search" for row in rows):
        wanted.append("searches")
    return _bibtex(wanted)


def entries() -> dict[str, tuple[str, frozenset[str]]]:
    """Key of each entry of references.bib -> the entry as it is printed, and who needs it."""
    text = (resources.files("study") / "references.bib").read_text(encoding="utf-8")
    found = {}
    for match in re.finditer(r"^@\w+\{([^,\s]+),\n.*?^\}$", text, flags=re.M | re.S):
        entry, keywords = re.subn(r",\n  keywords = \{[^}]*\}", "", match[0])
        needed = re.findall(r"\n  keywords = \{([^}]*)\}", match[0])
        assert keywords == len(needed) == 1, f"references.bib: {match[1]} needs one line of keywords"
        found[match[1]] = entry, frozenset(needed[0].split(", "))
    return found


def _bibtex(wanted: Iterable[str]) -> str:
    """Each entry once, under a comment that says what needs it first."""
    known, printed, lines = entries(), set[str](), list[str]()
    for need in wanted:
        keys = [key for key, (_, needs) in known.items() if need in needs]
        if not keys and (theirs := _of_somebody_else(need)):
            lines.append(theirs)
        for key in keys:
            if key not in printed:
                lines.append(f"% {need}\n{known[key][0]}\n")
                printed.add(key)
    return "\n".join(lines).rstrip()


def _of_somebody_else(need: str) -> str:
    """What is printed of a method that does not ship with superft; nothing for one of ours, which has no paper."""
    kind, _, name = need.partition(" ")
    registries: dict[str, Registry[Any]] = {"attack": ATTACKS, "defense": DEFENSES}
    try:
        cls = registries[kind].get(name)
    except SettingError:
        cls = None
    if cls is not None and cls.__module__.startswith("trainables."):
        return ""
    reference = getattr(cls, "reference", None)
    return f"% {need}\n{reference}\n" if reference else f"% {need}: no reference is known here; ask its author\n"
