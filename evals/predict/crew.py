"""One evaluation over many processes: torchrun --nproc-per-node N --no-python evaluate-models ...

The first process runs the command. The others know nothing of it: they are sent a model and the batches, predict every
Nth batch, and hand the logits back. There is one plan of batches, whatever N is, and one process that scores, prints and
writes; so the files are those of one process, byte for byte, as long as each has as many threads.

What is sent lies in main memory on both ends, so the processes talk through gloo, also where they compute on GPUs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evals.predict.rendezvous import device_here, meet, met, said, world
from merge.errors import TaskError

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

    from merge.checkpoints.inputs import Batch, Encoded

TELLING_SECONDS = 5.0  # torchrun ends all processes when one fails: the first is given the time to say why


@dataclass(frozen=True)
class Job:
    """A model and the batches to predict; its weights follow, one message each.

    Attributes:
        tensors: name, dtype and shape of each weight.
        proof: the small batch on which the short cut is tried: every process must take it, or none.
    """

    config: Mapping[str, Any]
    dtype: torch.dtype
    device: str
    tensors: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
    batches: tuple[Batch, ...]
    proof: Batch


@dataclass(frozen=True)
class Answer:
    """The logits of the batches rank, rank + size, ...; or what went wrong."""

    rank: int
    logits: tuple[Any, ...] = ()
    fault: str = ""


@dataclass(frozen=True)
class Crew:
    """All processes of an evaluation, as the first one sees them.

    Attributes:
        size: how many they are.
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
        """Return what `predict` returns, each process having gone through its share of the batches.

        Args:
            config: of the model, which has its weights; `names` of them decide the rest.
        Raises:
            TaskError: another process failed, or is gone; says which, and what it said.
        """
        from evals.predict.logits import batch_logits, in_order, proof_of

        state = model.state_dict()
        tensors = {name: state[name] for name in names}
        facts = tuple((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items())
        proof = proof_of(encoded)
        _send(Job(dict(config), model.dtype, model.device.type, facts, encoded.batches, proof))
        for tensor in tensors.values():
            _broadcast(tensor.detach().cpu())
        own: Exception | None = None
        answer = Answer(0, fault="failed")
        try:
            answer = _answer(0, batch_logits(model, encoded.batches[:: self.size], proof, label))
        except Exception as error:  # noqa: BLE001 (raised below, once the others have been heard: they wait for us)
            own = error
        answers = _gather(answer)
        if own is not None:
            raise own
        if faults := [f"process {one.rank}: {one.fault}" for one in answers if one.fault]:
            raise TaskError(f"{label} failed on {len(faults)} of {self.size} processes: {'; '.join(faults)}")
        return in_order(_interleaved(answers, len(encoded.batches)), encoded)


def crew() -> Crew | None:
    """Return all processes of this evaluation, None where there is one only."""
    size = world()[1]
    if size == 1:
        return None
    meet()
    return Crew(size)


def dismiss() -> None:
    """Let the other processes end; what they wait for does not come any more."""
    with suppress(TaskError):  # one that is gone needs no leave
        meet()
        _send(None)
    if met():
        from accelerate import PartialState

        PartialState().destroy_process_group()


def serve() -> int:
    """Predict what the first process sends until it says that no more comes; return the exit code. Prints nothing."""
    import logging
    import signal
    import warnings

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the first process tells of it
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    rank, size = world()
    worker = _Worker(rank, size)
    try:
        meet()
        while (job := _receive()) is not None:
            tensors = {name: _broadcast(_empty(dtype, shape)) for name, dtype, shape in job.tensors}
            answer, worker = worker.do(job, tensors)
            _gather(answer)
    except TaskError:
        time.sleep(TELLING_SECONDS)
        return 1
    return 0


@dataclass(frozen=True)
class _Worker:
    """One of the other processes, with the model that it built last and what it was built for."""

    rank: int
    size: int
    model: Any = None
    made_for: tuple[Any, ...] = ()

    def do(self, job: Job, tensors: Mapping[str, Tensor]) -> tuple[Answer, _Worker]:
        """Return the answer to a job, and the worker that keeps its model for the next one."""
        from evals.predict.logits import batch_logits
        from merge.checkpoints.transformers_model import build, set_weights

        due = (job.config, job.dtype, job.device)
        try:
            model = self.model
            if self.made_for == due:
                set_weights(model, tensors)
            else:
                model = build(job.config, tensors, job.dtype).to(device_here(job.device))
            answer = _answer(self.rank, batch_logits(model, job.batches[self.rank :: self.size], job.proof))
        except Exception as error:  # noqa: BLE001 (the first process raises it)
            fault = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return Answer(self.rank, fault=fault), _Worker(self.rank, self.size)
        return answer, _Worker(self.rank, self.size, model, due)


def _answer(rank: int, logits: list[Tensor]) -> Answer:
    return Answer(rank, tuple(part.numpy() for part in logits))


def _interleaved(answers: list[Answer], count: int) -> list[Tensor]:
    """Return the logits of every batch in the order of the plan."""
    import torch

    parts = [iter(one.logits) for one in sorted(answers, key=lambda one: one.rank)]
    return [torch.from_numpy(next(parts[k % len(parts)])) for k in range(count)]


def _send(job: Job | None) -> None:
    from accelerate.utils import broadcast_object_list

    try:
        broadcast_object_list([job])
    except RuntimeError as error:
        raise _gone(error) from None


def _receive() -> Job | None:
    from accelerate.utils import broadcast_object_list

    holder: list[Job | None] = [None]
    try:
        broadcast_object_list(holder)
    except RuntimeError as error:
        raise _gone(error) from None
    return holder[0]


def _broadcast(tensor: Tensor) -> Tensor:
    """Send a tensor from the first process, or fill it with what that sent; as bytes, which gloo knows of every dtype."""
    import torch
    from accelerate.utils import broadcast

    data = tensor.contiguous()
    try:
        broadcast(data.reshape(-1).view(torch.uint8))
    except RuntimeError as error:
        raise _gone(error) from None
    return data


def _empty(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    import torch

    return torch.empty(shape, dtype=dtype)


def _gather(answer: Answer) -> list[Answer]:
    from accelerate.utils import gather_object

    try:
        found: list[Answer] = gather_object([answer])
    except RuntimeError as error:
        raise _gone(error) from None
    return found


def _gone(error: RuntimeError) -> TaskError:
    return TaskError(f"another process of this evaluation has ended: {said(error)}")
