"""How the processes of one evaluation meet, and that none is left behind.

They meet within minutes or not at all; all of them end when torchrun does, whatever ended it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import timedelta
from typing import NoReturn

from merge.errors import TaskError

# All meet as soon as they have started.
MEETING = timedelta(minutes=5)
# The others wait while the first one reads and aligns; one that ends is noticed at once, because its connection closes.
PATIENCE = timedelta(days=30)
WATCH_SECONDS = 1.0  # between two looks at whether torchrun is still there


def world() -> tuple[int, int]:
    """Return (this process's rank, how many there are), as torchrun says; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def device_here(kind: str) -> str:
    """Return this process's own device of a kind: GPUs go by the process's number on its machine."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if kind == "cuda" else kind


def met() -> bool:
    """Say whether this process has met the others."""
    import torch

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def meet() -> None:
    """Meet the other processes; a second call does nothing, nor does one where there are none.

    Raises:
        TaskError: they cannot be reached, or did not come in time.
    """
    rank, size = world()
    if size == 1 or met():
        return
    import torch
    from accelerate import PartialState

    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not host or port in ("", "0"):
        raise TaskError(
            f"{size} processes cannot meet at address {host or 'none'}, port {port or 'none'}. Start them by torchrun, "
            "with --standalone on one machine, or with a --master-port that is free."
        )
    # Torchrun may keep the store where they meet; else the first process does.
    keeper = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = torch.distributed.TCPStore(  # type: ignore[attr-defined]  # public, but torch does not say so to mypy
            host, int(port), size, keeper, MEETING, multi_tenant=True
        )
    except (RuntimeError, ValueError) as error:
        raise TaskError(
            f"process {rank} of {size} met no others at {host}, port {port}: {said(error)}. Are all of them running?"
        ) from None
    shared = torch.distributed.PrefixStore("evaluate-models", store)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=shared, rank=rank, world_size=size, timeout=PATIENCE)
    PartialState(cpu=True)


def end_with_launcher() -> None:
    """End this process as soon as the torchrun that started it is gone, even if that was killed; nobody else would.

    It ends as if it had been killed too: files are written whole or not at all.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # another launcher may rightly end before what it started
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def leave(code: int) -> NoReturn:
    """End this process now that its work is done: a connection's own threads may outlive the interpreter, and abort it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def said(error: Exception) -> str:
    """Return the first line of what an error of the connection says."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
