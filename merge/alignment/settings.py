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
        residual: how the stream between the layers moves: permutation, rotation (pre-LN models; the gains of their norms
            are folded into the weights that read them) or identity.
        basis: what moves inside heads: permutation, or orthogonal for rotations.
        canonical: undo or keep the canonical weights that are matched.
        restarts: further runs of weight matching, each from the best so far with a part shuffled; the best is chosen by its
            objective, among rotations by the text.
        steps: of `learned` and `annealing`.
        both: let `learned` move the reference too.
        line: let `learned` lower the loss along the whole line between the models, not near its middle alone.
        reference: the model that the others are aligned to; the first when None.
        apply: instead of matching, the transform.safetensors of an earlier run; one for each model that moves, in their
            order, the base's last.
        repair: set the mean and variance of each unit in the merge to those in the models.
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
    line: bool = False
    reference: str | None = Field(default=None, min_length=1)
    apply: tuple[str, ...] | None = Field(default=None, min_length=1)
    repair: bool = False

    def text_source(self, seed: int) -> TextSource:
        """Return the sample of text that these settings ask for."""
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
                raise ValueError(
                    "apply repeats an earlier alignment. Leave out by, and the settings that belong to it."
                )
        elif self.by == "none" and given:
            raise ValueError(
                f"{', '.join(given)} {verb} to an alignment. Add by: activations or by: weights (--align activations)."
            )
        if self.label_column is not None and self.by != "learned":
            raise ValueError("label_column belongs to by: learned; other alignments read no labels. Leave it out.")
        if self.by == "learned" and self.basis == "permutation":
            raise ValueError(
                "by: learned moves units inside heads by general maps, not by permutations. Leave out basis: permutation."
            )
        if (self.basis == "orthogonal" or self.residual == "rotation") and self.by not in finders_of_maps():
            raise ValueError(
                f"by {self.by} finds permutations alone, no bases inside heads (basis: orthogonal) and no rotation of the "
                f"residual stream (residual: rotation). Those that do: {', '.join(finders_of_maps())}."
            )
        for name in OPTIONS:
            if name in given and self.by not in (readers := readers_of(name)):
                raise ValueError(f"{name} has no effect with by: {self.by}. Leave it out, or use {', '.join(readers)}.")
        if self.axes is not None and self.residual is not None:
            raise ValueError(
                "axes and residual both decide whether the residual stream moves. Leave out one of the two."
            )
        return self
