"""Settings that remove backdoors of the defender's own from copies of the model, applied to the model itself.

No paper was found that chooses a repair so; nearest is Mithridates (arXiv:2302.04977), which plants a primitive trigger
in the training data to choose the settings of a training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch

from trainables.choice.base import (
    CANDIDATES,
    FT_PEAK,
    SHORT_RAMP,
    Attempt,
    Candidate,
    Choice,
    Rule,
    Suspect,
    register,
)
from trainables.choice.highest_peak import HighestPeak, allows, strength
from trainables.choice.own_triggers import KINDS
from trainables.choice.planting import Copy, plant
from trainables.choice.validation import described
from trainables.evaluation.metrics import wilson
from trainables.settings import Count, Share, Written
from trainables.training.loop import Counters

# Clean accuracy that people call little, as a fraction; where the choice costs more, it says so.
LITTLE = 0.02
CAVEAT = (
    "planted ASR is a lower bound: a planted trigger that is gone is no evidence that the real one is, for what was "
    "planted last is forgotten first"
)

_kind = "|".join(KINDS)
Kinds = Annotated[str, Written(f"kinds of {', '.join(KINDS)}, joined with commas", rf"({_kind})(,({_kind}))*")]


@dataclass(frozen=True)
class Score:
    """A candidate on all sound copies.

    Args:
        candidate: what was tried.
        obeyed, triggered: per copy, how many of the own triggered images still go to its target, of how many.
        right, images: validation images classified right, over all copies.
        loss_rise: the least among the copies.
    """

    candidate: Candidate
    obeyed: tuple[int, ...]
    triggered: tuple[int, ...]
    right: int
    images: int
    loss_rise: float

    @property
    def asr(self) -> float:
        """Planted ASR of the copy that kept its backdoor best."""
        return max(self.rates)

    @property
    def rates(self) -> tuple[float, ...]:
        """Planted ASR per copy."""
        return tuple(hits / max(1, n) for hits, n in zip(self.obeyed, self.triggered, strict=True))

    @property
    def accuracy(self) -> float:
        """Mean validation accuracy over the copies."""
        return self.right / self.images

    def row(self, kinds: Sequence[str]) -> dict[str, Any]:
        """Cells of a table: planted ASR per kind of trigger with its 95 % interval, over all own images."""
        cells: dict[str, Any] = {"candidate": self.candidate.label, "planted_asr": self.asr}
        for kind, hits, n in zip(kinds, self.obeyed, self.triggered, strict=True):
            low, high = wilson(hits, n)
            cells |= {f"planted_asr.{kind}": hits / max(1, n)}
            cells |= {f"planted_asr.{kind}.low": low, f"planted_asr.{kind}.high": high}
        return cells | {"validation_accuracy": self.accuracy, "loss_rise": self.loss_rise}


@register("planted")
@dataclass(frozen=True)
class Planted(Rule):
    """Plant triggers of one's own, see which candidates remove them, and take the one that costs least accuracy.

    1. A copy of the model per kind of trigger learns it gently, each with a target of its own; a copy that does not
    obey, or lost accuracy, is left out. 2. Every candidate repairs every copy; its score is the planted ASR, over all
    own images, of the copy that kept its backdoor best. 3. The near-best candidates, the shortest of them included,
    repair the untouched model. One passes if the model moved, if its loss rose about as it did on the copies, and if
    validation accuracy is about what it was there. 4. Of those that passed, the one with the best validation accuracy,
    pooled with that of the copies, is chosen.

    Args:
        kinds: of triggers, each in a copy of its own.
        gone: largest planted ASR at which a candidate counts as having removed the triggers, in [0, 1].
        margin: of planted ASR above the best candidate's within which another is near-best, in [0, 1].
        finalists: near-best candidates that are tried on the untouched model, besides the shortest, >= 1.
        rise_share: of the least rise of the loss on the copies, what it must be on the untouched model, in [0, 1].
        least: copies that must be sound, >= 1.
    """

    tries: ClassVar[Literal["nothing", "model", "copies"]] = "copies"

    kinds: Kinds = "patch,noise,waves"
    gone: Share = 0.1
    margin: Share = 0.05
    finalists: Count = 3
    rise_share: Share = 0.5
    least: Count = 2

    def choose(self, suspect: Suspect, candidates: tuple[Candidate, ...] = CANDIDATES) -> Choice:
        if not candidates:
            return Choice(self.name, None, ("there is no candidate to choose from",))
        before, looked = suspect.before()
        copies = self.copies(suspect)
        work = [looked, *(one.work for one in copies)]
        said = tuple(f"planted {one.kind} is not used: {one.why_not}" for one in copies if one.why_not is not None)
        sound = [one for one in copies if one.why_not is None]
        if len(sound) < self.least:
            reason = f"only {len(sound)} of {len(copies)} planted copies are sound, {self.least} are needed"
            return Choice(self.name, None, (reason, *said), sum(work, Counters()))
        scores, spent = _scores(sound, candidates)
        shown, extra = _scores(sound, beside(candidates))
        work += [*spent, *extra]
        kinds = [one.kind for one in sound]
        table = tuple(score.row(kinds) for score in (*scores, *shown))
        ranked = self.near_best(scores)
        if not ranked:
            best = min(scores, key=lambda score: score.asr)
            reason = (
                f"none of {len(scores)} candidates is safe: even {best.candidate.label} leaves a planted trigger an "
                f"ASR of {best.asr:.3f}"
            )
            return Choice(self.name, None, (reason, *said), sum(work, Counters()), table=table)
        passed, rejected = list[tuple[Score, Attempt]](), list[str]()
        for place, score in enumerate(ranked):
            # The next ones have their turn only where none of the first passed.
            if place > self.finalists and passed:
                break
            attempt = suspect.attempt(score.candidate)
            work.append(attempt.work)
            why = self.fails(score, attempt)
            if why is None:
                passed.append((score, attempt))
            else:
                rejected.append(f"{score.candidate.label} is not taken: {why}")
        if not passed:
            reason = "no candidate that removes the planted triggers did to the model what it did to the copies"
            return Choice(self.name, None, (reason, *rejected, *said), sum(work, Counters()), table=table)
        # Few images make many ties: of equals the one whose loss rose most, which goes with removal.
        score, attempt = max(passed, key=lambda pair: (_pooled(*pair), pair[1].loss_rise))
        reasons = (
            f"it leaves planted triggers ({', '.join(kinds)}) an ASR of at most {score.asr:.3f}, and of "
            f"{len(passed)} such candidates that passed on the untouched model it keeps most validation accuracy "
            f"({attempt.accuracy:.3f} of {attempt.images} images, before: {before:.3f}, on the copies: "
            f"{score.accuracy:.3f})",
            CAVEAT,
            *_price(scores, before, self.gone, score),
            *_beside([*scores, *shown], before, attempt.images),
            *rejected,
            *said,
        )
        row = {"untouched": True, **described(attempt)}
        planted = tuple(_told(one, hits) for one, hits in zip(sound, score.obeyed, strict=True))
        return Choice(self.name, score.candidate, reasons, sum(work, Counters()), attempt, (*table, row), planted)

    def copies(self, suspect: Suspect) -> list[Copy]:
        """The planted copies of ``suspect``, made once."""
        return planted_copies(suspect, self.wanted_kinds())

    def wanted_kinds(self) -> list[str]:
        """Kinds of triggers, each once."""
        return list(dict.fromkeys(self.kinds.split(",")))

    def score(self, suspect: Suspect, candidate: Candidate) -> Score:
        """``candidate`` on the sound copies of ``suspect``."""
        return _scores([one for one in self.copies(suspect) if one.why_not is None], [candidate])[0][0]

    def finalists_left(self, suspect: Suspect, candidates: tuple[Candidate, ...]) -> list[Candidate]:
        """What `choose` would try on the untouched model next, side by side; none: it has all that it needs."""
        ranked = self.near_best([self.score(suspect, candidate) for candidate in candidates])
        first, later = ranked[: self.finalists + 1], ranked[self.finalists + 1 :]
        if left := [one.candidate for one in first if suspect.known(one.candidate) is None]:
            return left
        if any(self.fails(one, suspect.attempt(one.candidate)) is None for one in first):
            return []
        for one in later:
            if suspect.known(one.candidate) is None:
                return [one.candidate]
            if self.fails(one, suspect.attempt(one.candidate)) is None:
                break
        return []

    def near_best(self, scores: Sequence[Score]) -> list[Score]:
        """Candidates that removed the planted triggers about as well as the best, most accurate first.

        The shortest of them stands at latest behind the first ``finalists``, so that it is always tried: what leaves a
        model where it is are long slow ramps on few images.
        """
        limit = min(self.gone, min(score.asr for score in scores) + self.margin)
        near = [score for score in scores if score.asr <= limit + 1e-9]
        near.sort(key=lambda score: (-score.accuracy, -score.loss_rise))
        if len(near) > self.finalists:
            shortest = min(near, key=lambda score: strength(score.candidate)[1])
            if near.index(shortest) > self.finalists:
                near.remove(shortest)
                near.insert(self.finalists, shortest)
        return near

    def fails(self, score: Score, attempt: Attempt) -> str | None:
        """Why a candidate that did well on the copies does not pass on the untouched model, in words."""
        if attempt.diverged:
            return "the training diverged"
        if not attempt.moved:
            return "it hardly moved"
        if attempt.loss_rise < self.rise_share * score.loss_rise:
            return f"the loss rose by {attempt.loss_rise:.3f} only, on the copies by at least {score.loss_rise:.3f}"
        if wilson(attempt.right, attempt.images)[1] < score.accuracy:
            return f"validation accuracy {attempt.accuracy:.3f} is below that of the copies, {score.accuracy:.3f}"
        return None


def beside(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """What is tried on the copies besides, and charged, so that nobody has to take the choice on trust."""
    return tuple(one for one in (SHORT_RAMP, FT_PEAK) if one not in candidates)


def planted_copy(suspect: Suspect, kind: str) -> Copy:
    """A new copy of ``suspect`` with a trigger of ``kind``; each kind has a target of its own, drawn once for all."""
    classes = suspect.model.num_classes
    order = torch.randperm(classes, generator=suspect.trainer.generator("planted", "targets")).tolist()
    return plant(suspect, kind, order[list(KINDS).index(kind) % classes])


def planted_copies(suspect: Suspect, kinds: Iterable[str]) -> list[Copy]:
    """A copy of ``suspect`` per kind of trigger, made once."""
    found = []
    for kind in kinds:
        if kept(suspect, kind) is None:
            keep(suspect, planted_copy(suspect, kind))
        found.append(suspect.kept["planted", kind])
    return found


def kept(suspect: Suspect, kind: str) -> Copy | None:
    """The copy with a trigger of ``kind``, where it was made."""
    found: Copy | None = suspect.kept.get(("planted", kind))
    return found


def keep(suspect: Suspect, planted: Copy) -> None:
    """Take over a copy that was made elsewhere, of the same suspect."""
    suspect.kept["planted", planted.kind] = planted


def _told(planted: Copy, hits: int) -> dict[str, Any]:
    """A trigger in the card: what share of the own images obeyed it on its copy, and after the chosen candidate."""
    n = len(planted.triggered)

    def rate(count: int) -> dict[str, Any]:
        return {"rate": count / max(1, n), "count": count, "of": n, "interval": list(wilson(count, n))}

    return {
        "kind": planted.kind,
        "target": planted.target,
        "steps": planted.steps,
        "asr_before": rate(round(planted.asr * n)),
        "asr_after": rate(hits),
    }


def _scores(copies: Sequence[Copy], candidates: Sequence[Candidate]) -> tuple[list[Score], list[Counters]]:
    found, work = list[Score](), list[Counters]()
    for candidate in candidates:
        attempts = [one.suspect.attempt(candidate) for one in copies]
        looks = [one.obeyed(candidate) for one in copies]
        work += [attempt.work for attempt in attempts] + [spent for _, spent in looks]
        found.append(
            Score(
                candidate,
                tuple(hits for hits, _ in looks),
                tuple(len(one.triggered) for one in copies),
                sum(attempt.right for attempt in attempts),
                sum(attempt.images for attempt in attempts),
                min(attempt.loss_rise for attempt in attempts),
            )
        )
    return found, work


def _pooled(score: Score, attempt: Attempt) -> float:
    return (score.right + attempt.right) / (score.images + attempt.images)


def _price(scores: Sequence[Score], before: float, gone: float, chosen: Score) -> tuple[str, ...]:
    """What is said where little accuracy does not buy a repair."""
    least = max(score.accuracy for score in scores if score.asr <= gone)
    if before - least <= LITTLE + 1e-9:
        return ()
    return (
        f"{100 * LITTLE:g} points of accuracy do not buy a repair here: what removed the planted triggers lost at "
        f"least {100 * (before - least):.1f} points on the copies, this candidate "
        f"{100 * (before - chosen.accuracy):.1f}",
    )


def _beside(scores: Sequence[Score], before: float, images: int) -> tuple[str, ...]:
    """What simpler choices would have come to on the copies."""
    by: Mapping[Candidate, Score] = {score.candidate: score for score in scores}
    named = {"fine-tuning from 0.1": by.get(FT_PEAK), "a short ramp to 0.1": by.get(SHORT_RAMP)}
    allowed = [
        score
        for score in scores
        if score.candidate != FT_PEAK and allows(score.accuracy, before, HighestPeak().drop, images)
    ]
    if allowed:
        named["the highest peak that validation allows"] = max(allowed, key=lambda score: strength(score.candidate))
    words = [
        f"{name}{f' ({one.candidate.label})' if name.startswith('the') else ''} {one.asr:.3f} / {one.accuracy:.3f}"
        for name, one in named.items()
        if one is not None
    ]
    return (f"beside it, planted ASR / validation accuracy on the copies: {', '.join(words)}",)
