"""Networks of a stack as checkpoints, which every command opens, and test rows as a task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from two_layer.connect import config_of
from two_layer.nets import Data, Nets, one


def two_outputs(net: Mapping[str, Tensor]) -> Nets:
    """Return a network of one output as a classifier of two classes: (0, z) has the softmax that z has as a sigmoid."""
    if len(net["classifier.bias"]) > 1:
        return dict(net)
    rows = {name: net[name] for name in ("classifier.weight", "classifier.bias")}
    return {**net, **{name: torch.cat([torch.zeros_like(row), row]) for name, row in rows.items()}}


def write_networks(nets: Mapping[str, Tensor], folder: Path) -> list[Path]:
    """Write every network of a stack as `folder/net-K`, as `save_pretrained` does; return the folders."""
    from merge.checkpoints.transformers_model import build, quiet

    folders = []
    for number in range(len(nets["classifier.bias"])):
        tensors = two_outputs(one(nets, number))
        labels = {str(k): str(k) for k in range(len(tensors["classifier.bias"]))}
        names = {"id2label": labels, "label2id": {name: int(k) for k, name in labels.items()}}
        config = config_of(tensors) | names
        config.pop("num_labels")
        folders.append(folder / f"net-{number}")
        with quiet():
            build(config, tensors).save_pretrained(folders[-1])
    return folders


def write_task(data: Data, folder: Path) -> Path:
    """Write the test rows, the numbers of each as text, and the task file that names them; return the task file."""
    folder.mkdir(parents=True, exist_ok=True)
    name = data.name.replace(" ", "-").removeprefix("10-")
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for row, gold in zip(data.test.tolist(), data.test_gold.tolist(), strict=True):
            file.write(json.dumps({"numbers": " ".join(map(str, row)), "label": str(gold)}) + "\n")
    labels = ", ".join(f'"{k}"' for k in range(data.classes))
    task = folder / f"{name}.yaml"
    task.write_text(
        f"name: {name}\ndata: {name}.jsonl\ncolumns: numbers\nlabel_column: label\nlabels: [{labels}]\n",
        encoding="utf-8",
    )
    return task
