"""The vocabulary of the HANS grammar: the words and the phrases that may fill a slot.

The lists are those of the authors' generator (github.com/tommccoy1/hans), MIT License, Copyright (c) 2019 R. Thomas
McCoy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

_PEOPLE = (
    "professor, student, president, judge, senator, secretary, doctor, lawyer, "
    "scientist, banker, tourist, manager, artist, author, actor, athlete"
)
_PLURALS = {word[:-1] + "ies" if word.endswith("y") else word + "s": word for word in _PEOPLE.split(", ")}
_PASSIVE = (
    "recommended, helped, supported, contacted, believed, avoided, advised, "
    "stopped, introduced, mentioned, encouraged, thanked, recognized, admired"
)

_LISTS = {
    "SG": _PEOPLE,
    "PL": ", ".join(_PLURALS),
    "N": ", ".join([_PEOPLE, *_PLURALS]),
    "V": _PASSIVE + ", called, saw",
    "INTRANS": "slept, danced, ran, shouted, resigned, waited, arrived, performed",
    "PASSIVE": _PASSIVE,
    "PARTICIPLE": "studied, paid, helped, investigated, presented",
    "NPS": "believed, knew, heard",
    "NPZ": "hid, moved, presented, paid, studied, stopped",
    "SAID": "hoped, claimed, thought, believed, said, assumed",
    "KNEW": "forgot, learned, remembered, knew",
    "REL": "who, that",
    "PREP": "near, behind, by, in front of, next to",
    "CONJ": "while, after, before, when, although, because, since",
    "SINCE": "after, before, because, although, though, since, while",
    "IF": "if, unless",
    "MAYBE": "supposedly, probably, maybe, hopefully",
    "SURELY": "certainly, definitely, clearly, obviously, suddenly",
    "ADJ": "important, popular, famous, young, happy, helpful, serious, angry",
    "SITE": "museum, school, library, office, laboratory",
    # "town" is twice in the authors' list too, and so is drawn twice as often.
    "PLACE": "neighborhood, region, country, town, valley, forest, garden, museum, desert, island, town",
    "PRIZE": "race, contest, war, prize, competition, election, battle, award, tournament",
    "TEXT": "book, column, report, poem, letter, novel, story, play, speech",
    "FOOD": "fruit, salad, broccoli, sandwich, rice, corn, ice cream",
}

WORDS: Mapping[str, Sequence[str]] = {kind: tuple(words.split(", ")) for kind, words in _LISTS.items()}

# A verb phrase draws its verb from 16 transitive and 8 intransitive ones, so a third of the phrases have no object;
# a relative clause with a transitive verb is as often about its subject as about its object.
PHRASES: Mapping[str, Sequence[tuple[Fraction, str]]] = {
    "VP": ((Fraction(1, 3), "INTRANS"), (Fraction(2, 3), "V the N")),
    "RC": ((Fraction(1, 3), "REL INTRANS"), (Fraction(1, 3), "REL the N V"), (Fraction(1, 3), "REL V the N")),
}


def lemma(word: str) -> str:
    """Return a plural noun's singular, any other word unchanged."""
    return _PLURALS.get(word, word)
