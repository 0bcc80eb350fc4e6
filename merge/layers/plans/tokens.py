"""The tokens of a plan's text, and the message for a plan that cannot be read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from merge.errors import UsageError

TOKEN = re.compile(r"\s*(?:(?P<number>\d+(?:\.\d+)?)|(?P<arrow>->)|(?P<word>[A-Za-z_]+)|(?P<sign>[\[\](),*-]))")


class PlanSyntaxError(UsageError):
    """A plan that cannot be read; its message has a caret under the place."""

    def __init__(self, text: str, place: int, message: str) -> None:
        flat = re.sub(r"\s", " ", text)
        start = max(0, place - 60)
        line = flat[start : place + 40]
        shown = "".join(c if c.isprintable() else "?" for c in line)
        self.picture = f"\n  {shown}\n  {' ' * (place - start)}^"
        super().__init__(f"plan, character {place + 1}: {message}{self.picture}")


@dataclass(frozen=True)
class Token:
    kind: str  # number, arrow, word, sign, or end
    text: str
    place: int


def split_tokens(text: str) -> list[Token]:
    """Return the tokens of a text, and one for its end.

    Raises:
        PlanSyntaxError: a character begins no token.
    """
    tokens, place = [], 0
    while text[place:].strip():
        match = TOKEN.match(text, place)
        if match is None:
            start = place + len(text[place:]) - len(text[place:].lstrip())
            raise PlanSyntaxError(text, start, f"unexpected character {text[start]!r}")
        kind = str(match.lastgroup)
        tokens.append(Token(kind, match[kind], match.start(kind)))
        place = match.end()
    return [*tokens, Token("end", "", len(text.rstrip()))]


def shown(token: Token) -> str:
    """Return a token as messages name it."""
    return "the end" if token.kind == "end" else repr(token.text)
