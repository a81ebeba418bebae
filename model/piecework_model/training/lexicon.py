"""The words and sentence templates of the training grammar. Data only."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CHARACTERS = _words(
    "fox rabbit owl bear mouse cat dog frog hedgehog deer wolf crow turtle squirrel badger duck "
    "goose horse goat sheep lion tiger elephant monkey whale dolphin penguin otter beaver sparrow "
    "dragon unicorn girl boy king queen prince princess baker sailor farmer gardener knight wizard "
    "witch tailor painter robot giant pirate teacher giraffe kitten puppy snail bee spider parrot "
    "crab pony"
)

# Object: (what it does, bare verb; what it is doing). Sentences say "would not glow" and "still
# glowing".
THINGS: dict[str, tuple[str, str]] = {
    "lantern": ("glow", "glowing"),
    "lamp": ("glow", "glowing"),
    "candle": ("burn", "burning"),
    "key": ("turn", "shining"),
    "map": ("open", "waiting"),
    "bell": ("ring", "ringing"),
    "book": ("open", "waiting"),
    "kite": ("fly", "dancing"),
    "boat": ("float", "floating"),
    "drum": ("sound", "humming"),
    "violin": ("sing", "singing"),
    "flute": ("sing", "singing"),
    "compass": ("turn", "turning"),
    "mirror": ("shine", "shining"),
    "crown": ("shine", "shining"),
    "ring": ("shine", "shining"),
    "coin": ("spin", "spinning"),
    "basket": ("open", "waiting"),
    "blanket": ("unfold", "waiting"),
    "hat": ("fit", "waiting"),
    "umbrella": ("open", "turning"),
    "clock": ("tick", "ticking"),
    "feather": ("float", "floating"),
    "letter": ("open", "waiting"),
    "stone": ("shine", "shining"),
    "shell": ("sing", "singing"),
    "seed": ("grow", "growing"),
    "apple": ("shine", "shining"),
    "ladder": ("unfold", "waiting"),
    "box": ("open", "humming"),
    "telescope": ("turn", "turning"),
    "pearl": ("glow", "glowing"),
    "scarf": ("unfold", "dancing"),
    "button": ("shine", "shining"),
    "balloon": ("float", "floating"),
    "bicycle": ("roll", "rolling"),
    "pumpkin": ("grow", "growing"),
    "sword": ("shine", "shining"),
    "cake": ("rise", "waiting"),
    "wheel": ("roll", "rolling"),
    "whistle": ("sing", "singing"),
    "flower": ("bloom", "blooming"),
    "ship": ("float", "floating"),
    "star": ("shine", "shining"),
}

# Place: the preposition that goes with it.
PLACES: dict[str, str] = {
    "river": "by",
    "forest": "in",
    "mountain": "on",
    "village": "in",
    "castle": "in",
    "garden": "in",
    "cave": "in",
    "lake": "by",
    "island": "on",
    "harbor": "by",
    "meadow": "in",
    "desert": "in",
    "valley": "in",
    "bridge": "under",
    "tower": "in",
    "mill": "by",
    "library": "in",
    "market": "by",
    "beach": "on",
    "swamp": "in",
    "hill": "on",
    "city": "in",
    "farm": "on",
    "lighthouse": "in",
    "orchard": "in",
    "temple": "in",
    "station": "by",
    "museum": "in",
    "school": "by",
    "sea": "by",
    "waterfall": "by",
    "canyon": "in",
    "pond": "by",
    "field": "in",
    "moon": "on",
    "palace": "in",
}

# Name, and the pronouns that go with it in this story: subject, object, possessive.
NAMES = [
    (name, "she", "her", "her")
    for name in _words("Ada Mia Luna Rosa Nora Ivy Wren Hazel Tilda Juno Pearl Zara")
]
NAMES += [
    (name, "he", "him", "his")
    for name in _words("Pip Otto Finn Milo Leo Hugo Sam Jasper Oscar Theo Bruno Max")
]

CHARACTER_ADJECTIVES = _words(
    "brave clever curious gentle happy hungry kind lazy little lonely old patient proud quiet shy "
    "silly sleepy young wise busy"
)
THING_ADJECTIVES = _words(
    "small golden silver wooden red blue green ancient magic broken bright heavy tiny beautiful "
    "strange secret"
)
TIMES = (
    "morning",
    "evening",
    "night",
    "afternoon",
    "winter day",
    "summer night",
    "spring morning",
    "autumn evening",
)
WEATHERS = ("windy", "rainy", "foggy", "snowy", "cold", "warm", "stormy", "cloudy", "dark", "sunny")
GIFTS = (
    "a warm cup of tea",
    "a slice of apple pie",
    "a jar of honey",
    "a red ribbon",
    "a bag of nuts",
    "half of the bread",
    "a song about the stars",
    "a bunch of flowers",
    "a soft pillow",
    "a silver spoon",
)
SPOTS = (
    "behind a mossy rock",
    "under an old oak tree",
    "inside a hollow log",
    "beside a small stream",
    "below the stairs",
    "next to a broken gate",
    "under a pile of leaves",
    "behind the tall grass",
    "at the end of a long path",
    "between two round stones",
)
LESSONS = (
    "a good friend is worth more than gold",
    "even the smallest light can show the way",
    "it is never too late to help",
    "asking for help is also brave",
    "patience opens every door",
    "a kind word travels far",
    "sharing makes every day brighter",
    "the best treasures are not for sale",
)

OPENINGS = [
    "Once upon a time, {a_hero} named {name} lived {at_place}.",
    "Long ago, {a_hero} named {name} lived {at_place}.",
    "There once was {a_hero} named {name}, who lived {at_place}.",
    "{name} was {a_hero} who lived {at_place}.",
    "Far away, {at_place}, there lived {a_hero} named {name}.",
    "One {when}, {a_hero} named {name} came to the {place}.",
    "Everyone who visited the {place} knew {a_hero} named {name}.",
]
POSSESSIONS = [
    "{name} had {a_thing} and took it everywhere.",
    "{They} owned {a_thing} that once belonged to {their} grandmother.",
    "In {their} pocket {they} kept {a_thing}.",
    "The {hero} loved nothing more than {a_thing}.",
    "One day {they} found {a_thing} near the {place}.",
    "An old friend had given {them} {a_thing}.",
]
HABITS = [
    "Every {when} {they} sat {at_place} and watched the clouds.",
    "Every {when} {name} walked around the {place} and sang.",
    "People came from the {far} just to see the {thing}.",
    "At night the {thing} was the only thing {they} dreamed about.",
    "Nobody else {at_place} had anything like the {thing}.",
]
# What happened to the object, the sentence that says so, and the sentence that solves it.
PROBLEMS = [
    (
        "lost",
        "But one {weather} {when}, the {thing} was gone.",
        "At last, {spot}, they found the {thing}, still {working}.",
    ),
    (
        "carried",
        "Then a sudden storm carried the {thing} away.",
        "When the wind grew quiet, the {thing} lay {spot}, still {working}.",
    ),
    (
        "stuck",
        "One {weather} {when}, the {thing} would not {works} anymore.",
        "There, {spot}, a drop of rain fell on the {thing}, and it began to {works} again.",
    ),
    (
        "forgotten",
        "But {name} forgot the {thing} {at_far}.",
        "The {thing} was {spot}, exactly where {they} had left it.",
    ),
    (
        "stolen",
        "One {when}, a sly thief took the {thing} and ran to the {far}.",
        "They found the thief asleep {spot} and quietly took back the {thing}.",
    ),
    (
        "dropped",
        "On a {weather} {when}, {name} dropped the {thing} into a deep hole.",
        "With a long rope they pulled the {thing} out of the hole.",
    ),
    (
        "broken",
        "But the {thing} was broken, and it would not {works}.",
        "Working all night, they mended the {thing}, and it began to {works}.",
    ),
]
FEELINGS = [
    "{name} was so sad that {they} could not sleep.",
    "{name} sat down and began to cry.",
    "The {hero} looked everywhere but found nothing.",
    "{They} did not know what to do.",
    '"What shall I do without it?" asked {name}.',
    "{name} felt very small and very alone.",
]
HELPERS = [
    "{a_helper} heard {them} and offered to help.",
    '{a_helper} stopped and asked, "Why are you so sad?"',
    '{a_helper} said, "Come with me, I know the way."',
    "Just then {name} met a friendly {helper}.",
    '"Do not worry," said a passing {helper}, "we will do it together."',
    "Only one {helper} was willing to go with {them}.",
]
JOURNEYS = [
    "Together they walked all the way to the {far}.",
    "Side by side, the {hero} and the {helper} crossed the {far}.",
    "The {helper} led {them} through the {place} and past the {far}.",
    "They searched the {place} from one end to the other.",
    "For three days the {hero} and the {helper} searched the {far}.",
    "They followed small footprints to the {far}.",
]
TRIALS = [
    "The path was steep, but {name} did not give up.",
    "It was so dark that they had to hold hands.",
    "When it rained, they told each other stories.",
    "The {helper} was afraid, so {name} sang a little song.",
    "Twice they lost their way, and twice they laughed about it.",
]
THANKS = [
    "{name} thanked the {helper} and brought out {gift}.",
    '"Thank you, my friend," said {name} to the {helper}.',
    "The {hero} danced for joy, and the {helper} danced too.",
    "{name} was so happy that {they} hugged the {helper}.",
    "To say thank you, the {hero} shared {gift} with the {helper}.",
]
RETURNS = [
    "Then they went home {at_place} and slept until noon.",
    "That {when} there was a great feast {at_place}.",
    "Back {at_place}, everyone wanted to hear the story.",
    "Soon the news reached every corner of the {place}.",
]
ENDINGS = [
    "From that day on, the {hero} and the {helper} were best friends.",
    "And {name} learned that {lesson}.",
    "Since then {name} has always known that {lesson}.",
    "And if you visit the {place}, you can still see the {thing} {working}.",
    "And they all lived happily ever after.",
    "The {hero} never lost the {thing} again.",
    '"Now I know," said {name}, "that {lesson}."',
]
SENTENCES = [
    OPENINGS,
    POSSESSIONS,
    HABITS,
    FEELINGS,
    HELPERS,
    JOURNEYS,
    TRIALS,
    THANKS,
    RETURNS,
    ENDINGS,
]

# Which roles a request names; the weights are the repetitions.
REQUESTED = (
    ("hero", "thing", "place"),
    ("hero", "thing", "place"),
    ("hero", "thing", "place"),
    ("hero", "thing"),
    ("hero", "place"),
    ("hero",),
    ("thing",),
    ("place",),
    ("hero", "helper"),
    ("hero", "helper", "thing"),
    ("hero", "helper", "place"),
    ("thing", "place"),
    ("hero", "helper", "thing", "place"),
)
REQUESTS = [
    "Write a story about {}",
    "Tell me a story about {}",
    "Tell me a story of {}",
    "Write a short story about {}",
    "Please write a story about {}",
    "Please tell me a story about {}",
    "Write a story with {}",
    "A story about {}",
    "Can you write a story about {}",
    "Could you tell me a tale about {}",
    "I want a story about {}",
    "{}",
    "I would like to hear a story about {}",
    "Make up a story about {}",
    "Tell a tale of {}",
    "Story about {}",
    "Write a bedtime story about {}",
    "Give me a story with {}",
    "Once upon a time there was {}",
    "write about {}",
    "Tell me about {}",
    "Create a short fairy tale about {} for my daughter",
    "tell me a story about {}",
    "write a story about {}",
]
REQUEST_ENDINGS = [".", ".", ".", "", "", "?", "!", ", please."]

# Common words of requests that the grammar cannot answer.
COMMON = _words(
    "what is the of and to in a how why who where when do does did can could would should will you "
    "me my your it its are was were be have has for with from about this that these those not no "
    "yes "
    "or but if then please explain describe list hello hi good thanks help make write code poem "
    "song "
    "email recipe capital best between difference many much day night time world people work home "
    "food water money city country computer number name word story"
)
