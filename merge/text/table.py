"""Table: rows of text files and Hub datasets, read one by one, with a fault that names file and line.

Files are .txt (one text a line), .jsonl, .csv, .tsv, .json, each also with .gz, and .parquet; a .tsv is read with
quoting off. Where a parquet file or a Hub dataset stores classes as integers and names them, rows hold the names.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from merge.disk.documents import check_regular, parse_json
from merge.errors import MergeError, brief, listed
from merge.text.class_names import class_names, named
from merge.text.quoting import is_quoted
from merge.text.starts import header_advice, is_object_a_line, is_utf_16

_HUB_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[^/:]*)(/(?P<split>\w[\w.-]*))?)?")
MAX_FIELD = 2**24  # characters in a field of a .csv or .tsv; an unclosed quote makes one field of the rest of a file
_NEVER_HUB = (".txt", ".jsonl", ".csv", ".tsv", ".json", ".gz", ".parquet")  # data/train.json is a mistyped path

Row = Mapping[str, object]
Rows = Iterator[tuple[int, Row | None]]  # counted from 1; None is a blank row


@dataclass(frozen=True)
class Source:
    """The name of what is read, for messages, and the class of its errors."""

    name: str
    error: type[MergeError]

    def fault(self, number: int, what: str, place: str = "line") -> MergeError:
        """Return the error for one row."""
        return self.error(f"{self.name}, {place} {number}: {what}")


@dataclass(frozen=True)
class Table:
    """Rows with their numbers, and how reports and errors refer to them.

    Attributes:
        source: for errors.
        title: for reports.
        rows: (number, row); None for a blank row.
        place: what the numbers count, "line" of a file or "row" of a dataset.
        has_columns: False for plain text, whose rows have the one column `text`.
    """

    source: Source
    title: str
    rows: Rows
    place: str = "line"
    has_columns: bool = True

    @property
    def unit(self) -> str:
        """The word for a row in reports."""
        return "row" if self.has_columns else "line"

    def fault(self, number: int, what: str) -> MergeError:
        """Return the error for one of its rows."""
        return self.source.fault(number, what, self.place)


def open_table(
    source: str,
    what: str,
    error: type[MergeError],
    kind: str | None = None,
    names: Sequence[str] = (),
    member: str | None = None,
    unquote: bool = False,
) -> Table:
    """Return the rows of the file of that name, or of the Hub dataset: org/name, org/name:config or .../split.

    Args:
        what: what is being read, such as "calibration text", for errors.
        error: raised for every fault.
        kind: the file's format (".tsv"), where its ending does not say it.
        names: columns of a .tsv or .csv without a header; a first line with one of these in it is a header after all.
        member: the list to read of a .json file that holds several by name.
        unquote: whether a .tsv that a csv writer quoted is read without its quotes.
    """
    if not source.strip():
        raise error(f"{what} {source!r}: the name is empty; give a file or a Hub dataset.")
    path, at = Path(source), Source(f"{what} {source}", error)
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except OSError as fault:
        raise error(f"{what} {source}: cannot be read: {fault.strerror or fault}.") from fault
    if is_folder:
        raise error(f"{what} {source}: expected a file or a Hub dataset, found a folder; name one file in it.")
    if exists:
        return file_table(at, path, kind, names, member, unquote)
    hub_id = _HUB_ID.fullmatch(source)
    if hub_id is None or source.lower().endswith(_NEVER_HUB):
        advice = "check the path; a Hub dataset is written org/name, org/name:config or org/name:config/split."
        raise error(f"{what} {source}: there is no such file; {advice}")
    rows = _hub_rows(at, hub_id["name"], hub_id["config"] or None, hub_id["split"] or "train")
    return Table(at, source, rows, place="row")


def text_table(source: Source, title: str, open_bytes: Callable[[], AbstractContextManager[Iterable[bytes]]]) -> Table:
    """Return the lines of a text that is not a file of its own (a package's resource)."""
    return Table(source, title, _text_rows(source, _lines(source, open_bytes)), has_columns=False)


def file_table(
    at: Source,
    path: Path,
    kind: str | None = None,
    names: Sequence[str] = (),
    member: str | None = None,
    unquote: bool = False,
) -> Table:
    """Return the rows of a file; `at` is how errors name it, the rest as in `open_table`."""
    readers: dict[str, Callable[[Source, Iterator[str]], Rows]] = {
        ".txt": _text_rows,
        ".jsonl": _json_rows,
        ".csv": partial(_delimited_rows, tabs=False, names=names),
        ".tsv": partial(_delimited_rows, tabs=True, names=names),
        ".json": partial(_listed_rows, member=member),
    }
    try:
        check_regular(path)
    except OSError as error:
        raise at.error(f"{at.name}: cannot be read: {error.strerror or error}.") from error
    name = path.name.lower()
    suffix = kind or Path(name.removesuffix(".gz")).suffix
    if suffix == ".parquet":
        return Table(at, path.name, _parquet_rows(at, path), place="row")
    if suffix not in readers:
        known = f"expected a file ending in {', '.join(readers)}, one of these and .gz, or .parquet"
        raise at.error(f'{at.name}: {known}, found "{path.name}"; convert or rename it.')
    open_bytes = partial(gzip.GzipFile if name.endswith(".gz") else open, path, "rb")
    if unquote and suffix == ".tsv" and is_quoted(_lines(at, open_bytes)):
        readers[".tsv"] = partial(_delimited_rows, tabs=True, names=names, quoted=True)
    lines = _lines(at, open_bytes)
    place = "row" if suffix == ".json" else "line"
    return Table(at, path.name, readers[suffix](at, lines), place, has_columns=suffix != ".txt")


def _lines(at: Source, open_bytes: Callable[[], AbstractContextManager[Iterable[bytes]]]) -> Iterator[str]:
    """Yield the lines with their ends, decoded one by one so that a fault has a line number."""
    number = 0
    try:
        with open_bytes() as stream:
            for number, line in enumerate(stream, start=1):
                if number == 1 and is_utf_16(line):
                    raise at.fault(1, "expected UTF-8 text, found UTF-16; save the file as UTF-8.")
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        message = f"expected UTF-8 text, found byte 0x{error.object[error.start]:02x}"
        advice = "save the file as UTF-8; a compressed one must end in .gz."
        raise at.fault(number, f"{message}; {advice}") from error
    except (OSError, EOFError, zlib.error) as error:
        advice = "check that the file is whole and readable, and is gzip if it ends in .gz."
        raise at.fault(number + 1, f"cannot be read: {brief(str(error), 200)}; {advice}") from error


def _text_rows(at: Source, lines: Iterator[str]) -> Rows:
    for number, line in enumerate(lines, start=1):
        yield number, {"text": line.removesuffix("\n").removesuffix("\r")} if line.strip() else None


def _json_rows(at: Source, lines: Iterator[str]) -> Rows:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            yield number, None
            continue
        try:
            row = parse_json(line.rstrip("\r\n"), "it", at.error, nul=True)
        except at.error as error:
            reason = str(error).removeprefix("it cannot be read: ").removeprefix("it is malformed: ")
            message = f"expected one JSON object a line, found {brief(line)!r} ({brief(reason, 100)})"
            raise at.fault(number, f"{message}; correct or delete the line.") from error
        if not isinstance(row, dict):
            message = f'expected a JSON object such as {{"text": "..."}}, found {brief(line)!r}'
            raise at.fault(number, f"{message}; write one object a line.")
        yield number, row


def _listed_rows(at: Source, lines: Iterator[str], *, member: str | None) -> Rows:
    """Yield the objects of one JSON list, or of the list of that name in one JSON object; counted from 1."""
    text = "".join(lines)
    try:
        held = parse_json(text, at.name, at.error, nul=True)
    except at.error as error:
        if is_object_a_line(text):
            message = "expected one JSON list of objects, found an object a line; name the file .jsonl"
            raise at.error(f"{at.name}: {message}.") from error
        raise
    if member is not None and isinstance(held, dict):
        if member not in held:
            raise at.error(f"{at.name}: expected a list named {member!r}, found {listed(map(str, held))}.")
        held = held[member]
    if not isinstance(held, list):
        raise at.error(
            f"{at.name}: expected a JSON list of objects, found {brief(repr(held))}; write one object a row."
        )
    for number, row in enumerate(held, start=1):
        if not isinstance(row, dict):
            message = f'expected a JSON object such as {{"text": "..."}}, found {brief(repr(row))}'
            raise at.fault(number, f"{message}; write objects.", "row")
        yield number, row


def _parquet_rows(at: Source, path: Path) -> Rows:
    """Yield the rows of a parquet file, a thousand in memory at a time."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            metadata = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
            classes = class_names(metadata, f"{at.name}: its metadata huggingface", at.error)
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield number, named(row, classes)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        advice = "check that the file is whole and is parquet."
        raise at.fault(number + 1, f"cannot be read: {brief(str(error), 200)}; {advice}", "row") from error


def _delimited_rows(
    at: Source, lines: Iterator[str], *, tabs: bool, names: Sequence[str], quoted: bool = False
) -> Rows:
    """Yield the rows under the header, or all where `names` stand in for one; each counted by the line it starts on."""
    if tabs and not quoted:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        advice = "a .tsv file is read without quoting, one row a line"
    else:  # strict: an unclosed quote would otherwise swallow the rest of the file without a word
        reader = csv.reader(lines, delimiter="\t" if tabs else ",", strict=True)
        advice = "quote a field that holds a comma or a line end, and double a quote within it"
    header: list[str] | None = None
    start = 1
    csv.field_size_limit(MAX_FIELD)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if "field larger than field limit" in str(error):
                raise at.fault(
                    start,
                    f"expected fields of up to {MAX_FIELD:,} characters, found a longer one; cut it, or {advice}.",
                ) from error
            found = "a carriage return in a field" if "new-line character" in str(error) else str(error)
            advice = "end lines in LF or CRLF" if found != str(error) else advice
            raise at.fault(
                start, f"expected a row of fields, found: {found}; {advice}.{header_advice(header or ())}"
            ) from error
        if cells is None:
            return
        blank = not any(cell.strip() for cell in cells)
        if header is None and not blank and names and not set(names) & set(cells):
            header = list(names)
        if header is None and not blank:
            header = cells
            twice = sorted({column for column in header if column and header.count(column) > 1})
            if twice:
                message = f"expected different column names, found twice: {listed(twice)}; rename one of them."
                raise at.fault(start, message)
        elif header is not None:
            if not blank and len(cells) != len(header):
                message = f"expected {len(header)} fields ({listed(header)}), found {len(cells)}; {advice}."
                raise at.fault(start, message)
            yield start, None if blank else dict(zip(header, cells, strict=True))
        start = reader.line_num + 1


def _hub_rows(at: Source, name: str, config: str | None, split: str) -> Rows:
    number = 0
    try:
        import datasets

        loaded = datasets.load_dataset(name, config, split=split)
        classes = {key: kind.names for key, kind in loaded.features.items() if isinstance(kind, datasets.ClassLabel)}
        for batch in loaded.iter(batch_size=1000):
            for values in zip(*batch.values(), strict=True):
                number += 1
                yield number, named(dict(zip(batch, values, strict=True)), classes)
    # The library fails with its own errors, the network's, the parser's and plain ValueErrors: all mean unread text.
    except Exception as error:
        message = f"is no file, and the Hub dataset {name} (config {config or 'default'}, split {split}) cannot be read"
        advice = "check the id and the network, or give a file"
        reason = brief(f"{type(error).__name__}: {error}", 300)
        raise at.error(f"{at.name} {message}; {advice}. The cause: {reason}") from error
