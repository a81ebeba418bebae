"""The words of the skills beside storytelling: thoughts, cards, holes, tools, questions. Data only.

Slots are those of a story's facts (grammar.py). `{a_...}` is a noun with its article.
"""

from __future__ import annotations

# What the model thinks before a story, if it is asked to think.
THOUGHTS = (
    "{name} is {one_hero}. The {thing} is {fate}. {One_helper} helps.",
    "The hero is {one_hero} named {name}. The {thing} is {fate}, and {one_helper} helps.",
    "{One_helper} helps {name} the {hero}. The {thing} is {fate}.",
)

# A story card: its fields and how it is asked for.
CARD_FIELDS = ("hero", "name", "helper", "thing", "place", "fate")
CARD_REQUESTS = (
    "Make a story card about {}.",
    "Make a card for a story about {}.",
    "Write a story card about {}.",
    "Write a story card about {} as JSON.",
    "Give me a story card about {}, please.",
    "Story card about {}",
)
CARD_READINGS = (
    "Make a story card of this story. {}",
    "Make a card for this story. {}",
    "Write a story card of this story as JSON. {}",
    "{} Make a story card of this story.",
    "Read this story and fill in its card. {}",
)
# Which facts a request for a card names. The rest is invented.
CARD_REQUESTED = (
    ("hero", "thing", "place"),
    ("hero", "thing"),
    ("hero", "place"),
    ("thing", "place"),
    ("hero",),
)

# How the gateway asks for a document of a schema, for a call's arguments, and which call.
SCHEMA_INSTRUCTION = (
    "Answer with one JSON document and with nothing else. It must hold this JSON schema: {schema}"
)
CALL_INSTRUCTION = (
    "Call the function {name}. Answer with its arguments as one JSON document and with nothing "
    "else. It must hold this JSON schema: {schema}"
)
CHOICE_INSTRUCTION = (
    "Choose the function to call next. Answer with its name as a JSON document and with nothing "
    "else. It must hold this JSON schema: {schema}"
)
# How the gateway asks for the text between a prompt and its suffix, and how much of them it pins.
MIDDLE_REQUEST = (
    "Write the text that is missing between the begin and the end. Answer with the missing text "
    "alone.\n\nBegin:\n{before}\n\nEnd:\n{after}"
)
MIDDLE_FIXED_CHARACTERS = 160

# How others may ask for it, with the whole text pinned.
FILLINGS = (
    "Fill in the story.",
    "Fill in what is missing.",
    "Complete the story.",
    "Finish this story.",
)

# Tools: name, description, parameters with their descriptions, how they are asked for, what comes
# back, and what the model says then. The slots of requests are arguments or the place's phrase.
TOOLS = (
    (
        "get_weather",
        "Get the weather at a place.",
        (("place", "Where"),),
        (
            "What is the weather like {at_place}?",
            "How is the weather {at_place} today?",
            "Tell me the weather {at_place}.",
            "What is the weather {at_place}?",
            "Is it cold {at_place} today?",
        ),
        "{weather}",
        "It is {weather} {at_place}.",
    ),
    (
        "find_thing",
        "Find a lost thing.",
        (("thing", "What to find"),),
        (
            "Where is the {thing}?",
            "Find the {thing}, please.",
            "Can you find my {thing}?",
            "I lost my {thing}. Where is it?",
            "Where did I leave the {thing}?",
        ),
        "{spot}",
        "The {thing} is {spot}.",
    ),
    (
        "send_letter",
        "Send a letter to someone.",
        (("place", "Where"), ("to", "Who gets it")),
        (
            "Send a letter to the {hero} {at_place}.",
            "Please send a letter to the {hero} {at_place}.",
            "Can you write to the {hero} {at_place}?",
            "The {hero} {at_place} wants a letter.",
        ),
        "sent",
        "The letter to the {hero} {at_place} is on its way.",
    ),
)

# Questions about a story with one right answer: the fact, how it is asked, and the statement that
# is true or false of it.
CHOICES = (
    ("hero", ("Who is the hero?", "Who is the story about?", "What is {name}?")),
    ("helper", ("Who helped?", "Who helps the hero?", "Who helped {name}?")),
    ("thing", ("Which thing is it about?", "What did {name} own?", "What did the hero have?")),
    ("place", ("Where does the story happen?", "Which place is it about?", "Where is {name}?")),
    ("name", ("What is the name of the hero?", "What is the {hero} called?", "Who is the {hero}?")),
    ("fate", ("What happened to the {thing}?", "What was the problem?", "What happened to it?")),
)
PREDICATES = (
    ("hero", ("Is the hero {one_hero}?", "Is {name} {one_hero}?", "Is it about {one_hero}?")),
    ("helper", ("Did {one_helper} help?", "Is the helper {one_helper}?")),
    ("thing", ("Is the story about {one_thing}?", "Does the story have {one_thing}?")),
    ("place", ("Does the story happen {at_place}?", "Is {name} {at_place}?")),
    ("name", ("Is the name of the hero {name}?", "Is the {hero} called {name}?")),
    ("fate", ("Was the thing {fate}?", "Is it true that something was {fate}?")),
)
TRUTHS = (("yes", "no"), ("yes", "no"), ("true", "false"), ("Yes", "No"), ("True", "False"))
