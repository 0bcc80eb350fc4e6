"""The HANS grammar: thirty constructions, one line a template, and the pairs they generate.

HANS tests whether a model infers entailment from word overlap. Its sentences come from templates; `_TABLE` holds every
one, written `premise -> hypothesis`. A word in capitals is a slot: `N`, `N1` and `N2` are nouns, and a slot named twice
is filled once. Slots draw from `WORDS` or expand by `PHRASES`; any other word is literal.

The templates, their names and probabilities are those of the authors' generator (github.com/tommccoy1/hans), MIT
License, Copyright (c) 2019 R. Thomas McCoy. It sets no seed, so the published sentences cannot be drawn again:
pairs from here have the same distribution, but are other pairs. One slip is kept because every published score includes
it: the hypothesis of temp15 has "the the".

Source: McCoy, Pavlick and Linzen 2019, "Right for the Wrong Reasons", arXiv:1902.01007, appendix.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeVar, get_args

from evals.heuristics.words import PHRASES, WORDS, lemma
from merge.errors import TaskError

Half = Literal["train", "evaluation"]
T = TypeVar("T")

LABELS = ("entailment", "non-entailment")

# The prefix of a subcase: the heuristic it appeals to, and whether that gives the right label (e) or the wrong one (n).
_HEURISTICS = {"l": "lexical_overlap", "s": "subsequence", "c": "constituent"}
_GOLD = {"e": "entailment", "n": "non-entailment"}

_TABLE = """
ln_subject/object_swap
    temp1   1     the N1 V the N2 . -> the N2 V the N1 .
ln_preposition
    temp2   1/6   the N1 PREP the N2 V the N3 . -> the N2 V the N1 .
    temp3   1/6   the N1 PREP the N2 V the N3 . -> the N3 V the N1 .
    temp4   1/6   the N1 PREP the N2 V the N3 . -> the N3 V the N2 .
    temp5   1/6   the N1 V the N2 PREP the N3 . -> the N2 V the N1 .
    temp6   1/6   the N1 V the N2 PREP the N3 . -> the N2 V the N3 .
    temp7   1/6   the N1 V the N2 PREP the N3 . -> the N3 V the N1 .
ln_relative_clause
    temp8   1/12  the N1 REL the N2 V1 V2 the N3 . -> the N2 V2 the N1 .
    temp9   1/12  the N1 REL the N2 V1 V2 the N3 . -> the N3 V2 the N1 .
    temp10  1/12  the N1 REL the N2 V1 V2 the N3 . -> the N3 V2 the N2 .
    temp11  1/12  the N1 REL V1 the N2 V2 the N3 . -> the N2 V2 the N1 .
    temp12  1/12  the N1 REL V1 the N2 V2 the N3 . -> the N3 V2 the N1 .
    temp13  1/12  the N1 REL V1 the N2 V2 the N3 . -> the N3 V2 the N2 .
    temp14  1/12  the N1 V1 the N2 REL V2 the N3 . -> the N2 V1 the N1 .
    temp15  1/12  the N1 V1 the N2 REL V2 the N3 . -> the N2 V1 the the N3 .
    temp16  1/12  the N1 V1 the N2 REL V2 the N3 . -> the N3 V1 the N1 .
    temp17  1/12  the N1 V1 the N2 REL the N3 V2 . -> the N2 V1 the N1 .
    temp18  1/12  the N1 V1 the N2 REL the N3 V2 . -> the N2 V1 the N3 .
    temp19  1/12  the N1 V1 the N2 REL the N3 V2 . -> the N3 V1 the N1 .
ln_passive
    temp20  1/2   the SG was PASSIVE by the N . -> the SG PASSIVE the N .
    temp21  1/2   the PL were PASSIVE by the N . -> the PL PASSIVE the N .
ln_conjunction
    temp22  1/4   the N1 and the N2 V the N3 . -> the N1 V the N2 .
    temp23  1/4   the N1 and the N2 V the N3 . -> the N2 V the N1 .
    temp24  1/4   the N1 V the N2 and the N3 . -> the N2 V the N3 .
    temp25  1/4   the N1 V the N2 and the N3 . -> the N3 V the N2 .
le_relative_clause
    temp26  1/4   the N1 REL the N2 V1 V2 the N3 . -> the N2 V1 the N1 .
    temp27  1/4   the N1 REL V1 the N2 V2 the N3 . -> the N1 V1 the N2 .
    temp28  1/4   the N1 V1 the N2 REL V2 the N3 . -> the N2 V2 the N3 .
    temp29  1/4   the N1 V1 the N2 REL the N3 V2 . -> the N3 V2 the N2 .
le_around_prepositional_phrase
    temp30  1     the N1 PREP the N2 V the N3 . -> the N1 V the N3 .
le_around_relative_clause
    temp31  1     the N1 RC V the N2 . -> the N1 V the N2 .
le_conjunction
    temp32  1/2   the N1 and the N2 V the N3 . -> the N1 V the N3 .
    temp33  1/2   the N1 V the N2 and the N3 . -> the N1 V the N3 .
