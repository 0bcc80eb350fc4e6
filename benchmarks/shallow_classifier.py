"""A fine-tuned classifier loses layers: what is left of its task, and of the heuristics that HANS looks for.

    python recipes/finetune_minilm.py --data snli/train.subset.jsonl.gz --rows 10000 --seed 0 --out nli
    python benchmarks/shallow_classifier.py nli --data ../shared/data/snli [--quick] [--plot shallow.png]

Six layers become 5, 4, 3 and 2: the top ones dropped, or those that a greedy search drops by KL to the full model on unlabelled
text; then the seam refit, the same with its held-out check (auto), and auto with 40 healing steps. Scored on SNLI's validation
rows and on generated HANS pairs. For each heuristic two shares are printed: how often the model says entailment where it holds
(right), and where it does not (the heuristic's mistake). Their difference is what the model knows beyond the heuristic.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from command_line import add_data, make_parser, parse, run_main

from evals.heuristics.grammar import generate
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.inputs import encode, load_tokenizer
from merge.checkpoints.open import open_checkpoint
from merge.layers.edit import opened_whole
from merge.layers.plans.plan import LayerPlan
from merge.layers.repair.repair import RepairSettings, repaired
from merge.layers.strategies.agreement import outputs_of
from merge.layers.strategies.choose import label_free_score
from merge.layers.strategies.search import search_layers
from merge.text.source import TextSource

LAYERS = 6
HEURISTICS = ("lexical_overlap", "subsequence", "constituent")
SHORT = {"lexical_overlap": "lexical", "subsequence": "subseq.", "constituent": "constit."}


@dataclass(frozen=True)
class Scores:
    """Accuracy on the task; for each heuristic the share of entailment where it holds and where it does not."""

    task: float
    right: Mapping[str, float]
    mistaken: Mapping[str, float]

    def __str__(self) -> str:
        cells = [f"{self.right[name]:5.2f} {self.mistaken[name]:5.2f}" for name in HEURISTICS]
        return f"{self.task:6.3f}   " + "   ".join(cells)


class Exam:
    """Rows of the task and of HANS, tokenised once."""

    def __init__(self, folder: Path, data: Path, rows: int, per_subcase: int) -> None:
        tokenizer = load_tokenizer(folder)
        with gzip.open(data / "validation.1k.jsonl.gz", "rt", encoding="utf-8") as file:
            task = [json.loads(line) for line in file][:rows]
        self.names = ("entailment", "neutral", "contradiction")
        self.gold = torch.tensor([self.names.index(row["label"]) for row in task])
        self.pairs = generate(per_subcase, seed=0)
        self.task = encode(tokenizer, [(row["premise"], row["hypothesis"]) for row in task], 128)
        self.hans = encode(tokenizer, [(pair.premise, pair.hypothesis) for pair in self.pairs], 128)

    def scores(self, model: Any) -> Scores:
        entailment = {label: index for index, label in model.config.id2label.items()}
        columns = torch.tensor([entailment[name] for name in self.names])
        task, hans = (
            outputs_of(model, each.batches).logits[torch.tensor([r for b in each.rows for r in b]).argsort()][:, columns]
            for each in (self.task, self.hans)
        )  # fmt: skip
        entailed = (hans.argmax(1) == 0).tolist()
        shares: dict[tuple[str, str], list[bool]] = {}
        for pair, entails in zip(self.pairs, entailed, strict=True):
            shares.setdefault((pair.heuristic, pair.label), []).append(entails)
        mean = {key: sum(values) / len(values) for key, values in shares.items()}
        accuracy = float((task.argmax(1) == self.gold).float().mean())
        right, mistaken = (
            {name: mean[name, label] for name in HEURISTICS} for label in ("entailment", "non-entailment")
        )
        return Scores(accuracy, right, mistaken)


def chosen_layers(checkpoint: Checkpoint, text: TextSource, fewest: int) -> dict[int, tuple[int, ...]]:
    """Return for each number of layers those that a greedy search keeps, by KL to the full model."""
    score = label_free_score(checkpoint, text, "kl")[0]
    search = search_layers("greedy", lambda kept: score(LayerPlan.keep(kept)), LAYERS, LAYERS - fewest)
    best: dict[int, tuple[float, tuple[int, ...]]] = {}
    for kept, value in search.scores:
        best[len(kept)] = max(best.get(len(kept), (float("-inf"), ())), (value, tuple(kept)))
    return {size: kept for size, (_, kept) in best.items()}


def table(
    models: Sequence[Checkpoint], exam: Exam, text: TextSource, few: TextSource, quick: bool
) -> dict[Any, Scores]:
    """Print and return the scores of every way to every number of layers."""
    steps = 2 if quick else 40
    sizes = (3,) if quick else (5, 4, 3, 2)
    kept = chosen_layers(models[0], few, min(sizes))
    ways = {
        "seam": RepairSettings("seam", text),
        "auto": RepairSettings("auto", text),
        f"auto + {steps} steps": RepairSettings("auto", text, heal_steps=steps),
    }
    head = "   ".join(f"{SHORT[name]:>11}" for name in HEURISTICS)
    print(f"{'':34} task    says entailment where it holds, and where not:\n{'':41}{head}")
    scores: dict[Any, Scores] = {}

    def show(way: str, size: int, plan: LayerPlan, settings: RepairSettings | None = None) -> None:
        begun = time.process_time()
        scores[way, size] = exam.scores(repaired(models, plan, settings).assembly.build())
        layers = ",".join(str(layer) for ((_, layer),) in plan.layers)
        name = f"{size} layers ({layers}) {way}"
        print(f"{name:34}{scores[way, size]}   {time.process_time() - begun:.0f} CPU s", flush=True)

    show("full", LAYERS, LayerPlan.keep(range(LAYERS)))
    for size in sizes:
        show("top dropped", size, LayerPlan.keep(range(size)))
        plan = LayerPlan.keep(kept[size])
        show("greedy", size, plan)
        for way, settings in ways.items():
            show(way, size, plan, settings)
    return scores


def plot(scores: Mapping[Any, Scores], majority: float, path: Path) -> None:
    """Draw the task's accuracy, and for each heuristic the two shares, against the number of layers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1)
    axes = top.subplots()
    ways = list(dict.fromkeys(way for way, _ in scores if way != "full"))
    full = scores["full", LAYERS]
    for way in ways:
        points = [(size, scores[w, size]) for w, size in scores if w == way]
        axes.plot([LAYERS, *(s for s, _ in points)], [full.task, *(x.task for _, x in points)], "o-", label=way)
    axes.axhline(majority, color="gray", linestyle=":", label="largest class")
    axes.set(ylabel="accuracy, SNLI", xlabel="layers", xticks=range(2, LAYERS + 1))
    axes.invert_xaxis()
    axes.legend(fontsize=8)
    panels = bottom.subplots(1, 3, sharey=True)
    for panel, name in zip(panels, HEURISTICS, strict=True):
        for way, style in (("greedy", "--"), (ways[-1], "-")):
            points = [(size, scores[w, size]) for w, size in scores if w == way]
            for share, color in (("right", "tab:blue"), ("mistaken", "tab:red")):
                values = [getattr(full, share)[name], *(getattr(x, share)[name] for _, x in points)]
                words = "entailed" if share == "right" else "not entailed"
                panel.plot([LAYERS, *(s for s, _ in points)], values, style, color=color, label=f"{words}, {way}")
        panel.set(
            title=f"HANS, {name.replace('_', ' ')}", xlabel="layers", xticks=range(2, LAYERS + 1), ylim=(-0.03, 1.03)
        )
        panel.invert_xaxis()
    panels[0].set_ylabel("says entailment")
    bottom.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("model", help="of six layers, with the classes of NLI")
    add_data(parser, "snli")
    parser.add_argument(
        "--quick", action="store_true", help="three layers alone, few rows and steps: to try the script"
    )
    parser.add_argument("--plot", type=Path, default=Path("shallow.png"))
    arguments = parse(parser)
    torch.set_num_threads(1)
    models = opened_whole([open_checkpoint(arguments.model)])
    exam = Exam(Path(arguments.model), arguments.data, *((60, 3) if arguments.quick else (996, 20)))
    source, columns = str(arguments.data / "train.subset.jsonl.gz"), ("premise", "hypothesis")
    text = TextSource(source, columns, 64 if arguments.quick else 400, 1)
    few = TextSource(source, columns, 16 if arguments.quick else 128, 2)
    scores = table(models, exam, text, few, arguments.quick)
    plot(scores, float(exam.gold.bincount().max() / len(exam.gold)), arguments.plot)
    print(f"wrote {arguments.plot}")


if __name__ == "__main__":
    run_main(main)
