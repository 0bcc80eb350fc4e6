"""The fits of `layers_minilm.py`: seam refits, fitted layers, maps on few tokens, healing; beside the figures by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from minilm_layers import LAYERS, Bench
from torch import Tensor

from merge.checkpoints.inputs import encode, load_tokenizer
from merge.layers.activations import live_layers, states_of
from merge.layers.edit import edit_layers
from merge.layers.plans.plan import LayerPlan
from merge.layers.plans.text import parse_plan
from merge.layers.repair.repair import RepairSettings
from merge.layers.repair.ridge import NormalEquations
from merge.text.source import TextSource

# layers dropped -> for each ridge (None: as they are) percent of the full score, cosine, RSA
SEAMS: dict[tuple[int, ...], dict[float | None, tuple[float, float | None, float | None]]] = {
    (2, 3, 4): {
        None: (89.8, 0.589, 0.471), 0.1: (97.6, 0.855, 0.783), 1.0: (97.3, None, None), 10.0: (96.0, None, None),
    },
    (1, 2, 3): {None: (94.5, 0.744, 0.602)},
    (2, 3): {None: (96.0, 0.830, 0.651), 0.1: (99.0, 0.917, 0.855), 1.0: (98.8, None, None), 10.0: (98.3, None, None)},
    (1, 2): {None: (95.6, 0.835, 0.694)},
    (3,): {None: (98.2, 0.915, 0.794)},
    (1, 2, 3, 4): {
        None: (88.9, 0.472, 0.412), 0.1: (95.9, 0.824, 0.730), 1.0: (94.9, None, None), 10.0: (92.8, None, None),
    },
    (4, 5): {None: (73.3, 0.314, 0.356)},
}  # fmt: skip


def repairs(bench: Bench) -> None:
    """Seam refit at fixed ridges and with the ridge chosen on held-out text, and its cost beyond forward passes."""
    for dropped, figures in SEAMS.items():
        plan = LayerPlan.without(dropped, LAYERS)
        for ridge, due in figures.items():
            settings = None if ridge is None else RepairSettings("seam", bench.text, ridge)
            _repaired(
                bench, f"without {dropped}, {'plain' if ridge is None else f'ridge {ridge:g}'}", plan, settings, due
            )
        _repaired(bench, f"without {dropped}, auto", plan, RepairSettings("auto", bench.text))


# Number of tokens -> score of the map from state 2 to state 5 with a ridge of 1e-6, 1e-2 and 1e-1, pulled to zero.
MAPPED = {
    200: (0.553, 0.744, 0.755), 800: (0.688, 0.777, 0.805), 2000: (0.803, 0.824, 0.832), 5000: (0.811, 0.824, 0.833),
    11720: (0.841, 0.841, 0.839),
}  # fmt: skip


def tokens(bench: Bench) -> None:
    """Few tokens, those of the texts with the fewest characters: maps from state 2 to 5; layers 2 to 4 dropped and refitted."""
    listed = Path(str(bench.text.source)).read_text(encoding="utf-8").splitlines()
    texts = sorted(listed[::2] + listed[1::2], key=len)
    encoded = encode(load_tokenizer(bench.folder), [(text,) for text in texts], 128)
    live, states = live_layers(bench.live), dict[int, tuple[Tensor, Tensor]]()
    for batch, numbers in zip(encoded.batches, encoded.rows, strict=True):
        lengths = batch["attention_mask"].sum(1).tolist()
        x, y = (rows.double().split(lengths) for rows in states_of(live, batch, (2, 5)).values())
        states |= dict(zip(numbers, zip(x, y, strict=True), strict=True))
    lengths = [len(states[k][0]) for k in range(len(texts))]
    x, y = (torch.cat([states[k][side] for k in range(len(texts))]) for side in (0, 1))
    for count, figures in MAPPED.items():
        sums = NormalEquations(x.shape[1], y.shape[1])
        sums.add(x[:count], y[:count])
        for ridge, due in zip((1e-6, 1e-2, 1e-1), figures, strict=True):
            solved = sums.solve(torch.zeros_like(sums.xy), ridge).float()
            mapped = (f"{count} {ridge}", lambda state, *_, w=solved, **__: state @ w[:-1] + w[-1])
            kept = [*bench.layers((0, 1)), mapped, *bench.layers((5,))]
            bench.line(f"a map of {count:,} tokens, ridge {ridge:g}", bench.some.score(bench.some.run(kept)), due)
    plan = LayerPlan.without((2, 3, 4), LAYERS)
    for count, figures in ((500, (93.0, 94.2, 95.6)), (2000, (96.5, 96.6, 96.4))):
        number = int(np.abs(np.cumsum(lengths) - count).argmin()) + 1
        source = Path(bench.place.name) / f"{count}.txt"
        source.write_text("\n".join(texts[:number]), encoding="utf-8")
        for ridge, percent in zip((0.1, 1.0, 10.0), figures, strict=True):
            settings = RepairSettings("seam", TextSource(str(source), None, number, 0), ridge)
            _repaired(
                bench, f"a refit of about {count:,} tokens, ridge {ridge:g}", plan, settings, (percent, None, None)
            )


def headline(bench: Bench) -> None:
    """Half the layers, and one fitted layer for three: written by the command's code, loaded by AutoModel; 40 steps more."""
    plan = LayerPlan.without((2, 3, 4), LAYERS)
    _repaired(bench, "without (2, 3, 4), plain", plan, None, SEAMS[2, 3, 4][None])
    _repaired(bench, "without (2, 3, 4), ridge 0.1", plan, RepairSettings("seam", bench.text, 0.1), SEAMS[2, 3, 4][0.1])
    _by_command(bench, "3 layers, refit, AutoModel", "A[0,1,5]", RepairSettings("auto", bench.text), 3)
    fitted = "A[0,1], affine(A2->A5), A[5]"
    _by_command(bench, "4 layers, one fitted, AutoModel", fitted, RepairSettings("none", bench.text), 4, 0.8431)
    _healed(bench, "auto", 40, None)


