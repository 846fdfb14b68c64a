"""Writes short children's stories from a grammar, where the real TinyStories are not to be had.

    python recipes/tinystories/make_stories.py stories.jsonl 20000

The child, the animal, the thing and the place of a story stay the same from its first sentence to its last: a model
must look back to know them. The same count gives the same stories on every machine.
"""

import json
import random
import sys
from pathlib import Path

WORDS = {
    "animal": ["dog", "cat", "bird", "frog", "rabbit", "bear", "mouse", "duck", "fox", "turtle"],
    "thing": ["ball", "kite", "book", "hat", "drum", "boat", "cake", "shell", "flower", "key", "lamp", "blanket"],
    "place": ["park", "garden", "forest", "beach", "kitchen", "hill", "farm", "river", "school", "old barn"],
    "color": ["red", "blue", "green", "yellow", "pink", "white", "purple"],
    "size": ["big", "small", "little", "tiny", "huge", "shiny", "soft"],
    "good": ["happy", "proud", "glad", "excited", "brave"],
    "bad": ["sad", "scared", "angry", "tired", "lonely"],
    "helper": ["mom", "dad", "grandma", "brother", "sister"],
    "found": ["under the bench", "behind a tree", "in the tall grass", "next to the gate", "on the roof"],
    "looked": ["under the bed", "behind the door", "in the box", "up in the sky"],
    "lesson": [
        "it is good to share",
        "friends help each other",
        "you should always say sorry",
        "it is fun to try new things",
        "it is best to tell the truth",
    ],
}
CHILDREN = [
    {"child": "girl", "she": "she", "She": "She", "her": "her", "Her": "Her", "names": "Lily Mia Sue Anna Emma Zoe"},
    {"child": "boy", "she": "he", "She": "He", "her": "his", "Her": "His", "names": "Tom Ben Max Tim Sam Leo"},
]
BEGINNINGS = [
    "Once upon a time, there was a {child} named {name}.",
    "One day, {name} went to the {place}.",
    "{name} was a {child} who lived near the {place}.",
]
LIKINGS = [
    "{name} had a {size} {color} {thing}.",
    "{She} loved {her} {color} {thing} very much.",
    "{Her} {helper} gave {name} a {color} {thing}.",
]
MIDDLES = [
    'But one morning, the {thing} was gone. {name} was {bad}. "Where is my {thing}?" {she} asked. {name} looked '
    '{looked}, but it was not there. Then a {animal} came. "I saw a {color} {thing} {found}," said the {animal}. '
    "{name} ran and looked {found}. There was the {thing}!",
    'At the {place}, {name} met a {animal}. The {animal} looked {bad}. "Why are you {bad}?" asked {name}. "I have '
    'nobody to play with," said the {animal}. {name} smiled. "You can play with my {color} {thing}," {she} said.',
    "{name} took the {thing} to the {place} and played with a {animal}. Oh no! The {animal} jumped on the {thing}, and "
    'it broke. {name} felt {bad}. "I am sorry," said the {animal}. {name} asked {her} {helper} for help. Together with '
    "the {helper}, they fixed the {color} {thing}.",
]
ENDS = [
    "{name} was very {good}. They played together at the {place} until it was dark.",
    "{name} and the {animal} became best friends.",
    "From that day on, {name} knew that {lesson}.",
    '"Thank you, {animal}!" said {name}. {She} went home and felt {good}.',
]


def story(choose: random.Random) -> str:
    """One story in four parts, each of them one of a few sentences."""
    words = {kind: choose.choice(choices) for kind, choices in WORDS.items()} | choose.choice(CHILDREN)
    words["name"] = choose.choice(words.pop("names").split())
    return " ".join(choose.choice(part).format_map(words) for part in (BEGINNINGS, LIKINGS, MIDDLES, ENDS))


def main() -> None:
    path, count = Path(sys.argv[1]), int(sys.argv[2])
    choose = random.Random(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": story(choose)}) + "\n" for _ in range(count)]
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
