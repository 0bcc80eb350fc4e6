"""Calibration text: the sentences on which two models' activations are compared in order to align them.

Read from the package's own text, a file or a dataset on the Hub, always as a uniform sample over the whole of it: the
first rows of a file are often all of one kind (one label, one template), and units that never fire cannot be matched.
"""

from __future__ import annotations

import importlib.resources
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, final

from merge.errors import CalibrationError, brief, listed
from merge.text.columns import CLASS_COLUMNS, LABEL_COLUMNS, UNLABELLED, check_columns, choose_columns
from merge.text.table import Row, Source, Table, open_table, text_table

if TYPE_CHECKING:
    from merge.text.source import TextSource

MIN_TEXTS = 200  # with fewer, activation statistics and the matching are noisy


@dataclass(frozen=True)
class CalibrationText:
    """A sample of texts.

    Attributes:
        samples: each (text,) or (text, text_pair), in random order, so that any first part is a uniform sample too.
        source: one phrase for reports, such as "train.jsonl: 1,024 of 36,031 rows, column text, seed 0".
        notes: for the user: choices made for them, and reasons to doubt the sample.
        shares: value of the label column -> its share in the sample; empty without a column of labels.
    """

    samples: tuple[tuple[str, ...], ...]
    source: str
    notes: tuple[str, ...]
    shares: Mapping[str, float] = field(default_factory=dict)


def read_calibration(text_source: TextSource, matching: bool = True) -> CalibrationText:
    """Return up to `samples` texts or pairs drawn uniformly, without replacement, from the whole of a source.

    The source is a file (.txt, one text a line; .jsonl, .csv, .tsv; each also .gz), else a Hub dataset: org/name,
    org/name:config, org/name:config/split or org/name:/split, where the split left out is train and the config left out the
    default one. A path that exists is never a Hub id. A source with fewer texts is used whole; equal sources, seed included,
    give equal texts.

    Args:
        matching: whether units are matched on the text; else notes do not warn of what a poor sample does to a matching.
    Raises:
        CalibrationError: the source cannot be read, holds no text, or does not say which column is text.
    """
    source, columns, samples, seed = text_source.source, text_source.columns, text_source.samples, text_source.seed
    if samples < 1:
        raise CalibrationError(f"calibration text: {samples} samples were asked for; ask for 1 or more.")
    table = _embedded() if source is None else open_table(source, "calibration text", CalibrationError)
    if columns is not None:
        check_columns(table, columns)
    draw = _draw(table, columns, samples, seed)
    if not draw.kept:
        blank = f" (all of its {draw.blank:,} {table.unit}s are blank)" if draw.blank else ""
        raise CalibrationError(f"{table.source.name} is empty{blank}: give a source that holds some text.")
    of_columns = f", column{'s' * (len(draw.columns) - 1)} {' + '.join(draw.columns)}" if table.has_columns else ""
    return CalibrationText(
        samples=tuple(kept.texts for kept in draw.kept),
        source=f"{table.title}: {len(draw.kept):,} of {draw.seen:,} {table.unit}s{of_columns}, seed {seed}",
        notes=tuple(_notes(table, draw, columns_given=columns is not None, embedded=source is None, matching=matching)),
        shares=_shares(draw),
    )


# ---- the sample ----


class _Kept(NamedTuple):
    texts: tuple[str, ...]
    labels: tuple[str, ...]  # in the order of _Draw.labels