le_passive
    temp35  1/2   the SG was PASSIVE by the N . -> the N PASSIVE the SG .
    temp36  1/2   the PL were PASSIVE by the N . -> the N PASSIVE the PL .
sn_NP/S
    temp37  1     the N1 NPS the N2 VP . -> the N1 NPS the N2 .
sn_PP_on_subject
    temp38  1     the N1 PREP the N2 VP . -> the N2 VP .
sn_relative_clause_on_subject
    temp39  1     the N1 REL V the N2 VP . -> the N2 VP .
sn_past_participle
    temp40  3/5   the N PARTICIPLE in the SITE VP . -> the N PARTICIPLE in the SITE .
    temp41  2/5   the N1 V the N2 PARTICIPLE in the SITE . -> the N2 PARTICIPLE in the SITE .
sn_NP/Z
    temp42  6/7   CONJ the N1 NPZ the N2 VP . -> the N1 NPZ the N2 .
    temp43  1/7   CONJ the PL fought the N VP . -> the PL fought the N .
se_conjunction
    temp44  3/5   the N1 and the N2 VP . -> the N2 VP .
    temp45  2/5   the N1 V the N2 and the N3 . -> the N1 V the N2 .
se_adjective
    temp46  1     ADJ PL VP . -> PL VP .
se_understood_object
    temp47  1/7   the N1 paid the N2 . -> the N1 paid .
    temp47  1/7   the N explored the PLACE . -> the N explored .
    temp47  1/7   the N won the PRIZE . -> the N won .
    temp47  1/7   the N wrote the TEXT . -> the N wrote .
    temp47  1/7   the N left the PLACE . -> the N left .
    temp47  1/7   the N read the TEXT . -> the N read .
    temp47  1/7   the N ate the FOOD . -> the N ate .
se_relative_clause_on_obj
    temp48  1     the N1 V the N2 RC . -> the N1 V the N2 .
se_PP_on_obj
    temp49  1     the N1 V the N2 PREP the N3 . -> the N1 V the N2 .
cn_embedded_under_if
    temp50  1/2   IF the N1 VP1 , the N2 VP2 . -> the N1 VP1 .
    temp50  1/4   whether or not the N1 VP1 , the N2 VP2 . -> the N1 VP1 .
    temp50  1/4   in case the N1 VP1 , the N2 VP2 . -> the N1 VP1 .
cn_after_if_clause
    temp51  1     IF the N1 VP1 , the N2 VP2 . -> the N2 VP2 .
cn_embedded_under_verb
    temp52  1     the N1 SAID that the N2 VP . -> the N2 VP .
cn_disjunction
    temp53  1/2   the N1 VP1 , or the N2 VP2 . -> the N1 VP1 .
    temp54  1/2   the N1 VP1 , or the N2 VP2 . -> the N2 VP2 .
cn_adverb
    temp58  1     MAYBE the N VP . -> the N VP .
ce_embedded_under_since
    temp59  1     SINCE the N1 VP1 , the N2 VP2 . -> the N1 VP1 .
ce_after_since_clause
    temp60  7/9   SINCE the N1 VP1 , the N2 VP2 . -> the N2 VP2 .
    temp60  1/9   in case the N1 VP1 , the N2 VP2 . -> the N2 VP2 .
    temp60  1/9   whether or not the N1 VP1 , the N2 VP2 . -> the N2 VP2 .
ce_embedded_under_verb
    temp61  1     the N1 KNEW that the N2 VP . -> the N2 VP .
ce_conjunction
    temp62  1/2   the N1 VP1 , and the N2 VP2 . -> the N1 VP1 .
    temp63  1/2   the N1 VP1 , and the N2 VP2 . -> the N2 VP2 .
ce_adverb
    temp68  5/7   SURELY the N VP . -> the N VP .
    temp68  1/7   without a doubt the N VP . -> the N VP .
    temp68  1/7   of course the N VP . -> the N VP .
