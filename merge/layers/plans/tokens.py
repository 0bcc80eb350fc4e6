"""The tokens of a plan's text, and the message for a plan that cannot be read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from merge.errors import UsageError

TOKEN = re.compile(r"\s*(?:(?P<number>\d+(?:\.\d+)?)|(?P<arrow>->)|(?P<word>[A-Za-z_]+)|(?P<sign>[\[\](),*-]))")


class PlanSyntaxError(UsageError):
    """A plan that cannot be read; its message has a caret under the place."""

    def __init__(self, text: str, position: int, message: str) -> None:
        flat = re.sub(r"\s", " ", text)
        start = max(0, position - 60)
        line = flat[start : position + 40]
        shown = "".join(c if c.isprintable() else "?" for c in line)
        self.picture = f"\n  {shown}\n  {' ' * (position - start)}^"
        super().__init__(f"plan, character {position + 1}: {message}{self.picture}")


@dataclass(frozen=True)
class Token:
    kind: str  # number, arrow, word, sign, or end
    text: str
    position: int


def split_tokens(text: str) -> list[Token]:
    """Return the tokens of a text, and one for its end.

    Raises:
        PlanSyntaxError: a character begins no token.
    """
    tokens, position = [], 0
    while text[position:].strip():
        match = TOKEN.match(text, position)
        if match is None:
            start = position + len(text[position:]) - len(text[position:].lstrip())
            raise PlanSyntaxError(text, start, f"unexpected character {text[start]!r}")
        kind = str(match.lastgroup)
        tokens.append(Token(kind, match[kind], match.start(kind)))
        position = match.end()
    return [*tokens, Token("end", "", len(text.rstrip()))]


def shown(token: Token) -> str:
    """Return a token as messages name it."""
    return "the end" if token.kind == "end" else repr(token.text)
