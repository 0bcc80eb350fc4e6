"""Many descents of one rotation: do the weights or the text tell which ones are better?

    python benchmarks/restarts.py --folder zoo

The GPT-2 of `toy_bench.py`, their norms folded, the stream rotated by weights. The first descent begins with a first
pass; each further one begins where a descent ends in which every tensor had another, random scale. Printed for each:
the objective J that all of them increase, the label-free score (KL divergence from the endpoints' ensemble to the
midpoint, on training text) and the loss barrier on held-out text. Then the rank correlations of J and of the score with
the barrier, and the barrier of the descent that each would keep.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from command_line import make_parser, parse, run_main
from scipy.stats import spearmanr
from toy_bench import PAIRS, calibration_rows, evaluation_rows, seeds_of, train_toy
from zoo.board import header
from zoo.characters import hans_characters
from zoo.line import Contest, measure
from zoo.methods import exact, moved
from zoo.pairs import open_pair

from merge.alignment.choice.auto import folded_pair
from merge.alignment.matchers.rotations import match_by_sweeps, with_random_scales
from merge.alignment.midpoint import EndpointOutputs, score
from merge.alignment.pair import in_canonical_form


def descents(contest: Contest, count: int, points: int, title: str) -> list[tuple[float, float, float]]:
    """Return (J, score, barrier) of each descent, printed as they come."""
    folded = folded_pair(exact(contest.pair))
    compared = in_canonical_form(replace(folded, settings=replace(folded.settings, basis="orthogonal")))
    kinds, ends, generator = frozenset(compared.kinds()), EndpointOutputs(folded), torch.Generator().manual_seed(0)
    results = []
    for k in range(count):
        start = match_by_sweeps(with_random_scales(compared, generator), kinds, None).transform if k else None
        alignment = match_by_sweeps(compared, kinds, start)
        aligned = moved(folded, alignment.transform)
        barrier = measure("descent", lambda _, aligned=aligned: aligned, contest, points).raw.barrier
        results.append((alignment.objective[-1], score([alignment.transform], folded, ends)[0][0], barrier))
        print(f"{title}  {k:>2}  " + "  ".join(f"{value:.4f}" for value in results[-1]), flush=True)
    return results


def main() -> None:
    """Train or read the models, and print the descents."""
    parser = make_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("zoo"), help="where the models are kept (default: zoo)")
    parser.add_argument("--pairs", nargs="+", type=seeds_of, default=PAIRS, help="of seeds (default: 0-1 0-2 1-2 2-3)")
    parser.add_argument("--count", type=int, default=14, help="descents of each pair (default: 14)")
    parser.add_argument("--points", type=int, default=5, help="models on the line, endpoints included (default: 5)")
    parser.add_argument("--steps", type=int, help="of training (default: that of toy_bench.py)")
    args = parse(parser)

    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    characters = hans_characters(32)
    seeds = sorted({seed for pair in args.pairs for seed in pair})
    toys = {seed: train_toy("gpt2", seed, args.folder, characters, args.steps) for seed in seeds}
    rows, text, lines = evaluation_rows(characters, "gpt2"), calibration_rows(characters), []
    print(header())
    print("pair   #       J   score  barrier")
    for a, b in args.pairs:
        contest = Contest(open_pair(toys[a].folder, toys[b].folder, text, characters.mask), rows)
        heights, scores, barriers = zip(*descents(contest, args.count, args.points, f"{a}-{b}"), strict=True)
        by_height = max(zip(heights, barriers, strict=True))[1]
        by_score = min(zip(scores, barriers, strict=True))[1]
        with_height, with_score = (float(spearmanr(values, barriers).statistic) for values in (heights, scores))
        lines.append(
            f"{a}-{b}   {min(barriers):.3f} {median(barriers):.3f} {max(barriers):.3f}   {with_height:5.2f} {with_score:6.2f}"
            f"    {by_height:.3f}    {by_score:.3f}"
        )
    print("\nbarriers: least, median, most; rank correlation with J, with the score; kept by J, by the score")
    print("\n".join(lines))


if __name__ == "__main__":
    run_main(main)
