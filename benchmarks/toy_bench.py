"""The alignment leaderboard on small language models: every method on eight pairs of seeds, a table for each kind.

    make bench
    python benchmarks/toy_bench.py --folder zoo

Two kinds of transformer are trained from four seeds each on characters of generated sentences (under a CPU minute a
model, once; what --folder holds is not trained again): BERT (post-LN, masked language model) and GPT-2 (pre-LN,
causal), both 64 wide, 3 layers, 4 heads, 256 feed-forward units, 32 characters at once. A model that learned no more
than the frequencies of the characters is marked !: a barrier between two such models means nothing.

Printed for every method and pair: the barrier, the largest height of the loss on the line above the straight line
between the losses of the endpoints; the same with each model at its best temperature; and the loss at the midpoint.
`changed` is the largest change of any character's loss, in float64, that the method makes at an endpoint: rounding, if
it keeps the function. CPU seconds are those of the method.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from command_line import make_parser, parse, run_main
from torch import Tensor
from zoo.board import header, measure_all, print_leaderboard, select
from zoo.characters import Characters, hans_characters, with_mask
from zoo.line import Contest
from zoo.methods import METHODS
from zoo.pairs import open_pair
from zoo.training import Batches, Trained, Training, trained

from merge.checkpoints.inputs import Batch

LENGTH, BATCH = 32, 32
PAIRS = ((0, 1), (0, 2), (1, 2), (2, 3))
TRAINING = {"bert": Training(steps=1500), "gpt2": Training(steps=1200, rate=3e-3)}
# A model within this distance of the loss of the characters' frequencies has not learned to use the context.
PLATEAU = 0.15
EVALUATED_ROWS, CALIBRATION_ROWS, ROWS_AT_ONCE = 512, 256, 64


def toy_config(kind: str, vocabulary: int) -> dict[str, Any]:
    """Return the config of a toy of this kind.

    BERT starts from weights five times as large as usual: 64 units wide, the usual ones leave attention so flat that
    most seeds stay on the plateau of the characters' frequencies.
    """
    if kind == "gpt2":
        sizes = {
            "n_embd": 64,
            "n_layer": 3,
            "n_head": 4,
            "n_inner": 256,
            "n_positions": LENGTH,
            "vocab_size": vocabulary,
        }
        no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        # GPT-2's default id of the begin and end tokens is outside so small a vocabulary.
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        return {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **sizes, **no_dropout, **ends}
    return {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "max_position_embeddings": LENGTH,
        "type_vocab_size": 1,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.1,
    }


def batches_of(characters: Characters, kind: str) -> Batches:
    """Return a function that draws training batches of this kind."""

    def draw(generator: torch.Generator) -> Iterator[Mapping[str, Tensor]]:
        while True:
            yield characters.rows(kind, BATCH, generator)

    return draw


def train_toy(kind: str, seed: int, folder: Path, characters: Characters, steps: int | None = None) -> Trained:
    """Return the toy of this kind and seed, trained or read from its folder."""
    training = TRAINING[kind] if steps is None else Training(steps, TRAINING[kind].rate)
    config = toy_config(kind, len(characters.alphabet) + 1)
    return trained(folder / f"toy-{kind}-{seed}", config, training, seed, batches_of(characters, kind))


def evaluation_rows(characters: Characters, kind: str) -> tuple[Batch, ...]:
    """Return held-out rows with labels, the same for every model."""
    generator = torch.Generator().manual_seed(5)
    count = EVALUATED_ROWS // ROWS_AT_ONCE
    return tuple(characters.rows(kind, ROWS_AT_ONCE, generator, held_out=True) for _ in range(count))


def calibration_rows(characters: Characters) -> tuple[Batch, ...]:
    """Return rows of the training text without labels; for a BERT some of their characters are masked later."""
    generator = torch.Generator().manual_seed(6)
    count = CALIBRATION_ROWS // ROWS_AT_ONCE
    return tuple(with_mask(characters.plain(ROWS_AT_ONCE, generator)) for _ in range(count))


def run_kind(kind: str, args: argparse.Namespace, characters: Characters) -> None:
    """Train the toys of one kind and print their leaderboard."""
    seeds = sorted({seed for pair in args.pairs for seed in pair})
    toys = {seed: train_toy(kind, seed, args.folder, characters, args.steps) for seed in seeds}
    rows, calibration = evaluation_rows(characters, kind), calibration_rows(characters)
    contests = {}
    for a, b in args.pairs:
        pair = open_pair(toys[a].folder, toys[b].folder, calibration, characters.mask)
        contests[f"{a}-{b}"] = Contest(pair, rows)
    losses = {}
    for (a, b), contest in zip(args.pairs, contests.values(), strict=True):
        for seed, (logits, labels) in zip((a, b), contest.ends, strict=True):
            losses[seed] = float(torch.nn.functional.cross_entropy(logits, labels))
    unigram = characters.unigram_loss()
    stuck = {seed for seed, loss in losses.items() if loss > unigram - PLATEAU}
    print(f"\n{kind}: held-out loss of the models, by seed; ! never left the plateau")
    print(f"  (frequencies of the characters alone {unigram:.3f}, of pairs of them {characters.bigram_loss():.3f})")
    for seed, loss in losses.items():
        print(f"  {seed}{'!' if seed in stuck else ' '} {loss:.3f}   {toys[seed].seconds:.0f} CPU s of training")
    results = measure_all(select(METHODS, args.methods), contests, args.points)
    marks = {f"{a}-{b}": f"{a}{'!' * (a in stuck)}-{b}{'!' * (b in stuck)}" for a, b in args.pairs}
    print_leaderboard(results, marks)


def seeds_of(pair: str) -> tuple[int, int]:
    """Return the two seeds of "0-1"."""
    a, b = pair.split("-")
    return int(a), int(b)


def main() -> None:
    """Train or read the toys, and print the leaderboards."""
    parser = make_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("zoo"), help="where the models are kept (default: zoo)")
    parser.add_argument("--kinds", nargs="+", choices=tuple(TRAINING), default=list(TRAINING), help="default: both")
    parser.add_argument("--pairs", nargs="+", type=seeds_of, default=PAIRS, help="of seeds (default: 0-1 0-2 1-2 2-3)")
    parser.add_argument("--methods", nargs="+", help="only methods whose name holds one of these words, and naive")
    parser.add_argument("--points", type=int, default=11, help="models on the line, endpoints included (default: 11)")
    parser.add_argument("--steps", type=int, help="of training (default: what takes a toy beyond the plateau)")
    args = parse(parser)

    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    characters = hans_characters(LENGTH)
    print(header())
    for kind in args.kinds:
        run_kind(kind, args, characters)


if __name__ == "__main__":
    run_main(main)
