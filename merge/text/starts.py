"""What the start of a file of text shows: another encoding, other separators, another spelling of its columns."""

from __future__ import annotations

from collections.abc import Sequence

from merge.disk.documents import parse_json
from merge.errors import MergeError

UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # the marks at the start of such a file
SEPARATORS = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "vertical bars"}


def is_utf_16(line: bytes) -> bool:
    """Return whether the first line of a file is in UTF-16: it has its mark, or every other byte is NUL, as in ASCII text."""
    return line.startswith(UTF_16) or (len(line) > 8 and line.count(0) > len(line) // 3)


def is_object_a_line(text: str) -> bool:
    """Return whether the first line of several is a JSON object by itself, as in a .jsonl file."""
    first, _, more = text.partition("\n")
    try:
        return bool(more.strip()) and isinstance(parse_json(first, "", MergeError, nul=True), dict)
    except MergeError:
        return False


def header_advice(header: Sequence[str], wanted: Sequence[str] = ()) -> str:
    """Return what to do about a header that has none of the wanted columns, after a blank; "" where it shows no reason."""
    if len(header) == 1 and (found := [word for mark, word in SEPARATORS.items() if mark in header[0]]):
        return (
            f" Its fields are separated by {found[0]}; those of a .csv file are by commas, and of a .tsv file by tabs."
        )
    spellings = {name.strip().casefold(): name for name in header}
    alike = [(spellings[name.casefold()], name) for name in wanted if name.casefold() in spellings]
    return f" Rename the column {alike[0][0]!r} to {alike[0][1]!r}." if alike else ""


def missing_column(wanted: Sequence[str], header: Sequence[str], has_columns: bool = True) -> str:
    """Return the message about a row that has none of the wanted columns.

    Args:
        has_columns: False for plain text, whose rows have the one column `text`.
    """
    expected = f"expected a column {' or '.join(wanted)}"
    if not has_columns:
        return (
            f"{expected}, found a line of text: a .txt file is read as one text a line. Name a file with columns .tsv."
        )
    return f"{expected}, found {', '.join(header)}.{header_advice(header, wanted)}"
