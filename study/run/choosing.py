"""A rule of choice with its trials side by side: planted copies are made once, each candidate on each is one piece.

The rule itself stays as it is: everything that it would try is done by workers and entered, and then it decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from study.cluster.workers import Workers
from study.record.stopped import StudyStoppedError
from study.record.tried import TriedRows
from study.record.words import duration
from study.run.before_trials import stop_for
from study.run.on_tune import cause
from study.search.candidates import Candidates
from trainables.choice.base import PUBLISHED, Candidate, Choice, Rule, Suspect, first_candidates
from trainables.choice.elsewhere import Tried, digest, for_travel, plant_there, try_there
from trainables.choice.planted import Planted, Score, beside, keep
from trainables.choice.planting import Copy
from trainables.defenses.base import DEFENSES
from trainables.foreign.progress import work_of
from trainables.seeding import derive_seed

LINE_EVERY = 2.0  # seconds between lines of progress, at least
Say = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """A model that candidates are tried on.

    Args:
        name: after its content, as rows have it.
        words: for people.
        on: the suspect or a planted copy, in this process.
        shared: what workers are given.
    """

    name: str
    words: str
    on: Suspect | Copy
    shared: Any

    @property
    def triggered(self) -> int | None:
        """Triggered images of a copy."""
        return len(self.on.triggered) if isinstance(self.on, Copy) else None

    def enter(self, tried: Tried) -> None:
        """Take over what was tried on it."""
        if isinstance(self.on, Copy):
            assert tried.obeyed is not None, "a copy is looked at"
            self.on.enter(tried.attempt, tried.obeyed, tried.looking)
        else:
            self.on.enter(tried.attempt)

    def work(self, candidate: Candidate) -> int:
        """Samples that trying ``candidate`` on it takes, about."""
        suspect = self.on.suspect if isinstance(self.on, Copy) else self.on
        images = suspect.images
        defense = DEFENSES.create(candidate.defense, candidate.settings)
        return work_of(defense.plan_for(suspect.model.num_classes, len(images.train), len(images.validation)))


class Chooser:
    """Carries out a rule that tries candidates; to be given to `repair_model` in place of a defense.

    Args:
        rule: which tries candidates on the model, or on planted copies.
        trials: candidates that are tried; more than the known ones are proposed by a sampler, where copies are planted.
        workers: do the pieces.
        rows: what was tried before, and where new results go.
        say: gets lines of progress.
    """

    def __init__(self, rule: Rule, trials: int, workers: Workers, rows: TriedRows, say: Say | None) -> None:
        self.rule, self.trials, self.rows = rule, trials, rows
        self._workers, self._say = workers, say or _silent

    def __call__(self, suspect: Suspect) -> Choice:
        """The rule's choice for ``suspect``; the repair that is chosen is handed over with it.

        Raises:
            StudyStoppedError: a piece failed; the same call goes on where it was.
        """
        for line in self.rows.damaged:
            self._say(line)
        # Before anything is kept in the suspect, which would travel with it.
        shared = self._workers.share(for_travel(suspect))
        untouched = Place(f"untouched-{digest(suspect)}", "the model itself", suspect, shared)
        candidates = first_candidates(self.trials)
        if isinstance(self.rule, Planted):
            copies = self._planted(self.rule, suspect, untouched)
            if len(copies) < self.rule.least:
                return self.rule.choose(suspect, candidates)  # which refuses
            candidates = self._on_copies(self.rule, suspect, copies, candidates)
            while left := self.rule.finalists_left(suspect, candidates):
                self._try([(untouched, one) for one in left])
        else:
            self._try([(untouched, one) for one in candidates])
        choice = self.rule.choose(suspect, candidates)
        # Rows keep no model: what was tried in an earlier process is repaired again, and looked at again.
        while choice.attempt is not None and choice.attempt.repair is None and choice.candidate is not None:
            self._say(f"once more, for the model that is handed over: {choice.candidate.label}")
            suspect.enter(self._result(self._workers.start(try_there, shared, choice.candidate)).attempt)
            choice = self.rule.choose(suspect, candidates)
        return choice

    def _planted(self, rule: Planted, suspect: Suspect, untouched: Place) -> list[Place]:
        """A place for each sound copy; all are entered."""
        kinds = rule.wanted_kinds()
        self._say(f"planting triggers of our own, each into a copy: {', '.join(kinds)}")
        handles = {kind: self._workers.start(plant_there, untouched.shared, kind) for kind in kinds}
        places = []
        for kind, handle in handles.items():
            made: Copy = self._result(handle)
            here = made.to(suspect.trainer.device)
            keep(suspect, here)
            self._say(
                f"planted {kind}: {made.asr:.3f} of its triggered images obey, validation accuracy "
                f"{made.accuracy:.3f}, {made.steps} steps"
                f"{'' if made.why_not is None else f'; not used: {made.why_not}'}"
            )
            if made.why_not is None:
                places.append(Place(f"{kind}-{digest(made.suspect)}", kind, here, self._workers.share(made)))
        return places

    def _on_copies(
        self, rule: Planted, suspect: Suspect, copies: Sequence[Place], known: tuple[Candidate, ...]
    ) -> tuple[Candidate, ...]:
        """Try candidates on all copies; those that were proposed."""
        seed = derive_seed(suspect.trainer.seed, "choose")
        proposals = Candidates(known, PUBLISHED, self.trials, seed)

        def result(candidate: Candidate) -> Score | None:
            done = all(isinstance(place.on, Copy) and place.on.known(candidate) for place in copies)
            return rule.score(suspect, candidate) if done else None

        def more() -> Iterator[Candidate]:
            while (candidate := proposals.next(result)) is not None:
                yield candidate

        besides = beside(known)
        pieces = len(copies) * (proposals.left + len(besides))
        self._try(
            ((place, one) for one in besides for place in copies),
            more=lambda: [(place, one) for one in more() for place in copies],
            expected=pieces,
        )
        return proposals.proposed

    def _try(
        self,
        pieces: Iterable[tuple[Place, Candidate]],
        more: Callable[[], list[tuple[Place, Candidate]]] = list,
        expected: int | None = None,
    ) -> None:
        """Do pieces side by side, those that ``more`` gives once others are done included, and enter the results.

        Args:
            expected: how many there will be in all; default: ``pieces``.
        """
        queue = list(pieces)
        clock = Clock(len(queue) if expected is None else expected)
        running: dict[Any, tuple[Place, Candidate]] = {}
        kept: dict[str, Mapping[Candidate, Tried]] = {}
        while True:
            queue += more()
            for place, candidate in queue:
                if place.name not in kept:
                    kept[place.name] = self.rows.of(place.name)
                if (found := kept[place.name].get(candidate)) is not None:
                    place.enter(found)
                    clock.found()
                else:
                    clock.begin(place, candidate)
                    running[self._workers.start(try_there, place.shared, candidate)] = place, candidate
            waits_for_known, queue = bool(queue) and not running, []
            if waits_for_known:
                continue  # all of them were known, so more may be asked for
            if not running:
                return
            handle = self._workers.first(list(running))
            place, candidate = running.pop(handle)
            tried: Tried = self._result(handle, f"{candidate.label} on {place.words}")
            self.rows.add(place.name, tried, place.triggered)
            place.enter(tried)
            clock.end(place, candidate)
            self._tell(clock, place, tried)

    def _tell(self, clock: Clock, place: Place, tried: Tried) -> None:
        if not clock.speaks():
            return
        attempt = tried.attempt
        asr = "" if tried.obeyed is None else f"planted ASR {tried.obeyed / max(1, place.triggered or 0):.3f}, "
        how = "diverged" if attempt.diverged else f"{asr}validation accuracy {attempt.accuracy:.3f}"
        self._say(f"{clock.count} {attempt.candidate.label} on {place.words}: {how}{clock.left()}")

    def _result(self, handle: Any, what: str = "planting") -> Any:
        """What a piece gave back; a worker that was lost has been replaced before."""
        try:
            return self._workers.result(handle)
        except RuntimeError as error:  # as Ray's own errors are, and torch's
            stop_for(error)
            raise StudyStoppedError(f"{what} failed: {cause(error)}") from error


class Clock:
    """Counts pieces, and reckons the time left from the work that those of this process had.

    Args:
        expected: pieces in all.
    """

    def __init__(self, expected: int) -> None:
        self.expected, self.done, self._known = expected, 0, 0
        self._works: dict[tuple[str, Candidate], int] = {}
        self._work_done, self._started, self._spoke = 0, time.monotonic(), -LINE_EVERY

    def found(self) -> None:
        """A piece was done by an earlier process."""
        self.done += 1
        self._known += 1

    def begin(self, place: Place, candidate: Candidate) -> None:
        """A piece is begun."""
        self._works[place.name, candidate] = place.work(candidate)

    def end(self, place: Place, candidate: Candidate) -> None:
        """It is done."""
        self.done += 1
        self._work_done += self._works[place.name, candidate]

    def speaks(self) -> bool:
        """Whether a line is due."""
        now = time.monotonic()
        if self.done < self.expected and now - self._spoke < LINE_EVERY:
            return False
        self._spoke = now
        return True

    @property
    def count(self) -> str:
        """``[7/60]``."""
        return f"[{self.done}/{self.expected}]"

    def left(self) -> str:
        """`` | 3 min left``; what is not begun yet is taken for the mean of what was."""
        here = self.expected - self._known
        if not self._work_done or self.done >= self.expected:
            return ""
        total = sum(self._works.values()) / len(self._works) * here
        passed = time.monotonic() - self._started
        return f" | {duration(passed / self._work_done * max(0.0, total - self._work_done))} left"


def _silent(line: str) -> None:
    """Nobody listens."""
