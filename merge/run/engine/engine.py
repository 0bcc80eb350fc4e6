"""Merge every tensor of the result by its method, in threads and in pieces, straight into the output files.

Weights are read from memory-mapped files. A method that works entry by entry takes pieces of a tensor that fit into the
processor's cache, any other takes whole tensors, so memory is bounded by the largest tensor and not by the model. The bytes
that are written depend neither on the number of threads nor on the order of the models or the layout of their files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from merge.checkpoints.weights.arrays import NUMPY, TORCH, Array, Arrays
from merge.checkpoints.weights.read import INTEGER_DTYPES
from merge.errors import CheckpointError, MismatchError, OutputError
from merge.machine import in_threads, keep_freed_memory
from merge.methods import Method
from merge.methods.context import TensorContext, mask_generators
from merge.progress import begin_phase
from merge.run.engine.job import CommonRows, Input, Job
from merge.run.engine.magnitude_ranking import SAMPLED, Visit, magnitude_thresholds, sample

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
PIECE = 1 << 18  # entries: of less, threads wait for the interpreter's lock; of more, caches hold no piece


@dataclass(frozen=True)
class Engine:
    """Merges the tensors of some models.

    Attributes:
        models: in the order of the recipe.
        base: the model that task vectors are measured from.
        vocabulary: the rows of each model in the result's vocabulary; None where all models have one vocabulary.
        dtype: of the arithmetic, F32 or F64; None for F64 where a tensor is F64, else F32.
        seed: of the random masks.
        arrays: the library and device of the arithmetic; numpy only if every method takes numpy arrays.
        droppable: names of the tensors that --extra-tensors drop would leave out.
    """

    models: tuple[Input, ...]
    base: Input | None = None
    vocabulary: CommonRows | None = None
    dtype: str | None = None
    seed: int = 0
    arrays: Arrays = TORCH
    droppable: frozenset[str] = frozenset()

    def run(
        self,
        jobs: Sequence[Job],
        write: Callable[[str, Array, int], None],
        dtypes: Mapping[str, str],
        threads: int,
    ) -> None:
        """Merge every job and write it in pieces: write(name, flat piece, index of its first entry).

        Args:
            jobs: started in this order.
            dtypes: name -> dtype that is written, in safetensors' letters.
        Raises:
            CheckpointError: an input holds NaN or infinity.
            MismatchError: integer tensors differ.
            OutputError: a result is not finite in the dtype it is written in.
        """
        with self.arrays.working():
            begin_phase("merging tensors")
            keep_freed_memory()
            thresholds = self._thresholds(jobs, threads)

            def merge(job: Job) -> None:
                for start, piece in self.pieces(job, thresholds.get(_group(job), ())):
                    write(job.name, self._cast(job.name, piece, dtypes[job.name]), start)

            in_threads([partial(merge, job) for job in jobs], threads, "merging tensors")

    def pieces(self, job: Job, thresholds: tuple[float, ...] = ()) -> Iterator[tuple[int, Array]]:
        """Yield (index of its first entry, flat piece) for the pieces of one merged tensor."""
        tensors, base = self._read(job)
        if self._is_integer(tensors[0]):
            yield 0, self._same_integers(job, tensors).reshape(-1)
            return
        job, tensors, thresholds = self._in_canonical_order(job, tensors, thresholds)
        context = TensorContext(job.name, self._generators(job), thresholds, self._statistics(job))
        dtype = self._dtype([*tensors, *([] if base is None else [base])])
        flat = [tensor.reshape(-1) for tensor in tensors]
        if job.method.two_passes:
            starts = range(0, len(flat[0]), PIECE)
            pieces = (self._prepare(job, [t[a : a + PIECE] for t in flat], dtype) for a in starts)
            job = dataclasses.replace(job, method=job.method.of_pieces(pieces))
        if job.transposed or not job.method.elementwise:
            parts, origin = self._prepare(job, tensors, dtype), self._prepare_base(job, base, dtype)
            if job.transposed:  # in the order of memory of a matrix stored so, in which sums round
                parts = [part.T.contiguous() for part in parts]
                origin = None if origin is None else origin.T.contiguous()
            merged = job.method(parts, origin, context)
            yield 0, self._finite_result(job.name, (merged.T if job.transposed else merged).reshape(-1))
            return
        flat_base = None if base is None else base.reshape(-1)
        for a in range(0, len(flat[0]), PIECE):
            b = a + PIECE
            part = dataclasses.replace(context, statistics=tuple(s.flatten()[a:b] for s in context.statistics))
            stored, stored_base = [t[a:b] for t in flat], None if flat_base is None else flat_base[a:b]
            late = job.method.spreads_nan
            parts = self._prepare(job, stored, dtype, not late)
            merged = job.method(parts, self._prepare_base(job, stored_base, dtype, not late), part)
            if not self.arrays.is_finite(merged):
                self._prepare(job, stored, dtype)  # an input that is not finite is the error
                self._prepare_base(job, stored_base, dtype)
                self._finite_result(job.name, merged)
            yield a, merged

    def _read(self, job: Job) -> tuple[list[Array], Array | None]:
        """Return the tensors of a job and that of its base; rows of tokens in the order of the result's vocabulary."""
        tensors = [self.models[model].tensor(name) for model, name in job.sources]
        base = None if job.base is None or self.base is None else self.base.tensor(job.base)
        if self.vocabulary is None or job.name not in self.vocabulary.names:
            return tensors, base
        from merge.checkpoints.tokenizers.vocabulary import fill_missing

        rows = [self.vocabulary.rows[model] for model, _ in job.sources]
        if base is None:
            return fill_missing(rows, tensors), None
        *filled, base = fill_missing([*rows, self.vocabulary.rows[-1]], [*tensors, base])
        return filled, base

    def _is_integer(self, tensor: Array) -> bool:
        return self.arrays.dtype(tensor) in INTEGER_DTYPES

    def _dtype(self, tensors: Sequence[Array]) -> str:
        if self.dtype is not None:
            return self.dtype
        return "F64" if any(self.arrays.dtype(tensor) == "F64" for tensor in tensors) else "F32"

    def _job_dtype(self, job: Job) -> str:
        tensors, base = self._read(job)
        return self._dtype([*tensors, *([] if base is None else [base])])

    def _prepare(self, job: Job, tensors: Sequence[Array], dtype: str, check: bool = True) -> list[Array]:
        """Return the tensors in the dtype of the arithmetic, checked to be finite."""
        prepared = []
        for tensor, (model, name) in zip(tensors, job.sources, strict=True):
            if check:
                self._check_finite(tensor, self.models[model].source, name)
            prepared.append(self.arrays.widen(tensor, dtype))
        return prepared

    def _prepare_base(self, job: Job, base: Array | None, dtype: str, check: bool = True) -> Array | None:
        if base is None or self.base is None:
            return None
        if check:
            self._check_finite(base, self.base.source, str(job.base))
        return self.arrays.widen(base, dtype)

    def _check_finite(self, tensor: Array, source: str, name: str) -> None:
        if not self.arrays.is_finite(tensor):
            advice = self._without(name) or "This model is broken; leave it out."
            raise CheckpointError(f"{source}: {name} holds NaN or infinity. {advice}")

    def _without(self, name: str) -> str:
        """Return the advice to merge without a tensor, if its class does not have it."""
        droppable = name in self.droppable
        return "It is no tensor of the model's class: --extra-tensors drop leaves it out." if droppable else ""

    def _finite_result(self, name: str, merged: Array) -> Array:
        if not self.arrays.is_finite(merged):
            advice = self._without(name) or "Are the weights or a scale very large?"
            raise OutputError(f"{name}: the merge holds NaN or infinity. {advice}")
        return merged

    def _cast(self, name: str, merged: Array, dtype: str) -> Array:
        """Return a piece in the dtype that is written, checked to be finite: a narrow dtype may not hold large entries."""
        cast = self.arrays.cast(merged, dtype)
        if dtype not in (*INTEGER_DTYPES, self.arrays.dtype(merged)) and not self.arrays.is_finite(cast):
            wider = "bfloat16" if dtype == "F16" else "float64"
            advice = self._without(name) or f"Write another dtype: --out-dtype {wider}."
            raise OutputError(f"{name} does not fit into {FLOATS[dtype]}. {advice}")
        return cast

    def _same_integers(self, job: Job, tensors: Sequence[Array]) -> Array:
        for tensor, (model, name) in zip(tensors, job.sources, strict=True):
            if not self.arrays.equal(tensor, tensors[0]):
                raise MismatchError(
                    f"integer tensor {name} differs between {self.models[job.sources[0][0]].source} and "
                    f"{self.models[model].source}; integers cannot be averaged. {self._without(name)}".rstrip()
                )
        return tensors[0]

    def _in_canonical_order(
        self, job: Job, tensors: list[Array], thresholds: tuple[float, ...]
    ) -> tuple[Job, list[Array], tuple[float, ...]]:
        """Return the models in the order of their keys, unless the method depends on their order: so sums round alike."""
        if job.method.order_matters or len(tensors) < 2:
            return job, tensors, thresholds
        settings = _per_model(job.method, len(tensors))
        order = sorted(
            range(len(tensors)),
            key=lambda k: (self.models[job.sources[k][0]].key, job.sources[k][1], [v[k] for v in settings.values()]),
        )
        method = dataclasses.replace(
            job.method, **{key: tuple(value[k] for k in order) for key, value in settings.items()}
        )
        sources = tuple(job.sources[k] for k in order)
        reordered = dataclasses.replace(job, method=method, sources=sources)
        return reordered, [tensors[k] for k in order], tuple(thresholds[k] for k in order) if thresholds else ()

    def _generators(self, job: Job) -> tuple[torch.Generator, ...]:
        if not job.method.random:
            return ()
        return mask_generators(self.seed, job.name, [f"{self.models[m].key} {name}" for m, name in job.sources])

    def _statistics(self, job: Job) -> tuple[Tensor, ...]:
        if job.method.statistics is None:
            return ()
        statistics = [self.models[model].statistics(job.method.statistics, name) for model, name in job.sources]
        measured = tuple(each for each in statistics if each is not None)
        if measured and len(measured) < len(statistics):
            raise MismatchError(
                f"{job.name}: {len(measured)} of {len(statistics)} models have {job.method.statistics} statistics."
            )
        return measured

    def _thresholds(self, jobs: Sequence[Job], threads: int) -> dict[Any, tuple[float, ...]]:
        """Return, for methods that trim over the whole model, the smallest |delta| that is kept of each model."""
        groups: dict[Any, list[Job]] = {}
        for job in jobs:
            if job.method.kept_fractions(len(job.sources)) is not None:
                groups.setdefault(_group(job), []).append(job)
        thresholds = {}
        for group, members in groups.items():
            double = any(self._job_dtype(job) == "F64" for job in members)

            def sweep(visit: Visit, sampled: bool, members: list[Job] = members, double: bool = double) -> None:
                tasks = [partial(self._visit, job, double, visit, sampled) for job in members]
                in_threads(tasks, threads, "ranking task vectors")

            method, models = group
            thresholds[group] = magnitude_thresholds(method.kept_fractions(len(models)), sweep, double)
        return thresholds

    def _visit(self, job: Job, double: bool, visit: Visit, sampled: bool) -> None:
        """Call `visit` with every piece of |model - base| of every source of a job, in the dtype of its method.

        Args:
            sampled: leave out all but a sample, spread evenly.
        """
        import numpy as np

        tensors, base = self._read(job)
        if base is None or self._is_integer(tensors[0]):
            return
        dtype = self._dtype([*tensors, base])
        arrays = NUMPY if self.arrays is NUMPY else TORCH  # where the tensors are
        flat, flat_base = [tensor.reshape(-1) for tensor in tensors], base.reshape(-1)
        step = PIECE * SAMPLED if sampled else PIECE
        for a in range(0, len(flat_base), step):
            base_piece, *pieces = (sample(t[a : a + step]) if sampled else t[a : a + step] for t in (flat_base, *flat))
            origin = arrays.widen(base_piece, dtype)
            for k, piece in enumerate(pieces):
                delta = np.asarray(arrays.widen(piece, dtype) - origin).reshape(-1)
                visit(k, np.abs(delta, out=delta).astype("f8" if double else "f4", copy=False))


def _group(job: Job) -> Any:
    """Return the method and the models of a job: the entries of jobs that share both are ranked together."""
    return job.method, tuple(model for model, _ in job.sources)


def _per_model(method: Method, models: int) -> dict[str, tuple[Any, ...]]:
    """Return the settings of a method that hold one value for each model."""
    values = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    return {key: value for key, value in values.items() if isinstance(value, tuple) and len(value) == models}
