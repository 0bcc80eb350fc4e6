"""Sources of text: the fields that recipes and commands share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


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

    # A recipe has one validator, built when it is first read; its parts need none of their own.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _texts_can_be_written(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        for key, value in values.items():
            for text in (key, *(value if isinstance(value, list | tuple) else [value])):
                if isinstance(text, str) and ("\0" in text or any("\ud800" <= c <= "\udfff" for c in text)):
                    raise ValueError(
                        f"{key!r} holds the character NUL or half of a surrogate pair, which no file can hold"
                    )
        return values


# Asks for the package's own text by name.
BUILT_IN = "built-in"


class ModelStatistics(Record):
    """What the statistics of one model are measured on, or the file that holds them.

    Attributes:
        file: written by merge-models statistics, of this model.
        text: a file or Hub dataset id of the model's own task.
        text_column: one column (text) or two (a pair); as for all models when None.
        samples: texts drawn at random; as for all models when None.
    """

    file: str | None = Field(default=None, min_length=1)
    text: str | None = Field(default=None, min_length=1)
    text_column: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=2)
    samples: int | None = Field(default=None, gt=0, strict=True)

    @field_validator("text_column", mode="before")
    @classmethod
    def _one_name(cls, names: Any) -> Any:
        return as_list(names)

    @model_validator(mode="after")
    def _file_or_text(self) -> ModelStatistics:
        if (self.file is None) == (self.text is None):
            raise ValueError("give either a file of merge-models statistics, or a text to measure on")
        if self.file is not None and (self.text_column or self.samples):
            raise ValueError("a statistics file is read whole: text_column and samples belong to a text")
        return self


def model_statistics(value: Any) -> Any:
    """Return the entry that a plain name stands for: a .safetensors file holds statistics, anything else is text."""
    if not isinstance(value, str):
        return value
    return {"file": value} if value.endswith(".safetensors") else {"text": value}


class StatisticsEntry(Record):
    """What fisher, regmean or cocktail read besides the weights, where it is the same for all models.

    Attributes:
        text: one text for all models: a file or Hub dataset id, or built-in for the package's own text. fisher and regmean
            need it only for models without statistics or text of their own.
        files: written by merge-models statistics; each belongs to the model that it was measured of.
        text_column: one column (text) or two (a pair).
        label_column: the column of class names; cocktail's.
        samples: texts drawn at random from the whole file.
    """

    text: str | None = None
    files: tuple[str, ...] = ()
    text_column: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=2)
    label_column: str | None = Field(default=None, min_length=1)
    samples: int = Field(default=512, gt=0, strict=True)

    def text_source(self, seed: int) -> TextSource:
        """Return the sample of text that this entry asks for, drawn with a seed."""
        return TextSource(_source(self.text), self.text_column, self.samples, seed)

    def text_source_of(self, model: ModelStatistics, seed: int) -> TextSource:
        """Return the sample of one model's own text, drawn as for all models unless the model says otherwise."""
        columns, samples = model.text_column or self.text_column, model.samples or self.samples
        return TextSource(_source(model.text), columns, samples, seed)

    @field_validator("text_column", "files", mode="before")
    @classmethod
    def _one_name(cls, names: Any) -> Any:
        return as_list(names)


def _source(text: str | None) -> str | None:
    return None if text == BUILT_IN and not Path(text).exists() else text


def as_list(names: Any) -> Any:
    """Return one name as a list of it, anything else as it is."""
    return [names] if isinstance(names, str) else names