@final
class _Reservoir:
    """A uniform sample of the rows offered so far, in memory bounded by its size (algorithm R; Vitter 1985)."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seen = size, 0
        self._random = random.Random(seed)
        self._rows: list[_Kept] = []

    def offer(self, row: _Kept) -> None:
        """Keep row number t with probability size / t, in place of a random one kept before."""
        self.seen += 1
        if len(self._rows) < self.size:
            self._rows.append(row)
        elif (slot := self._random.randrange(self.seen)) < self.size:
            self._rows[slot] = row

    def shuffled(self) -> list[_Kept]:
        """Return the kept rows in random order; in the reservoir they follow the order of the file."""
        return self._random.sample(self._rows, len(self._rows))


@dataclass(frozen=True)
class _Draw:
    kept: list[_Kept]
    seen: int  # rows that hold text
    blank: int  # rows that do not
    columns: tuple[str, ...]
    labels: dict[str, set[str]]  # label column -> values in the whole source, at most two of them


def _draw(table: Table, columns: tuple[str, ...] | None, samples: int, seed: int) -> _Draw:
    """Return the sample of one pass over the table; its first row that is not blank decides the columns."""
    reservoir, blank = _Reservoir(samples, seed), 0
    chosen: tuple[str, ...] = ()
    labels: dict[str, set[str]] = {}
    for number, row in table.rows:
        if row is None:
            blank += 1
            continue
        if not chosen:
            chosen = choose_columns(table, tuple(row), columns)
            labels = {name: set() for name in LABEL_COLUMNS if name in row and name not in chosen}
        texts = _texts(table, number, row, chosen)
        if not all(map(str.strip, texts)):  # half a pair is no pair
            blank += 1
            continue
        values = tuple(str(row.get(name, "")).strip() for name in labels)
        for value, seen in zip(values, labels.values(), strict=True):
            if len(seen) < 2 and value not in UNLABELLED:
                seen.add(value)
        reservoir.offer(_Kept(texts, values))
    return _Draw(reservoir.shuffled(), reservoir.seen, blank, chosen, labels)


def _texts(table: Table, number: int, row: Row, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the row's text or pair as it stands, spaces at its ends included; a null is an empty text."""
    texts = []
    for column in columns:
        if column not in row:
            missing = f'expected a column "{brief(column)}", found {listed(row)}; give every row that column.'
            raise table.fault(number, missing)
        value = "" if row[column] is None else row[column]
        if not isinstance(value, str):
            message = f'expected text in column "{brief(column)}", found {type(value).__name__} {brief(str(value))};'
            raise table.fault(number, f"{message} choose a column of text, or write it as a string.")
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            message = f'expected Unicode text in column "{brief(column)}", found half of a surrogate pair;'
            raise table.fault(number, f"{message} write the character whole.")
        texts.append(value)
    return tuple(texts)


def _shares(draw: _Draw) -> dict[str, float]:
    """Return the share of each class in the sample, by its name in the first column of labels that names any."""
    for index, column in enumerate(draw.labels):
        values = [kept.labels[index] for kept in draw.kept]
        if column in CLASS_COLUMNS and not set(values) & set(UNLABELLED):
            return {value: count / len(values) for value, count in sorted(Counter(values).items())}
    return {}


# ---- notes ----


def _notes(table: Table, draw: _Draw, columns_given: bool, embedded: bool, matching: bool) -> Iterator[str]:
    """Yield the choices made for the user, then the reasons to doubt the sample."""
    count, texts = len(draw.kept), [kept.texts for kept in draw.kept]
    if embedded:
        used = "no calibration text was given, so the package's own generic text was used"
        yield f"{used}; text from the models' domain aligns better (--text FILE)" if matching else used
    if table.has_columns and not columns_given:
        yield f"no columns were named, so {' + '.join(draw.columns)} was used: the only well-known choice there is"
    if draw.blank:
        left_out = "has no text and was" if draw.blank == 1 else "have no text and were"
        yield f"{draw.blank:,} {table.unit}{'s' * (draw.blank > 1)} of {table.title} {left_out} left out"
    if count < MIN_TEXTS:
        noisy = (
            "the activation statistics, and so the matching, become" if matching else "statistics of activations become"
        )
        yield f"the sample is small: {count} text{'s' * (count > 1)}; under {MIN_TEXTS} {noisy} noisy"
    if not table.has_columns and all("\t" in text for (text,) in texts):
        yield f"every sampled line of {table.title} holds a tab; if it is a table, rename it .tsv and name its columns"
    for index, (column, seen) in enumerate(draw.labels.items()):
        values = {kept.labels[index] for kept in draw.kept}
        if len(values) == 1 and count > 1 and not values & set(UNLABELLED):
            scope = f", although {table.title} holds others" if len(seen) > 1 else ""
            value = brief(values.pop())
            blindly = "; units that other texts would excite are matched blindly" if matching else ""
            yield f'the sample is one-sided: {column} is "{value}" in every sampled {table.unit}{scope}{blindly}'
    repeats = count - len(set(texts))
    if 2 * repeats > count:
        yield (
            f"{repeats:,} of {count:,} sampled texts repeat another one, so that the sample says less than its size "
            f"promises; distinct texts: {count - repeats:,}"
        )


def _embedded() -> Table:
    """Return the text that ships with the package."""
    resource = importlib.resources.files("merge.text") / "calibration.txt"
    source = Source("calibration text calibration.txt (the package's own)", CalibrationError)
    return text_table(source, "the package's own generic text", lambda: resource.open("rb"))
