"""One evaluation over many processes: torchrun --nproc-per-node N --no-python evaluate-models ...

Rank 0 runs the command. Every other rank is a worker: it receives a model and the batches, predicts every Nth batch, and
returns the logits. The plan of batches does not depend on N, and rank 0 alone scores, prints and writes; so the files are
those of one process, byte for byte, as long as each process has as many threads.

What is sent is in main memory on both sides, so the processes use gloo, also where they compute on GPUs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evals.predict.process_group import has_joined, join_group, local_device, rank_and_size
from merge.errors import TaskError, first_line, one_line

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

    from merge.checkpoints.inputs import Batch, Encoded

# torchrun ends all processes when one fails: a failing worker waits, so that rank 0 can print the error.
ERROR_REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class Job:
    """A model and the batches to predict; its weights follow, one message each.

    Attributes:
        tensors: name, dtype and shape of each weight.
        rows: for each batch, the indices of its rows, for errors.
        probe: the small batch on which the short cut is tested: every process must take it, or none.
    """

    config: Mapping[str, Any]
    dtype: torch.dtype
    device: str
    tensors: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
    batches: tuple[Batch, ...]
    rows: tuple[tuple[int, ...], ...]
    probe: Batch


@dataclass(frozen=True)
class Share:
    """What one rank computed: the logits of the batches rank, rank + size, ...; or its error."""

    rank: int
    logits: tuple[Any, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class WorkerGroup:
    """All processes of an evaluation, as rank 0 uses them.

    Attributes:
        size: how many processes there are, rank 0 included.
    """

    size: int

    def predict(
        self,
        config: Mapping[str, Any],
        model: Any,
        names: tuple[str, ...],
        encoded: Encoded,
        label: str = "predicting",
    ) -> Float[Tensor, "rows classes"]:
        """Return what `evals.predict.logits.predict` returns, every process having predicted its share of the batches.

        Args:
            config: of the model.
            names: of the weights that determine the model, which are sent.
        Raises:
            TaskError: another process failed, or has ended; gives its rank and its error.
        """
        from evals.predict.logits import batch_logits, in_order, probe_batch

        state = model.state_dict()
        tensors = {name: state[name] for name in names}
        facts = tuple((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items())
        probe = probe_batch(encoded)
        _send(Job(dict(config), model.dtype, model.device.type, facts, encoded.batches, encoded.rows, probe))
        for tensor in tensors.values():
            _broadcast(tensor.detach().cpu())
        failure: Exception | None = None
        share = Share(0, error="failed")
        try:
            mine = slice(None, None, self.size)
            share = _share(0, batch_logits(model, encoded.batches[mine], encoded.rows[mine], probe, label))
        except Exception as error:  # noqa: BLE001 (raised below, after the workers, which wait, have been answered)
            failure = error
        shares = _gather(share)
        if failure is not None:
            raise failure
        if errors := [f"process {each.rank}: {each.error}" for each in shares if each.error]:
            raise TaskError(f"{label} failed on {len(errors)} of {self.size} processes: {'; '.join(errors)}")
        return in_order(_interleave(shares, len(encoded.batches)), encoded)


def worker_group() -> WorkerGroup | None:
    """Return all processes of this evaluation, joined; None where there is one process only."""
    size = rank_and_size()[1]
    if size == 1:
        return None
    join_group()
    return WorkerGroup(size)


def release_workers() -> None:
    """Tell the workers that no more jobs come, so that they end."""
    with suppress(TaskError):  # a worker that has ended need not be told
        join_group()
        _send(None)
    if has_joined():
        from accelerate import PartialState

        PartialState().destroy_process_group()


def run_worker() -> int:
    """Predict what rank 0 sends until no more comes; return the exit code. Prints nothing."""
    import logging
    import signal
    import warnings

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # rank 0 reports an interruption
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    rank, size = rank_and_size()
    worker = _Worker(rank, size)
    try:
        join_group()
        while (job := _receive()) is not None:
            tensors = {name: _broadcast(_empty(dtype, shape)) for name, dtype, shape in job.tensors}
            share, worker = worker.do(job, tensors)
            _gather(share)
    except TaskError:
        time.sleep(ERROR_REPORT_SECONDS)
        return 1
    return 0


@dataclass(frozen=True)
class _Worker:
    """A process other than rank 0, with the model that it built last.

    Attributes:
        built_for: config, dtype and device of that model.
    """

    rank: int
    size: int
    model: Any = None
    built_for: tuple[Any, ...] = ()

    def do(self, job: Job, tensors: Mapping[str, Tensor]) -> tuple[Share, _Worker]:
        """Return this worker's share of a job, and the worker that keeps the model for the next one."""
        from evals.predict.logits import batch_logits
        from merge.checkpoints.transformers_model import build, set_weights

        needed = (job.config, job.dtype, job.device)
        try:
            model = self.model
            if self.built_for == needed:
                set_weights(model, tensors)
            else:
                model = build(job.config, tensors, job.dtype).to(local_device(job.device))
            mine = slice(self.rank, None, self.size)
            share = _share(self.rank, batch_logits(model, job.batches[mine], job.rows[mine], job.probe))
        except Exception as error:  # noqa: BLE001 (rank 0 raises it)
            return Share(self.rank, error=f"{type(error).__name__}: {one_line(error)}"), _Worker(self.rank, self.size)
        return share, _Worker(self.rank, self.size, model, needed)


def _share(rank: int, logits: list[Tensor]) -> Share:
    return Share(rank, tuple(part.numpy() for part in logits))


def _interleave(shares: list[Share], count: int) -> list[Tensor]:
    """Return the logits of every batch in the order of the plan."""
    import torch

    parts = [iter(share.logits) for share in sorted(shares, key=lambda share: share.rank)]
    return [torch.from_numpy(next(parts[k % len(parts)])) for k in range(count)]


def _send(job: Job | None) -> None:
    """Send a job to every worker; None says that no more come."""
    from accelerate.utils import broadcast_object_list

    try:
        broadcast_object_list([job])
    except RuntimeError as error:
        raise _process_ended(error) from None


def _receive() -> Job | None:
    """Return the next job of rank 0, None where no more come."""
    from accelerate.utils import broadcast_object_list

    holder: list[Job | None] = [None]
    try:
        broadcast_object_list(holder)
    except RuntimeError as error:
        raise _process_ended(error) from None
    return holder[0]


def _broadcast(tensor: Tensor) -> Tensor:
    """Send a tensor from rank 0, or receive it; as bytes, which gloo can send for every dtype."""
    import torch
    from accelerate.utils import broadcast

    data = tensor.contiguous()
    try:
        broadcast(data.reshape(-1).view(torch.uint8))
    except RuntimeError as error:
        raise _process_ended(error) from None
    return data


def _empty(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    import torch

    return torch.empty(shape, dtype=dtype)


def _gather(share: Share) -> list[Share]:
    """Return the shares of all processes, in any order; every process calls this once a job."""
    from accelerate.utils import gather_object

    try:
        shares: list[Share] = gather_object([share])
    except RuntimeError as error:
        raise _process_ended(error) from None
    return shares


def _process_ended(error: RuntimeError) -> TaskError:
    return TaskError(f"another process of this evaluation has ended: {first_line(error).rstrip('.')}")
