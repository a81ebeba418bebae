"""The text that the bundled model learns: requests and short stories, drawn from a seeded grammar.

A story is built around four things: a hero, a helper, an object and a place. A request names some
of them, and the story must be about those. The others are free. Nothing here is copied from a book.
Every sentence is put together from the lists below, so there are far more stories than a training
run can see.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

from piecework_model.training import lexicon


@dataclass(frozen=True, slots=True)
class Example:
    """One request with the story that answers it, and the nouns that the story was asked to
    contain."""

    prompt: str
    story: str
    nouns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cast:
    """Who and what a story is about. `nouns` are the requested ones, in the order hero, helper,
    object, place.
    """

    hero: str
    helper: str
    thing: str
    place: str
    nouns: tuple[str, ...] = field(default=())


_SLOT = re.compile(r"\{(\w+)\}")


def article(phrase: str) -> str:
    """Put the indefinite article that its first letter asks for before `phrase` ("an owl", "a
    unicorn").
    """
    vowel = phrase[0].lower() in "aeio" or (phrase[0] == "u" and not phrase.startswith("uni"))
    return f"{'an' if vowel else 'a'} {phrase}"


def _slots(cast: Cast, rng: random.Random) -> dict[str, str]:
    """Choose the values of every slot of the sentence templates, consistent within one story."""
    name, subject, object_, possessive = rng.choice(lexicon.NAMES)
    verb, gerund = lexicon.THINGS[cast.thing]
    adjective, helper_adjective = rng.sample(lexicon.CHARACTER_ADJECTIVES, 2)
    thing_adjective = rng.choice(lexicon.THING_ADJECTIVES)
    other_place = rng.choice([place for place in lexicon.PLACES if place != cast.place])
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


def story(cast: Cast, rng: random.Random) -> str:
    """Write one story of 8 to 11 sentences about `cast`."""
    slots = _slots(cast, rng)
    sentences = [rng.choice(lexicon.OPENINGS), rng.choice(lexicon.POSSESSIONS)]
    if rng.random() < 0.25:
        sentences.append(rng.choice(lexicon.HABITS))
    problem, found = rng.choice(lexicon.PROBLEMS)
    sentences += [
        problem,
        rng.choice(lexicon.FEELINGS),
        rng.choice(lexicon.HELPERS),
        rng.choice(lexicon.JOURNEYS),
    ]
    if rng.random() < 0.3:
        sentences.append(rng.choice(lexicon.TRIALS))
    sentences += [found, rng.choice(lexicon.THANKS)]
    if rng.random() < 0.3:
        sentences.append(rng.choice(lexicon.RETURNS))
    sentences.append(rng.choice(lexicon.ENDINGS))
    return " ".join(_SLOT.sub(lambda match: slots[match[1]], sentence) for sentence in sentences)


def cast(rng: random.Random) -> Cast:
    """Draw a random cast of which a random part is requested."""
    hero, helper = rng.sample(lexicon.CHARACTERS, 2)
    thing, place = rng.choice(list(lexicon.THINGS)), rng.choice(list(lexicon.PLACES))
    asked = rng.choice(lexicon.REQUESTED)
    values = {"hero": hero, "helper": helper, "thing": thing, "place": place}
    return Cast(hero, helper, thing, place, tuple(values[role] for role in asked))


def _cased(noun: str, rng: random.Random) -> str:
    return noun.capitalize() if rng.random() < 0.04 else noun


def _listing(nouns: tuple[str, ...], rng: random.Random) -> str:
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
    text = rng.choice(lexicon.REQUESTS).format(_listing(shuffled, rng))
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
    chosen = cast(rng)
    if rng.random() < 0.125:
        return Example(foreign_request(rng), story(chosen, rng), ())
    return Example(request(chosen.nouns, rng), story(chosen, rng), chosen.nouns)


def sentence_patterns() -> re.Pattern[str]:
    """Compile a pattern that matches exactly the sentences of the grammar, whatever fills their
    slots.
    """
    templates = [found for _, found in lexicon.PROBLEMS] + [
        problem for problem, _ in lexicon.PROBLEMS
    ]
    for group in lexicon.SENTENCES:
        templates += group
    bodies = (
        re.sub(r"\\\{\w+\\\}", "[A-Za-z]+(?: [a-z]+){0,9}?", re.escape(template))
        for template in templates
    )
    return re.compile("|".join(f"(?:{body})" for body in bodies))
