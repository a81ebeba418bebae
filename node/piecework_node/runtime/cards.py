"""The cards of one worker. Each has an engine of its own, and leaves and comes back alone.

A card is a GPU, a group of GPUs behind one vLLM server, or a CPU. Cards that run the same model
with the same profile serve the same entry of the offer. A job is bound to its entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from piecework_node.engine.link import EngineFacts, EngineLink
from piecework_node.runtime.pause import Pause
from piecework_protocol.objects import ModelOffer
from piecework_protocol.types import Digest


class EngineEntry(NamedTuple):
    """What fixes the bytes of a result: the weights, and the engine that runs them."""

    model: Digest
    profile: str


def entry_of(offered: ModelOffer) -> EngineEntry:
    """Return the entry that a line of an offer stands for."""
    return EngineEntry(offered.digest, offered.profile)


class EngineCard:
    """One card with its engine."""

    def __init__(
        self,
        name: str,
        engine: EngineLink,
        *,
        slots: int,
        queue: int,
        frees_memory: bool = False,
    ) -> None:
        """name: as metrics and commands call it. frees_memory: whether a pause frees the GPU's.

        slots: jobs that run at once. queue: jobs that may wait for a slot.
        """
        self.name, self.engine = name, engine
        self.slots, self.queue, self.frees_memory = slots, queue, frees_memory
        self.pause: Pause | None = None
        """Set while no job takes a step on this card."""
        self.failed = ""
        """Why it takes no jobs until its engine is started once more. Empty: it does."""
        self._facts: EngineFacts | None = None
        self._entry: EngineEntry | None = None

    @property
    def facts(self) -> EngineFacts | None:
        """What it runs, or ran when its engine was last ready. None: not known yet."""
        told = self.engine.facts
        if told is not None and told is not self._facts:
            self._facts, self._entry = told, EngineEntry(told.digest, told.profile)
        return self._facts

    @property
    def entry(self) -> EngineEntry | None:
        """The entry that it serves. None: not known yet."""
        return None if self.facts is None else self._entry

    @property
    def ready(self) -> bool:
        """Whether jobs can be started on it now."""
        return self.engine.ready and not self.failed

    @property
    def serves(self) -> bool:
        """Whether jobs take steps on it now."""
        return self.ready and self.pause is None

    @property
    def capacity(self) -> int:
        """Jobs that may run or wait on it at once."""
        return self.slots + self.queue


@dataclass(frozen=True, slots=True)
class ServedEntry:
    """An entry that a worker can serve, and how many jobs its cards take at once."""

    facts: EngineFacts
    """Of the weakest of its cards."""
    slots: int
    queue: int


class EngineCards:
    """All cards of one worker, in the order of the settings."""

    def __init__(self, cards: Sequence[EngineCard]) -> None:
        """Take at least one card."""
        self._cards = tuple(cards)

    def __iter__(self) -> Iterator[EngineCard]:
        return iter(self._cards)

    def __len__(self) -> int:
        return len(self._cards)

    @property
    def slots(self) -> int:
        """Jobs that run at once on all of them."""
        return sum(card.slots for card in self)

    @property
    def queue(self) -> int:
        """Jobs that may wait on all of them."""
        return sum(card.queue for card in self)

    @property
    def ready(self) -> bool:
        """Whether a job can be started on one of them now."""
        return any(card.ready for card in self)

    @property
    def pause(self) -> Pause | None:
        """The pause of the worker: no card takes steps. None: one does, or none is paused."""
        return _pause(self._cards)

    @property
    def known(self) -> bool:
        """Whether each card has told what it runs, or was given up."""
        return all(card.facts is not None or card.failed for card in self)

    def of(self, entry: EngineEntry, context: int = 0) -> tuple[EngineCard, ...]:
        """Return the cards that serve an entry, or will when they are back.

        context: the tokens that they have to hold at least. Cards of one entry may differ in that.
        """
        return tuple(
            card
            for card in self
            if card.entry == entry
            and not card.failed
            and (card.facts is None or card.facts.max_context >= context)
        )

    def able(self, entry: EngineEntry | None) -> tuple[EngineCard, ...]:
        """Return those whose places count for new jobs of an entry. None: of any.

        These are the ones that take steps, and all of them while none does.
        """
        cards = self._cards if entry is None else self.of(entry)
        return tuple(card for card in cards if card.serves) or cards

    def served(self, entry: EngineEntry | None) -> EngineFacts | None:
        """Return what a card runs that serves an entry. None: no card does."""
        return next((card.facts for card in self.of(entry)), None) if entry else None

    def is_ready_for(self, entry: EngineEntry | None) -> bool:
        """Whether a job of an entry can be started. While a card has not told what it runs, no."""
        cards = self._cards if entry is None else self.of(entry)
        if entry is not None and not cards:
            return self.ready and self.known
        return any(card.ready for card in cards)

    def pause_of(self, entry: EngineEntry | None) -> Pause | None:
        """Return why no card takes steps for an entry, if that is a pause. None: for any."""
        return _pause(self._cards if entry is None else self.of(entry))

    def choose(
        self, entry: EngineEntry, load: Mapping[str, int], context: int = 0
    ) -> EngineCard | None:
        """Return the card for the next job of an entry: of those with room, the one with most free
        slots. None: no card serves the entry.

        load: jobs on each card, by name. One that takes no steps is chosen when no other has room.
        context: the tokens that the job takes at most.
        """

        def rank(card: EngineCard) -> tuple[bool, bool, bool, int]:
            there = load.get(card.name, 0)
            has_room = card.ready and there < card.capacity
            return has_room, card.serves, card.ready, card.slots - there

        return max(self.of(entry, context), key=rank, default=None)

    def has_room(self, entry: EngineEntry, load: Mapping[str, int], context: int = 0) -> bool:
        """Whether a job that lost its card can go on at another one of its entry now."""
        card = self.choose(entry, load, context)
        return card is not None and card.serves and load.get(card.name, 0) < card.capacity

    def can_keep(self, entry: EngineEntry, load: Mapping[str, int], context: int = 0) -> bool:
        """Whether a job has a card to run on or to wait for. A full one that runs does not count.

        An engine refuses what its queue does not hold.
        """
        card = self.choose(entry, load, context)
        return card is not None and (not card.ready or load.get(card.name, 0) < card.capacity)

    def encoder(self, entry: EngineEntry) -> EngineCard | None:
        """Return the running card of an entry that takes the longest prompts. None: none runs."""
        running = [
            (card.ready, facts.max_context, card)
            for card in self.of(entry)
            if (facts := card.engine.facts) is not None
        ]
        return max(running, key=lambda one: one[:2])[2] if running else None

    def entries(self, *, serving: bool) -> dict[EngineEntry, ServedEntry]:
        """Return the entries, with the places of all their cards, or of those that take steps."""
        found: dict[EngineEntry, ServedEntry] = {}
        for card in self:
            facts, entry = card.facts, card.entry
            if facts is None or entry is None or (serving and not card.serves):
                continue
            known = found.get(entry)
            one = ServedEntry(facts, card.slots, card.queue)
            found[entry] = one if known is None else _both(known, one)
        return found


def _pause(cards: Sequence[EngineCard]) -> Pause | None:
    if any(card.serves for card in cards):
        return None
    pauses = [card.pause for card in cards if card.pause is not None]
    return min(pauses, key=lambda pause: pause.until, default=None)


def _both(one: ServedEntry, other: ServedEntry) -> ServedEntry:
    """Two cards of one entry: a job may come to either, so the weaker one is stated."""
    a, b = one.facts, other.facts
    facts = replace(
        a,
        max_context=min(a.max_context, b.max_context),
        tokens_per_second=min(a.tokens_per_second, b.tokens_per_second),
        steps_per_second=min(a.steps_per_second, b.steps_per_second),
        first_canvas_ms=max(a.first_canvas_ms, b.first_canvas_ms),
        kinds=tuple(kind for kind in a.kinds if kind in b.kinds),
        images=a.images and b.images,
    )
    return ServedEntry(facts, one.slots + other.slots, one.queue + other.queue)
