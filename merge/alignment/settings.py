"""Settings of an alignment: the `align` entry of a recipe."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from merge.alignment.matchers import BY, OPTIONS, finders_of_maps, readers_of
from merge.errors import nearest
from merge.text.source import Record, TextSource, as_list


class AlignEntry(Record):
    """How models are aligned to the reference before they are merged.

    Attributes:
        by: auto, a matcher (weights, activations, ...) or none.
        text: calibration text, a file or Hub dataset id; the package's own text when None.
        text_column: one column (text) or two (a pair).
        label_column: the column of class names, for `learned`; without it masked words are predicted.
        axes: kinds of axes that move; chosen without labels when None.
        samples: texts drawn at random from the whole file.
        residual: what becomes of the stream between the layers: permutation, rotation (pre-LN models; the gains of their
            norms are folded into what reads them) or identity.
        basis: what moves inside heads: permutation, or orthogonal for rotations.
        canonical: undo or keep the canonical weights that are matched.
        restarts: further runs of weight matching, each from the best so far, disturbed; of rotations the text says which is
            best, else the weights do.
        steps: of `learned` and `annealing`.
        both: let `learned` move the reference too.
        reference: the model that the others are aligned to; the first when None.
        apply: instead of matching, the transform.safetensors of an earlier run; one for each model that moves, in their
            order, the base's last.
        repair: set each unit's mean and spread in the merge to those of the models'.
    """

    by: str = "none"
    text: str | None = None
    text_column: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=2)
    label_column: str | None = Field(default=None, min_length=1)
    axes: tuple[str, ...] | None = Field(default=None, min_length=1)
    samples: int = Field(default=512, gt=0, strict=True)
    residual: Literal["permutation", "rotation", "identity"] | None = None
    basis: Literal["permutation", "orthogonal"] | None = None
    canonical: Literal["undo", "keep"] = "undo"
    restarts: int = Field(default=0, ge=0, strict=True)
    steps: int = Field(default=200, gt=0, strict=True)
    both: bool = False
    reference: str | None = Field(default=None, min_length=1)
    apply: tuple[str, ...] | None = Field(default=None, min_length=1)
    repair: bool = False

    def text_source(self, seed: int) -> TextSource:
        """Return the sample of text that this entry asks for, drawn with a seed."""
        return TextSource(self.text, self.text_column, self.samples, seed)

    @field_validator("text_column", "axes", "apply", mode="before")
    @classmethod
    def _one_name(cls, names: Any) -> Any:
        return as_list(names)

    @field_validator("by")
    @classmethod
    def _known_aligner(cls, by: str) -> str:
        if by not in ("none", *BY):
            raise ValueError(f"unknown alignment {by!r}.{nearest(by, ['none', *BY])}")
        return by

    @property
    def moves(self) -> bool:
        """Whether anything is aligned at all."""
        return self.by != "none" or self.apply is not None

    @model_validator(mode="after")
    def _only_with_alignment(self) -> AlignEntry:
        given = sorted(name for name in self.model_fields_set - {"by"} if getattr(self, name) not in (None, False))
        verb = "belongs" if len(given) == 1 else "belong"
        if self.apply is not None:
            if self.by != "none" or set(given) - {"apply", "reference", "repair", "text", "text_column", "samples"}:
                raise ValueError("apply repeats an alignment as it was found. Leave out by, and what belongs to it.")
        elif self.by == "none" and given:
            raise ValueError(f"{', '.join(given)} {verb} to an alignment. Add by: activations or by: weights.")
        if self.label_column is not None and self.by != "learned":
            raise ValueError("label_column belongs to by: learned; other alignments read no labels. Leave it out.")
        if self.by == "learned" and self.basis == "permutation":
            raise ValueError(
                "by learned finds maps inside heads, not permutations alone. Leave out basis: permutation."
            )
        if (self.basis == "orthogonal" or self.residual == "rotation") and self.by not in finders_of_maps():
            raise ValueError(
                f"by {self.by} finds permutations alone, no bases inside heads (basis: orthogonal) and no rotation of the "
                f"residual stream (residual: rotation). Those that do: {', '.join(finders_of_maps())}."
            )
        for name in OPTIONS:
            if name in given and self.by not in (readers := readers_of(name)):
                raise ValueError(f"{name} says nothing to by: {self.by}. Leave it out, or use {', '.join(readers)}.")
        if self.axes is not None and self.residual is not None:
            raise ValueError("axes names the kinds that move, residual among them or not. Leave out one of the two.")
        return self