def _repaired(
    bench: Bench,
    name: str,
    plan: LayerPlan,
    settings: RepairSettings | None,
    due: tuple[float, float | None, float | None] | None = None,
) -> None:
    """Print the score of a plan after a repair, its agreement with the full model, and what the fit cost."""
    spent = 0.0

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal spent
            begun = time.thread_time()
            result = method(*arguments)
            spent += time.thread_time() - begun
            return result

        return run

    with (
        patch.object(NormalEquations, "add", timed(NormalEquations.add)),
        patch.object(NormalEquations, "solve", timed(NormalEquations.solve)),
    ):
        done = bench.done(plan, settings)
    embeddings = bench.some.embeddings(done.assembly.build())
    percent, *agreements = due or (None, None, None)
    figures = []
    for what, value, expected in zip(("cosine", "rsa"), bench.agreement(embeddings), agreements, strict=True):
        figures.append(f"{what} {value:.3f} {bench.verdict(value, expected)}".rstrip())
    seams = done.facts.get("repair", {}).get("seams", ())
    chosen = "".join(f" ridge {seam['ridge']:g}, {seam['tokens']} tokens" for seam in seams)
    more = f"{' '.join(figures)}{f' fit {spent:.1f} CPU s' if spent else ''}{chosen}"
    bench.line(name, bench.some.score(embeddings), None if percent is None else percent / 100 * bench.top, more)


def _by_command(
    bench: Bench, name: str, plan: str, settings: RepairSettings, layers: int, due: float | None = None
) -> None:
    """Write a model, load it by AutoModel, and score that."""
    from transformers import AutoModel

    output = Path(bench.place.name) / f"model{layers}"
    edit_layers(bench.models[0], parse_plan(plan, ["A"]), output, repair=settings)
    model = AutoModel.from_pretrained(output).eval()
    assert len(model.encoder.layer) == layers
    bench.line(name, bench.some.score(bench.some.embeddings(model)), due)


AFFINE = {
    (0, 1): (0.8284, 0.8612), (1, 2): (0.8461, 0.8590), (2, 3): (0.8614, 0.8631), (3, 4): (0.8485, 0.8604),
    (4, 5): (0.8539, 0.8655), (5, 6): (0.7287, 0.7783), (0, 2): (0.8159, 0.8468), (1, 3): (0.8260, 0.8467),
    (2, 4): (0.8295, 0.8531), (3, 5): (0.7454, 0.8485), (4, 6): (0.6334, 0.7472), (0, 3): (0.7896, 0.8303),
    (1, 4): (0.8161, 0.8399), (2, 5): (None, 0.8427), (3, 6): (None, 0.7239), (0, 4): (0.7696, 0.8277),
    (1, 5): (0.7681, 0.8361), (2, 6): (None, 0.7174), (0, 5): (0.7167, 0.8235), (1, 6): (None, 0.7308),
}  # fmt: skip


def affine(bench: Bench) -> None:
    """Every block replaced by one fitted layer: plain drop, and the map before the last norm's gain, with a ridge of 1e-6."""
    bench.check((0, 5))
    better = 0
    for (start, end), (plain, fitted) in AFFINE.items():
        identity = bench.kept([layer for layer in range(LAYERS) if not start <= layer < end])
        bench.line(f"{start}-{end} dropped", identity, plain)
        before, after = (f"A[{layers}]" for layers in (f"0-{start - 1}", f"{end}-5"))
        text = ", ".join(
            part for part, there in ((before, start), (f"affine(A{start}->A{end})", 1), (after, end < 6)) if there
        )
        done = bench.done(parse_plan(text, ["A"]), RepairSettings("none", bench.text, 1e-6))
        made = done.assembly.build().encoder.layer
        bare = max(start - 1, 0)  # the layer below loses the gain of its norm to the fitted one
        changed = [(f"{k} of {start}-{end}", made[k]) for k in range(bare, start + 1)]
        layers = [*bench.layers(range(bare)), *changed, *bench.layers(range(end, LAYERS))]
        value = bench.some.score(bench.some.run(layers))
        record = done.facts["repair"]["affine"][0]
        bench.line(f"{start}-{end} fitted", value, fitted, f"ridge {record['ridge']:g} R2 {record['explained']:.3f}")
        better += value > identity
    print(f"  fitted is better than dropped in {better} of {len(AFFINE)}")


def healing(bench: Bench) -> None:
    """Steps of distillation after a plain drop of layers 2 to 4, and after the seam refit."""
    for kind, steps, due in (("none", 20, 96.7), ("none", 40, 97.4), ("none", 80, 97.6), ("auto", 40, None)):
        _healed(bench, kind, steps, due)


def _healed(bench: Bench, kind: str, steps: int, due: float | None) -> None:
    settings = RepairSettings(kind, bench.text, heal_steps=steps)
    begun = time.thread_time()
    embeddings = bench.some.embeddings(bench.model(LayerPlan.without((2, 3, 4), LAYERS), settings))
    cosine, rsa = bench.agreement(embeddings)
    more = f"cosine {cosine:.3f} rsa {rsa:.3f}, {time.thread_time() - begun:.0f} CPU s"
    name = f"{'plain' if kind == 'none' else 'refit'}, then {steps} steps"
    bench.line(name, bench.some.score(embeddings), None if due is None else due / 100 * bench.top, more)
