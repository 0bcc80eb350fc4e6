"""Sources of text: the fields that recipes and commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator


@dataclass(frozen=True)
class TextSource:
    """A random sample of the texts of a file or data set.

    Attributes:
        source: a file or Hub data set id; the package's own text when None.
        columns: the column of the text, or the two of a pair; the only well-known choice when None.
        samples: the number of texts drawn from the whole source.
        seed: of the draw.
    """

    source: str | None = None
    columns: tuple[str, ...] | None = None
    samples: int = 512
    seed: int = 0


class Record(BaseModel):
    """A part of a recipe: its keys are its fields, unknown ones are errors, and it cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StatisticsEntry(Record):
    """The text that a data pass of fisher, regmean or cocktail reads.

    Attributes:
        text: a file or Hub dataset id; the package's own text when None.
        text_column: one column (text) or two (a pair).
        label_column: the column of class names; cocktail's.
        samples: texts drawn at random from the whole file.
    """

    text: str | None = None
    text_column: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=2)
    label_column: str | None = Field(default=None, min_length=1)
    samples: int = Field(default=512, gt=0, strict=True)

    def text_source(self, seed: int) -> TextSource:
        """Return the sample of text that this entry asks for, drawn with a seed."""
        return TextSource(self.text, self.text_column, self.samples, seed)

    @field_validator("text_column", mode="before")
    @classmethod
    def _one_name(cls, names: Any) -> Any:
        return as_list(names)


def as_list(names: Any) -> Any:
    """Return one name as a list of it, anything else as it is."""
    return [names] if isinstance(names, str) else names
