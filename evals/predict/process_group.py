"""The process group of one evaluation: how its processes join, and how each of them ends.

They join within JOIN_TIMEOUT or not at all, and all of them end when torchrun does, however it ended.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import timedelta
from typing import NoReturn

from merge.errors import TaskError, first_line

# Every process joins as soon as it has started.
JOIN_TIMEOUT = timedelta(minutes=5)
# Workers wait while rank 0 reads and aligns. A process that ends is noticed at once, because its connection closes.
IDLE_TIMEOUT = timedelta(days=30)
LAUNCHER_CHECK_SECONDS = 1.0


def rank_and_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes, as torchrun sets them; (0, 1) without torchrun."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def local_device(kind: str) -> str:
    """Return the device of a kind that this process computes on: with cuda, its local rank is the GPU's number."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if kind == "cuda" else kind


def has_joined() -> bool:
    """Return whether this process has joined the process group."""
    import torch

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def join_group() -> None:
    """Join the process group, once; does nothing where there is one process only.

    Raises:
        TaskError: the other processes cannot be reached, or did not join in time.
    """
    rank, size = rank_and_size()
    if size == 1 or has_joined():
        return
    import torch
    from accelerate import PartialState

    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not host or port in ("", "0"):
        raise TaskError(
            f"{size} processes cannot join a group at address {host or 'none'}, port {port or 'none'}. Start them by "
            "torchrun, with --standalone on one machine, or with a --master-port that is free."
        )
    # Either torchrun hosts the rendezvous store, or rank 0 does.
    hosts_store = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = torch.distributed.TCPStore(  # type: ignore[attr-defined]  # public, but torch does not export it to mypy
            host, int(port), size, hosts_store, JOIN_TIMEOUT, multi_tenant=True
        )
    except (RuntimeError, ValueError) as error:
        raise TaskError(
            f"process {rank} of {size} reached no other process at {host}, port {port}: {first_line(error).rstrip('.')}. "
            "Are all of them running?"
        ) from None
    shared = torch.distributed.PrefixStore("evaluate-models", store)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=shared, rank=rank, world_size=size, timeout=IDLE_TIMEOUT)
    PartialState(cpu=True)


def end_with_launcher() -> None:
    """End this process as soon as the torchrun that started it is gone; a torchrun that was killed ends no process itself.

    The process ends as if it had been killed too: files are written whole or not at all.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # another launcher may rightly end before the processes it started
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(LAUNCHER_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def exit_process(code: int) -> NoReturn:
    """End this process at once: threads of a connection may outlive the interpreter, and abort it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
