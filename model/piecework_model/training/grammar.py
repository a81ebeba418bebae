"""The text that the bundled model learns: requests and short stories, drawn from a seeded grammar.

A story is built around four things: a hero, a helper, an object and a place. A request names some
of them, and the story must be about those. The others are free. Nothing here is copied from a book.
Every sentence is put together from the lists below, so there are far more stories than a training
run can see.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from piecework_model.training import lexicon


@dataclass(frozen=True, slots=True)
class Tale:
    """A story sentence by sentence, and what is true in it.

    facts: the values of all slots, and `fate`, what happened to the object.
    """

    sentences: tuple[str, ...]
    facts: Mapping[str, str]

    @property
    def text(self) -> str:
        """The story as one text."""
        return " ".join(self.sentences)


@dataclass(frozen=True, slots=True)
class Cast:
    """Who and what a story is about. `asked` are the roles that a request names."""

    hero: str
    helper: str
    thing: str
    place: str
    asked: tuple[str, ...] = ()

    @property
    def nouns(self) -> tuple[str, ...]:
        """The requested nouns, in the order hero, helper, object, place."""
        return tuple(str(getattr(self, role)) for role in self.asked)


@dataclass(frozen=True, slots=True)
class Example:
    """One request with the story that answers it, and the nouns that the story was asked to
    contain."""

    prompt: str
    tale: Tale
    nouns: tuple[str, ...]


_PHRASES = frozenset(
    {
        *("a_hero", "a_helper", "a_thing", "at_place", "at_far", "when", "gift", "spot", "lesson"),
        *("one_hero", "one_helper", "One_helper", "fate"),
    }
)
"""The slots of more than one word."""
_SLOT = re.compile(r"\{(\w+)\}")


def article(phrase: str) -> str:
    """Put the indefinite article that its first letter asks for before `phrase` ("an owl", "a
    unicorn").
    """
    vowel = phrase[0].lower() in "aeio" or (phrase[0] == "u" and not phrase.startswith("uni"))
    return f"{'an' if vowel else 'a'} {phrase}"


def _slots(cast: Cast, rng: random.Random, few: int | None) -> dict[str, str]:
    """Choose the values of every slot of the sentence templates, consistent within one story."""
    name, subject, object_, possessive = rng.choice(lexicon.NAMES[:few])
    verb, gerund = lexicon.THINGS[cast.thing]
    adjective, helper_adjective = rng.sample(lexicon.CHARACTER_ADJECTIVES, 2)
    thing_adjective = rng.choice(lexicon.THING_ADJECTIVES)
    places = list(lexicon.PLACES)[:few]
    other_place = rng.choice([place for place in places if place != cast.place])
    return {
        "name": name,
        "they": subject,
        "They": subject.capitalize(),
        "them": object_,
        "their": possessive,
        "hero": cast.hero,
        "a_hero": article(f"{adjective} {cast.hero}"),
        "helper": cast.helper,
        "a_helper": article(f"{helper_adjective} {cast.helper}").capitalize(),
        "thing": cast.thing,
        "a_thing": article(f"{thing_adjective} {cast.thing}"),
        "works": verb,
        "working": gerund,
        "place": cast.place,
        "at_place": f"{lexicon.PLACES[cast.place]} the {cast.place}",
        "far": other_place,
        "at_far": f"{lexicon.PLACES[other_place]} the {other_place}",
        "when": rng.choice(lexicon.TIMES),
        "weather": rng.choice(lexicon.WEATHERS),
        "gift": rng.choice(lexicon.GIFTS),
        "spot": rng.choice(lexicon.SPOTS),
        "lesson": rng.choice(lexicon.LESSONS),
    }


def fill(template: str, facts: Mapping[str, str]) -> str:
    """Put the facts into the slots of a sentence."""
    return _SLOT.sub(lambda match: facts[match[1]], template)


def tell(cast: Cast, rng: random.Random, *, brief: bool = False, few: int | None = None) -> Tale:
    """Write one story about `cast`: 8 to 11 sentences, or 6 if it is to be brief.

    few: how many names and places it chooses among, or None for all.
    """
    slots = _slots(cast, rng, few)
    fate, problem, found = rng.choice(lexicon.PROBLEMS)
    sentences = [rng.choice(lexicon.OPENINGS), rng.choice(lexicon.POSSESSIONS)]
    if not brief and rng.random() < 0.25:
        sentences.append(rng.choice(lexicon.HABITS))
    sentences.append(problem)
    if not brief:
        sentences.append(rng.choice(lexicon.FEELINGS))
    sentences.append(rng.choice(lexicon.HELPERS))
    if not brief:
        sentences.append(rng.choice(lexicon.JOURNEYS))
    if not brief and rng.random() < 0.3:
        sentences.append(rng.choice(lexicon.TRIALS))
    sentences.append(found)
    if not brief:
        sentences.append(rng.choice(lexicon.THANKS))
    if not brief and rng.random() < 0.3:
        sentences.append(rng.choice(lexicon.RETURNS))
    sentences.append(rng.choice(lexicon.ENDINGS))
    facts = {**slots, "fate": fate}
    return Tale(tuple(fill(sentence, facts) for sentence in sentences), facts)


def draw_cast(
    rng: random.Random,
    requested: Sequence[tuple[str, ...]] | None = None,
    few: int | None = None,
) -> Cast:
    """Draw a random cast of which one of the `requested` sets of roles is asked for.

    few: how many of each kind of noun it draws among, or None for all.
    """
    hero, helper = rng.sample(lexicon.CHARACTERS[:few], 2)
    thing, place = rng.choice(list(lexicon.THINGS)[:few]), rng.choice(list(lexicon.PLACES)[:few])
    return Cast(hero, helper, thing, place, rng.choice(requested or lexicon.REQUESTED))


def _cased(noun: str, rng: random.Random) -> str:
    return noun.capitalize() if rng.random() < 0.04 else noun


def listing(nouns: tuple[str, ...], rng: random.Random) -> str:
    """List the requested nouns in English, with articles, with definite articles, or bare."""
    style = rng.random()
    cased = [_cased(noun, rng) for noun in nouns]
    words = [article(noun) for noun in cased] if style < 0.6 else [f"the {noun}" for noun in cased]
    if style > 0.85:
        words = cased
    if len(words) == 1:
        return words[0]
    last = " and " if rng.random() < 0.85 else ", "
    oxford = "," if len(words) > 2 and last == " and " and rng.random() < 0.25 else ""
    return ", ".join(words[:-1]) + oxford + last + words[-1]


def request(nouns: tuple[str, ...], rng: random.Random) -> str:
    """Write a request that names `nouns`, in shuffled order."""
    shuffled = tuple(rng.sample(nouns, len(nouns)))
    text = rng.choice(lexicon.REQUESTS).format(listing(shuffled, rng))
    return text + rng.choice(lexicon.REQUEST_ENDINGS)


def _stranger(rng: random.Random) -> str:
    """Make a word that the model does not know: letters without meaning, sometimes digits."""
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    word = "".join(rng.choices(letters, weights=range(len(letters), 0, -1), k=rng.randint(1, 9)))
    style = rng.random()
    if style < 0.1:
        return str(rng.randint(0, 9999))
    return word.capitalize() if style < 0.3 else word


def foreign_request(rng: random.Random) -> str:
    """Write a request outside the grammar: unknown words among common ones, seldom over some 60
    characters.
    """
    length = rng.randint(7, 18) if rng.random() < 0.15 else rng.randint(1, 6)
    words = [
        rng.choice(lexicon.COMMON) if rng.random() < 0.5 else _stranger(rng) for _ in range(length)
    ]
    text = " ".join(words) + rng.choice([".", "?", "", "!"])
    return text[0].upper() + text[1:] if rng.random() < 0.6 else text


def example(rng: random.Random) -> Example:
    """Draw one training example. One request in eight is foreign, and its story is free."""
    cast = draw_cast(rng)
    if rng.random() < 0.125:
        return Example(foreign_request(rng), tell(cast, rng), ())
    return Example(request(cast.nouns, rng), tell(cast, rng), cast.nouns)


@cache
def templates() -> tuple[str, ...]:
    """List all sentences of stories, with their slots."""
    problems = [sentence for _, *sentences in lexicon.PROBLEMS for sentence in sentences]
    return (*problems, *(sentence for group in lexicon.SENTENCES for sentence in group))


@cache
def sentence_patterns() -> re.Pattern[str]:
    """Compile a pattern that matches exactly the sentences of the grammar, whatever fills their
    slots.
    """
    bodies = (
        re.sub(r"\\\{\w+\\\}", "[A-Za-z]+(?: [a-z]+){0,9}?", re.escape(template))
        for template in templates()
    )
    return re.compile("|".join(f"(?:{body})" for body in bodies))


@cache
def patterns_of(sentences: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    """Compile one pattern a sentence, whose groups are named after the slots. A slot that stands
    twice has one value.
    """
    patterns = []
    for template in sentences:
        seen: set[str] = set()

        def group(match: re.Match[str], seen: set[str] = seen) -> str:
            name = match[1]
            if name in seen:
                return f"(?P={name})"
            seen.add(name)
            more = "(?: [a-z]+){0,9}?" if name in _PHRASES else ""
            return f"(?P<{name}>[A-Za-z]+{more})"

        patterns.append(re.compile(re.sub(r"\\\{(\w+)\\\}", group, re.escape(template))))
    return tuple(patterns)


def words_of(text: str) -> list[str]:
    """List the words of a text."""
    return re.findall(r"\w+", text)


def slots_found(text: str) -> dict[str, set[str]]:
    """Collect what fills each slot of the well-formed sentences of a text."""
    found: dict[str, set[str]] = {}
    for sentence in sentence_patterns().finditer(text):
        for pattern in patterns_of(templates()):
            if match := pattern.fullmatch(sentence[0]):
                for slot, value in match.groupdict().items():
                    found.setdefault(slot, set()).add(value)
    return found


def keeps_its_hero(text: str) -> bool:
    """Say whether a story has one hero: one name, the pronouns of that name, one kind of being.

    Names count wherever they stand. Pronouns and nouns count in well-formed sentences.
    """
    named = {who[0]: who for who in lexicon.NAMES}
    names = {word for word in re.findall(r"[A-Z][a-z]+", text) if word in named}
    if len(names) != 1:
        return False
    _, subject, object_, possessive = named[names.pop()]
    wanted = {"they": subject, "They": subject.capitalize(), "them": object_, "their": possessive}
    found = slots_found(text)
    heroes = found.get("hero", set()) | {
        phrase.split()[-1] for phrase in found.get("a_hero", set())
    }
    return len(heroes) == 1 and all(
        found.get(slot, {word}) == {word} for slot, word in wanted.items()
    )
