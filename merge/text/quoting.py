"""Whether a tab-separated text is quoted, as pandas and csv writers do, or holds quotes as plain characters, as GLUE's files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator

STYLES = (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)


def is_quoted(lines: Iterable[str]) -> bool:
    """Return whether a text of tab-separated fields is quoted: read with quotes and written again, it is the same text.

    A quote that stands alone, or around a field that needs none, is not what a writer makes; a text without quotes reads the
    same either way, and counts as not quoted. Two lone quotes look like one field that runs over tabs or lines, so a text
    with such fields counts as not quoted; read as it stands, it is refused for its number of fields.
    """
    styles, quoted = set(STYLES), False
    consumed: list[str] = []

    def feed() -> Iterator[str]:
        for line in lines:
            consumed.append(line)
            yield line

    try:
        for cells in csv.reader(feed(), delimiter="\t", strict=True):
            text, several = consumed[0].removesuffix("\n").removesuffix("\r"), len(consumed) > 1
            consumed.clear()
            if cells and (several or len(cells) != text.count("\t") + 1):
                return False
            quoted = quoted or '"' in text
            styles = {style for style in styles if not cells or _written(cells, style) == text}
            if not styles:
                return False
    except csv.Error:
        return False
    return quoted


def _written(cells: list[str], style: int) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter="\t", quoting=style, lineterminator="").writerow(cells)  # type: ignore[arg-type]
    return text.getvalue()
