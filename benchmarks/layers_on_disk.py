"""Drop four of BERT-base's twelve layers on the disk, beside the time it takes to copy the bytes that are written.

    python benchmarks/layers_on_disk.py [--place FOLDER]

The model has random weights (438 MB). Both are timed five times, the best counts; both flush to the disk. `edit-layers` also
hashes what it reads and writes, reloads the result and runs it, which is stated apart.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import torch
from command_line import make_parser, parse, run_main

from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.structure import structure_of
from merge.layers import edit
from merge.layers.plans.plan import LayerPlan

REPEATS = 5
CONFIG = {"model_type": "bert", "architectures": ["BertModel"]}


def written_model(folder: Path) -> None:
    """Write a BERT-base with random weights."""
    from safetensors.torch import save_file

    from merge.disk.staging import write_json

    structure, generator = structure_of(CONFIG), torch.Generator().manual_seed(0)
    folder.mkdir()
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in structure.shapes.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "config.json", structure.config)


def copied(source: Path, target: Path) -> float:
    """Return the seconds of copying a file and flushing it."""
    begun = time.perf_counter()
    shutil.copyfile(source, target)
    with target.open("r+b") as file:
        os.fsync(file.fileno())
    return time.perf_counter() - begun


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--place", type=Path, help="where to write; a temporary folder by default")
    arguments = parse(parser)
    with tempfile.TemporaryDirectory(dir=arguments.place) as name:
        place = Path(name)
        written_model(place / "m")
        checkpoint, plan = open_checkpoint(str(place / "m")), LayerPlan.without(range(4, 8), 12)
        layers, tensors, copies = [], [], []
        write = edit._write_tensors

        def timed(*passed: object) -> int:
            begun = time.perf_counter()
            size = write(*passed)  # type: ignore[arg-type]
            tensors.append(time.perf_counter() - begun)
            return size

        with patch.object(edit, "_write_tensors", timed):
            for _ in range(REPEATS):
                shutil.rmtree(place / "out", ignore_errors=True)
                begun = time.perf_counter()
                size = edit.edit_layers(checkpoint, plan, place / "out").bytes
                layers.append(time.perf_counter() - begun)
                copies.append(copied(place / "out/model.safetensors", place / "copy"))
        copy = min(copies)
        print(f"{size / 1e6:.0f} MB written; copying them takes {copy:.2f} s")
        print(f"layers onto the disk, hashed: {min(tensors):.2f} s, {min(tensors) / copy:.2f} times the copy")
        print(f"the whole edit, reloaded and run: {min(layers):.2f} s, {min(layers) / copy:.2f} times the copy")


if __name__ == "__main__":
    run_main(main)