"""

# In the smallest subcase (1,300 pairs a half) the rarest pair comes once in 8,000 draws: after so many misses in a row the
# subcase is taken to be exhausted.
_MAX_MISSES = 100_000


@dataclass(frozen=True)
class HansPair:
    """A premise, a hypothesis, the gold label, and the part of HANS that the pair belongs to."""

    pair_id: str
    premise: str
    hypothesis: str
    label: str
    heuristic: str
    subcase: str
    template: str


@dataclass(frozen=True)
class Template:
    """One line of the table: a pattern for the premise and one for the hypothesis, with the same slots."""

    name: str
    probability: Fraction
    premise: str
    hypothesis: str

    def fill(self, rng: random.Random) -> tuple[str, str]:
        """Return a premise and a hypothesis with every slot drawn from `rng`."""
        filled: dict[str, str] = {}
        for token in self.premise.split():
            if token not in filled:
                filled[token] = _expand(token.rstrip("0123456789"), rng)
        premise, hypothesis = (" ".join(filled[token] for token in x.split()) for x in (self.premise, self.hypothesis))
        return premise[0].upper() + premise[1:], hypothesis[0].upper() + hypothesis[1:]


@dataclass(frozen=True)
class Subcase:
    """One of the thirty constructions, with the templates that realise it."""

    name: str
    heuristic: str
    label: str
    templates: tuple[Template, ...]


def _read_table(table: str) -> Iterator[Subcase]:
    """Yield the subcases of the table; a line that is not indented starts one."""
    for block in table.strip().replace("\n    ", "\t").splitlines():
        name, *lines = block.split("\t")
        fields = [line.split(maxsplit=2) for line in lines]
        templates = tuple(Template(temp, Fraction(share), *pattern.split(" -> ")) for temp, share, pattern in fields)
        yield Subcase(name, _HEURISTICS[name[0]], _GOLD[name[1]], templates)


SUBCASES = tuple(_read_table(_TABLE))


def generate(per_subcase: int = 1000, seed: int = 0, half: Half = "evaluation") -> list[HansPair]:
    """Return `per_subcase` pairs of every subcase in published order, no premise and hypothesis twice.

    A pair belongs to the train or the evaluation half by one bit of its hash, so the halves share no pair, whatever the
    seeds. Draws follow the authors: choose a template, fill it, and draw again if the premise repeats a word (singular and
    plural of a noun count as one) or the pair was drawn before. Some kinds of pair are rare, and run out within a half:
    "paid" is in 22 % of se_understood_object (theirs: 17 %), no object in 27 % of se_adjective and cn_adverb (theirs: 31 %).

    Args:
        per_subcase: number of pairs of each; pair ids are ex0, ex1, ... through all subcases.
        seed: the same seed gives the same pairs on any machine; each subcase has its own random stream.
        half: "train" or "evaluation".
    Raises:
        TaskError: an argument is out of range, or a subcase has fewer pairs in this half.
    """
    if type(per_subcase) is not int or per_subcase < 1:
        raise TaskError(f"HANS: per_subcase must be an integer of at least 1, found {per_subcase!r}.")
    if type(seed) is not int:
        raise TaskError(f"HANS: seed must be an integer, found {seed!r}.")
    if half not in get_args(Half):
        raise TaskError(f"HANS: half must be one of {', '.join(get_args(Half))}, found {half!r}.")
    pairs: list[HansPair] = []
    for case in SUBCASES:
        for template, premise, hypothesis in _draw(case, per_subcase, seed, half):
            pair_id = f"ex{len(pairs)}"
            pairs.append(HansPair(pair_id, premise, hypothesis, case.label, case.heuristic, case.name, template))
    return pairs


def half_of(premise: str, hypothesis: str) -> Half:
    """Return the half a pair belongs to: the lowest bit of its SHA-256's first byte, 1 for evaluation."""
    return "evaluation" if hashlib.sha256(f"{premise}\t{hypothesis}".encode()).digest()[0] & 1 else "train"


def _draw(subcase: Subcase, count: int, seed: int, half: Half) -> Iterator[tuple[str, str, str]]:
    """Yield `count` distinct (template, premise, hypothesis) of one subcase and half."""
    rng = random.Random(f"hans/{half}/{seed}/{subcase.name}")
    choices = [(template.probability, template) for template in subcase.templates]
    drawn: set[tuple[str, str]] = set()
    misses = 0
    while len(drawn) < count:
        template = _weighted(choices, rng)
        pair = template.fill(rng)
        if pair in drawn or _repeats_a_word(pair[0]) or half_of(*pair) != half:
            misses += 1
            if misses == _MAX_MISSES:
                raise TaskError(
                    f"HANS: asked for {count} pairs of {subcase.name} in the {half} half, found {len(drawn)} and, in "
                    f"{_MAX_MISSES} further draws, no other. Ask for at most {len(drawn)} per subcase."
                )
            continue
        misses = 0
        drawn.add(pair)
        yield template.name, *pair


def _expand(kind: str, rng: random.Random) -> str:
    """Return a word of a list, a phrase of a rule, or the literal itself."""
    if kind in PHRASES:
        return " ".join(_expand(part, rng) for part in _weighted(PHRASES[kind], rng).split())
    if kind in WORDS:
        words = WORDS[kind]
        # Of the methods of Random, only random() gives the same numbers in every version of Python; choice() need not.
        return words[int(rng.random() * len(words))]
    return kind


def _weighted(options: Sequence[tuple[Fraction, T]], rng: random.Random) -> T:
    """Return an option, drawn with its probability."""
    point = rng.random()
    for probability, option in options:
        point -= float(probability)
        if point < 0:
            return option
    return options[-1][1]


def _repeats_a_word(premise: str) -> bool:
    """Return whether a word other than "the" occurs twice; singular and plural of a noun count as one word."""
    words = [lemma(word) for word in premise.split() if word != "the"]
    return len(set(words)) < len(words)
