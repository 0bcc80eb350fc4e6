"""One model in memory whose weights are swapped in place: what a worker keeps from one pair to the next."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from evals.clusters.sweep.sweep import ALIGNED, Sweep
from evals.clusters.sweep.transforms import moved_weights
from evals.paths.pair_lines import Ends, Weights, endpoints, written_weights
from evals.paths.walk import EncodedTask
from evals.predict.embeddings import with_modules
from evals.predict.predictor import Predictor, make_predictor
from evals.tasks.label_names import MatchedTask
from merge.checkpoints.checkpoint import Checkpoint, finite_tensors
from merge.checkpoints.model_set import ModelSet
from merge.checkpoints.open import open_encoder
from merge.recipe.recipe import make_align_entry

if TYPE_CHECKING:
    from merge.alignment.settings import AlignEntry


@dataclass(frozen=True)
class Together:
    """The weights of several models in one order of classes, and one order of units.

    Attributes:
        predictor: takes these weights; not that of the skeleton where the alignment rewrites the models.
        kept: what the alignment moves.
    """

    weights: tuple[Weights, ...] = field(repr=False)
    predictor: Predictor
    kept: str


@dataclass(frozen=True)
class Skeleton:
    """A model whose weights are swapped in place, the rows as its batches, and the weights of the models read last."""

    sweep: Sweep
    predictor: Predictor
    encoded: EncodedTask
    checkpoints: Callable[[int], Checkpoint] = field(repr=False)

    @cached_property
    def weights(self) -> Callable[[int], Weights]:
        """Index of a model -> its weights, float32, by the names that transformers writes."""
        return lru_cache(maxsize=self.sweep.held)(self._read)

    @cached_property
    def moved(self) -> Callable[[int], Weights]:
        """Index of a model -> its weights in the units and the order of classes of the reference."""
        return lru_cache(maxsize=self.sweep.held)(self._read_moved)

    def rows_for(self, model: int) -> EncodedTask:
        """Return the rows with the classes of the task matched to those of a model."""
        columns = self.sweep.models[model].columns
        matched = replace(self.encoded.matched, columns=columns, model=self.checkpoints(model))
        return replace(self.encoded, matched=matched)

    @contextmanager
    def ends(self, line: str, a: int, b: int) -> Iterator[tuple[Ends, Predictor]]:
        """Yield the endpoints of a line, b in the order of classes and, if the line is aligned, in the units of a."""
        if line == ALIGNED and self.sweep.reference is not None:
            yield Ends(line, self.moved(a), self.moved(b), self.checkpoints(a)), self.predictor
        elif line == ALIGNED:
            with self.aligned(self.sweep.settings, (a, b)) as together:
                first, second = together.weights
                yield Ends(together.kept, first, second, together.predictor.like), together.predictor
        else:
            yield Ends(line, self.weights(a), self.in_order_of(a, b), self.checkpoints(a)), self.predictor

    def in_order_of(self, a: int, b: int) -> Weights:
        """Return the weights of b with its classes in the order of those of a."""
        from merge.run.plan.classes import match_classes

        if match_classes((self.checkpoints(a), self.checkpoints(b))).labels[1] is None:
            return self.weights(b)
        with self.aligned(make_align_entry({}), (a, b)) as together:
            return together.weights[1]

    @contextmanager
    def aligned(self, settings: AlignEntry, models: Sequence[int]) -> Iterator[Together]:
        """Yield the weights of models that are brought into the order of classes, and the units, of the first."""
        from merge.alignment.rewrite import rewritten
        from merge.run.plan.heads import plan_heads
        from merge.run.rebase import rebase

        given = ModelSet(tuple(self.checkpoints(k) for k in models))
        with rewritten(settings, given, Path(tempfile.gettempdir()) / "sweep") as ready:
            rebased = rebase(settings, plan_heads(None, ready.models), self.sweep.seed)
            tensors = endpoints(ready.models.models, rebased, rebased.transforms)
            predictor, reference = self.predictor, ready.models.reference
            if ready.models is not given and not predictor.fits(reference):
                device, cache, longest = predictor.model.device, predictor.cache, predictor.max_length
                predictor = make_predictor(reference, device=device, cache=cache, max_length=longest)
            kept = ", ".join(dict.fromkeys(each.choice.kept.name for each in rebased.aligned))
            yield Together(tuple(map(self._on_device, tensors)), predictor, kept or "not aligned")

    def _read(self, model: int) -> Weights:
        checkpoint = self.checkpoints(model)
        return self._on_device(written_weights(checkpoint, finite_tensors(checkpoint)))

    def _read_moved(self, model: int) -> Weights:
        return self._on_device(moved_weights(self.sweep, self.checkpoints, model))

    def _on_device(self, weights: Weights) -> Weights:
        return {name: tensor.to(self.predictor.model.device) for name, tensor in weights.items()}


def make_skeleton(sweep: Sweep, device: str) -> Skeleton:
    """Return a skeleton with the architecture, the tokenizer and the classes of the first model of a sweep."""

    @cache
    def checkpoints(model: int) -> Checkpoint:
        swept = sweep.models[model]
        return with_modules(replace(open_encoder(str(swept.folder)), source=swept.name))

    first = checkpoints(0)
    predictor = make_predictor(first, device=device, cache=sweep.cache, max_length=sweep.max_length)
    matched = MatchedTask(sweep.task, sweep.rows, sweep.models[0].columns, first)
    return Skeleton(sweep, predictor, EncodedTask(matched, predictor.encode(sweep.rows)), checkpoints)
