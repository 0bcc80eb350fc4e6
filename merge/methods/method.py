"""The abstract base of all merge methods."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

from merge.methods.checks import check_length
from merge.methods.context import EMPTY, TensorContext

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Method(ABC):
    """A merge method: its fields are its settings, and a call computes the merged tensor.

    A setting that is a tuple holds one value per model. A method overrides only the attributes below in which it differs
    from the defaults.

    Attributes:
        name: the method's name in recipes; every method sets it.
        base: whether it needs the model that the others were fine-tuned from: "required", "optional" or "none".
        order_matters: the formula depends on the order of the models, apart from their weights.
        random: it draws from `context.generators`.
        statistics: the statistics it needs, "fisher" or "gram", or None.
        spreads_nan: an entry of an input that is NaN or infinite makes the same entry of the result so, whatever the weights.
    """

    name: ClassVar[str]
    base: ClassVar[Literal["required", "optional", "none"]] = "none"
    order_matters: ClassVar[bool] = False
    random: ClassVar[bool] = False
    statistics: ClassVar[Literal["fisher", "gram"] | None] = None
    spreads_nan: ClassVar[bool] = False

    @property
    def elementwise(self) -> bool:
        """Whether each entry of the result depends on the same entry of the inputs alone, given the context.

        The engine then merges a tensor in flat pieces.
        """
        return False

    @property
    def takes_numpy(self) -> bool:
        """Whether the method accepts numpy arrays too, with the same bits, so that a merge need not import torch."""
        return False

    @property
    def as_stored(self) -> bool:
        """Whether the method takes every matrix as its file has it.

        Otherwise it takes matrices as (outputs, inputs), whichever way round the architecture stores them.
        """
        return False

    @property
    def two_passes(self) -> bool:
        """Whether the formula is entry by entry once the sums over the tensor are known: `of_pieces` returns it."""
        return False

    def of_pieces(self, pieces: Iterable[Sequence[Tensor]]) -> Method:
        """Return the method, entry by entry, that this one is for the tensors of these flat pieces of every model."""
        return self

    def kept_fractions(self, models: int) -> tuple[float, ...] | None:
        """Return the fraction of entries kept of each task vector, ranked over the whole model; None for no such ranking."""
        return None

    @final
    def check_count(self, models: int) -> None:
        """Check the settings and the method against the number of models.

        Raises:
            UsageError: a setting given per model is not one per model, or the method does not merge this many models.
        """
        for field in dataclasses.fields(self):
            check_length(self.name, field.name, getattr(self, field.name), models)
        self.check_models(models)

    def check_models(self, models: int) -> None:  # noqa: B027 (methods without a limit leave it as it is)
        """Stop when the method does not merge this many models; by default it merges any number."""

    @abstractmethod
    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        """Return the merged tensor.

        Args:
            tensors: the same tensor of every model, the reference first; float32 or float64, equal shapes. The rows of a
                matrix are a layer's outputs, unless `as_stored`.
            base: that tensor of the base, if there is one.
        """
