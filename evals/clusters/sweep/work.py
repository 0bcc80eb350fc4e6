"""The work of a sweep: what is left of it, what that costs, and its tasks on several processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.clusters.pair_losses import Pair
from evals.clusters.sweep.cost import Cost
from evals.clusters.sweep.diagnostics import Diagnostic, diagnostic_key, stored_score
from evals.clusters.sweep.measure import Probe, let_go, measure_average, measure_block, measure_model, probe, running
from evals.clusters.sweep.pairs import blocks, group_size, held, reads
from evals.clusters.sweep.records import FOLDER, is_stored, record_path
from evals.clusters.sweep.sweep import ALIGNED, Sweep
from evals.clusters.sweep.transforms import has_transform, transform_path
from evals.clusters.sweep.workers import Crew, Task
from evals.results.predictions import predictions_file
from merge.errors import OutputError

if TYPE_CHECKING:
    from merge.checkpoints.checkpoint import Checkpoint


@dataclass(frozen=True)
class Work:
    """What is left to measure.

    Attributes:
        models: index -> diagnostics that are left, for models of which anything is.
        pairs: line -> pairs that are left.
        ends: models whose losses are left.
        alignments: how many alignments are left.
        results: the files that the work on the models ends in.
    """

    models: dict[int, tuple[Diagnostic, ...]]
    pairs: dict[str, list[Pair]]
    ends: tuple[int, ...]
    alignments: int
    results: tuple[Path, ...]

    @property
    def pair_count(self) -> int:
        return sum(map(len, self.pairs.values()))


@contextmanager
def alone(store: Path) -> Iterator[None]:
    """Hold the lock of the records, and remove what killed runs left half written.

    Raises:
        OutputError: another sweep writes to this folder, or it is not writable.
    """
    from filelock import FileLock, Timeout

    folder = store / FOLDER
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise OutputError(f"another sweep writes to {store} now. Wait for it, or choose another -o.") from None
    except OSError as error:
        raise OutputError(f"{store} cannot be written: {error}") from error
    try:
        for unfinished in folder.glob("*/.*.tmp"):
            unfinished.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def work_left(
    sweep: Sweep,
    pairs: Sequence[Pair],
    diagnostics: Sequence[Diagnostic],
    models: Sequence[Checkpoint],
    results: Sequence[dict[str, Any]],
    force: bool,
) -> Work:
    """Return what is left to measure; everything where it is forced."""
    if force:
        for key in [*map(sweep.end_key, range(len(models))), *_pair_keys(sweep, pairs)]:
            record_path(sweep.store, key).unlink(missing_ok=True)
        shutil.rmtree(sweep.store / FOLDER / "averages", ignore_errors=True)
    ends = tuple(k for k in range(len(models)) if not is_stored(sweep.store, sweep.end_key(k)))
    transforms = [
        k
        for k in range(len(models))
        if sweep.settings.moves and sweep.reference not in (None, k) and not has_transform(sweep, models.__getitem__, k)
    ]
    left: dict[int, tuple[Diagnostic, ...]] = {}
    files = [record_path(sweep.store, sweep.end_key(k)) for k in ends]
    files += [transform_path(sweep, k) for k in transforms]
    for k, model in enumerate(models):
        missing = [each for each in diagnostics if stored_score(results, sweep, each, model) is None]
        once = {diagnostic_key(sweep, each, model): each for each in missing}
        if k in ends or once or k in transforms:
            left[k] = tuple(once.values())
            files += [sweep.store / predictions_file(key) for key in once]
    unmeasured = {
        line: [pair for pair in pairs if not is_stored(sweep.store, sweep.pair_key(line, pair))] for line in sweep.lines
    }
    of_pairs = len(unmeasured.get(ALIGNED, ())) if sweep.reference is None else 0
    return Work(left, unmeasured, ends, len(transforms) + of_pairs, tuple(files))


def _pair_keys(sweep: Sweep, pairs: Sequence[Pair]) -> list[str]:
    return [sweep.pair_key(line, pair) for line in sweep.lines for pair in pairs]


def estimate(sweep: Sweep, pairs: Sequence[Pair], work: Work, processes: int) -> tuple[Sweep, Cost]:
    """Return the sweep with the number of models that a worker keeps, and what it costs, measured on its first pair."""
    size = group_size(work.pair_count, processes)
    sweep = replace(sweep, held=held(size))
    parts, tokens = Probe(0.0, 0.0, 0.0, 1, 0), 0
    if work.pair_count or work.models:
        first = next((pair for left in work.pairs.values() for pair in left), pairs[0])
        asked = {each.name: each for left in work.models.values() for each in left}
        parts, counts = probe(sweep, first, list(asked.values()))
        tokens = sum(counts[each.name] for left in work.models.values() for each in left)
    cost = Cost(
        models=len(sweep.models),
        pairs=len(pairs) * len(sweep.lines),
        models_left=len(work.ends),
        pairs_left=work.pair_count,
        points=sweep.points - 2,
        rows=len(sweep.rows),
        tokens=parts.tokens,
        diagnostic_tokens=tokens,
        alignments=work.alignments,
        read_seconds=parts.read,
        align_seconds=parts.align,
        point_seconds=parts.point,
        processes=processes,
        reads=sum(reads(blocks(left, size)) for left in work.pairs.values()),
        # The skeleton and the point that is measured, beside the models that are kept.
        worker_bytes=(sweep.held + 2) * parts.weights,
    )
    return sweep, cost


def carry_out(sweep: Sweep, work: Work, processes: int, backend: str) -> None:
    """Measure what is left: models first, then pairs, block by block."""
    crew = Crew(processes, backend, running(sweep))
    if processes > 1:
        let_go()

    if work.models:
        tasks: list[Task] = [(measure_model, (sweep, k, left, at)) for at, (k, left) in enumerate(work.models.items())]
        crew.run(tasks, "models", *_counted(work.results))
    parted = [(line, block) for line, left in work.pairs.items() for block in blocks(left, sweep.held - 2)]
    if parted:
        tasks = [(measure_block, (sweep, line, block, at)) for at, (line, block) in enumerate(parted)]
        keys = [sweep.pair_key(line, pair) for line, left in work.pairs.items() for pair in left]
        crew.run(tasks, "pairs", *_counted([record_path(sweep.store, key) for key in keys]))


def average_models(sweep: Sweep, line: str, subsets: Sequence[Sequence[int]], processes: int, backend: str) -> None:
    """Measure the averages of subsets of the models that are not stored."""
    left = [members for members in subsets if not is_stored(sweep.store, sweep.average_key(line, members))]
    if left:
        files = [record_path(sweep.store, sweep.average_key(line, members)) for members in left]
        tasks: list[Task] = [(measure_average, (sweep, line, members, at)) for at, members in enumerate(left)]
        Crew(processes, backend, running(sweep)).run(tasks, "averages", *_counted(files))


def _counted(files: Sequence[Path]) -> tuple[int, Callable[[], int]]:
    """Return how many files there will be, and a function that returns how many there are."""
    waiting = set(files)
    total = len(waiting)

    def done() -> int:
        waiting.difference_update([path for path in waiting if path.exists()])
        return total - len(waiting)

    return total, done
