"""The benchmarks' own claims: methods leave functions alone, losses are transformers' own, models come from their seeds."""

from __future__ import annotations

import math
import runpy
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run_main
from tiny import bert_config, random_tensors
from torch import Tensor
from zoo.board import select
from zoo.characters import IGNORED, Characters, masked
from zoo.line import Contest, best_inverse_temperature, measure
from zoo.methods import METHODS, PRE_LAYER_NORM, SOFT, Aligned, moved, naive, straight
from zoo.training import Training, trained

from merge.alignment.matchers import rotations
from merge.alignment.pair import Pair, Settings, TextFacts
from merge.errors import UsageError
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import random

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
LIBRARIES = {"command_line", "git_re_basin", "minilm_fits", "minilm_layers"}  # what scripts import, which are not run
SCRIPTS = sorted({path.stem for path in BENCHMARKS.glob("*.py")} - LIBRARIES)
# What a script is run with so that only data or models are missing; without data where it takes nothing else.
NEEDED: dict[str, tuple[str, ...]] = {
    "basins_of_a_zoo": ("none", "-o", "out"), "real_runs": ("--out", "out"), "shallow_classifier": ("nli",),
    "same_start": ("--models", "none", "none", "--rows", "none", "--text", "none"), "stitch_minilm": ("--l3", "none"),
    "surface_minilm": ("none",), "layer_orders": (), "layers_minilm": (), "lesions_minilm": (), "merge_minilm": (),
    "predict_speed": (), "pretrained_pair": (), "pruning_minilm": (), "skewed_priors": (), "sweep_cost": (),
}  # fmt: skip
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 18,
    "n_embd": 24,
    "n_layer": 1,
    "n_head": 4,
    "n_inner": 40,
    "n_positions": 32,
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CONFIGS = {
    "bert": bert_config("BertForMaskedLM", num_hidden_layers=1),
    "gpt2": GPT2,
    "classifier": bert_config(num_hidden_layers=1),
}


def contest(kind: str, planted: bool = False) -> Contest:
    """Return two random models of a kind, or one and its re-based self, with a batch of random tokens and labels."""
    config = CONFIGS[kind]
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(5, 18, (12, 14), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) > 0.3, IGNORED) if kind == "bert" else ids
    if kind == "classifier":
        labels = torch.randint(3, (12,), generator=generator)
    a, b = (random_tensors(config, seed, torch.float32) for seed in (0, 1))
    spec = spec_for(config)
    pair = Pair(spec, a, b, config, str, (inputs,), settings=Settings(steps=2), text=TextFacts(mask_token=4))
    if planted:
        pair = replace(pair, b=moved(replace(pair, b=a), random(spec, pair.shapes, generator)).pair.b)
    return Contest(pair, ({**inputs, "labels": labels},))


def stopped(script: str, *arguments: str) -> SystemExit:
    """Return how a script ends that is run as a program."""
    path = BENCHMARKS / f"{script}.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *arguments])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(path), run_name="__main__")
    return stop.value


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_how_it_is_run(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run as a program with --help: nothing is trained, the command line is shown."""
    assert stopped(script, "--help").code == 0
    assert f"python benchmarks/{script}.py" in capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_missing_is_one_line(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No folder of data, no model, or a flag that does not exist: one line, nothing but it, and no traceback."""
    monkeypatch.setenv("MERGE_MODELS_DATA", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    stop = stopped(script, *NEEDED.get(script, ("--no-such-flag",)))
    captured = capsys.readouterr()
    says = captured.err if stop.code == 2 else f"{stop.code}\n"
    assert says.count("\n") == 1
    assert says.startswith(f"{script}.py: error: ")
    assert "none" in says if script in NEEDED else "--no-such-flag" in says
    assert not captured.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (UsageError("two\nlines"), "error: two lines"),
        (FileNotFoundError(2, "", "rows.jsonl"), "rows.jsonl does not exist"),
        (ModuleNotFoundError("", name="model"), "the package model is not installed"),
    ],
)
def test_wrong_input_is_one_line(error: Exception, says: str) -> None:
    def lacking() -> None:
        raise error

    with pytest.raises(SystemExit, match=says) as stop:
        run_main(lacking)
    assert "\n" not in str(stop.value)


def test_a_benchmark_that_fails_for_another_reason_keeps_its_traceback() -> None:
    """One line is for input; a fault of the program is not hidden."""

    def fault() -> None:
        raise KeyError("fault")

    with pytest.raises(KeyError):
        run_main(fault)


# What a method does to the units does not depend on the head and its labels, nor on whether a model reads both ways: every
# method is measured on a kind of model that takes it, and on the other kinds these, which differ in what is measured.
ON_EVERY_KIND = {"naive", "weights: all", "activations: chosen", "activations: all + repair"}
HELD = {
    "bert": METHODS.keys() - PRE_LAYER_NORM - SOFT,
    "gpt2": (PRE_LAYER_NORM | ON_EVERY_KIND) - SOFT,
    "classifier": ON_EVERY_KIND - SOFT,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HELD)
def test_every_method_leaves_the_function_of_b_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared along the line must be the same two models for every method, or the barriers are of other pairs."""
    monkeypatch.setattr(rotations, "MAX_SWEEPS", 1)  # wherever a descent ends
    between = contest(kind)
    scale = float(between.exact_ends[1].abs().max())
    assert set.union(*map(set, HELD.values())) == METHODS.keys() - SOFT
    assert len(HELD[kind]) >= 4
    for name in sorted(HELD[kind]):
        measured = measure(name, METHODS[name], between, points=3)
        assert measured.changed < 1e-6 * scale, name
        assert measured.raw.loss[0] == pytest.approx(float(between.exact_ends[0].mean()), rel=1e-4), name


@pytest.mark.slow
def test_a_method_that_breaks_b_is_seen() -> None:
    """Negative control: units of one tensor change place, those that read them do not."""
    between = contest("bert")

    def broken(pair: Pair) -> Aligned:
        name = next(n for n in pair.b if n.endswith("layer.0.intermediate.dense.weight"))
        return Aligned(replace(pair, b={**pair.b, name: pair.b[name].flip(0)}))

    assert measure("broken", broken, between, points=3).changed > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("by", ["weights", "activations"])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_planted_copy_has_no_barrier_once_aligned(by: str, kind: str) -> None:
    """The line from a model to itself is one point; to its re-based self, unaligned, it is not."""
    between = contest(kind, planted=True)
    strayed = measure("naive", naive, between, points=3).raw.loss
    assert max(strayed) - min(strayed) > 0.01
    aligned = measure(by, METHODS[f"{by}: all"], between, points=3)
    assert max(aligned.raw.loss) - min(aligned.raw.loss) < 1e-5
    assert aligned.calibrated.barrier == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "gpt2", "classifier"])
def test_the_loss_half_way_is_what_transformers_says(kind: str) -> None:
    """transformers computes the loss of a batch with labels itself, shift and masks included."""
    between = contest(kind)
    model = between.pair.model(straight(between.pair, 0.5))
    with torch.no_grad():
        expected = float(model(**between.batches[0]).loss)
    assert measure("naive", naive, between, points=3).midpoint == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_repair_replaces_the_straight_line() -> None:
    """`between` decides what lies between the ends: a method that puts a there has the loss of a there."""
    between = contest("gpt2")

    def constant(pair: Pair) -> Aligned:
        return replace(naive(pair), between=lambda lam: pair.a)

    losses = measure("constant", constant, between, points=3).raw.loss
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert measure("naive", naive, between, points=3).raw.loss[1] != pytest.approx(losses[0], rel=1e-3)


@pytest.mark.slow
def test_the_best_temperature_is_the_one_that_drew_the_labels() -> None:
    """Labels drawn from softmax(z): for logits 4 z the loss is least at a quarter, for z / 3 at three."""
    generator = torch.Generator().manual_seed(0)
    z = 1.5 * torch.randn(40_000, 7, generator=generator)
    labels = torch.multinomial(z.softmax(1), 1, generator=generator)[:, 0]
    assert best_inverse_temperature(4 * z, labels) == pytest.approx(0.25, rel=0.03)
    assert best_inverse_temperature(z / 3, labels) == pytest.approx(3, rel=0.03)


def test_calibration_raises_no_loss() -> None:
    """The temperature 1 is among those tried: no model on the line may come out worse, and an unsure one comes out better."""
    measured = measure("naive", naive, contest("bert"), points=3)
    pairs = list(zip(measured.calibrated.loss, measured.raw.loss, strict=True))
    assert all(low <= high + 1e-9 for low, high in pairs)
    assert any(low < high - 1e-3 for low, high in pairs)


def toy_batches(generator: torch.Generator) -> Iterator[Mapping[str, Tensor]]:
    while True:
        ids = torch.randint(5, 18, (4, 8), generator=generator)
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def test_a_seed_is_a_model_and_is_trained_once(tmp_path: Path) -> None:
    """Same seed, same bytes; another seed, others. A finished model is read, an unfinished one begun again."""
    training = Training(steps=4)

    def weights(name: str, seed: int) -> bytes:
        done = trained(tmp_path / name, GPT2, training, seed, toy_batches)
        assert math.isfinite(done.loss)
        return (done.folder / "model.safetensors").read_bytes()

    (tmp_path / "again.unfinished").mkdir()
    (tmp_path / "again.unfinished" / "model.safetensors").write_bytes(b"half")
    first = weights("first", 0)
    assert weights("again", 0) == first
    assert not (tmp_path / "again.unfinished").exists()
    assert weights("other", 1) != first
    written = (tmp_path / "first" / "model.safetensors").stat().st_mtime_ns
    assert weights("first", 0) == first
    assert (tmp_path / "first" / "model.safetensors").stat().st_mtime_ns == written


def test_a_model_that_was_trained_otherwise_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """A folder left by other settings would put another model into the table under this one's name."""
    trained(tmp_path / "m", GPT2, Training(steps=1), 0, toy_batches)
    with pytest.raises(SystemExit, match="trained with seed 0, where 1 is asked for"):
        trained(tmp_path / "m", GPT2, Training(steps=1), 1, toy_batches)
    with pytest.raises(SystemExit, match="trained with training"):
        trained(tmp_path / "m", GPT2, Training(steps=2), 0, toy_batches)


@pytest.mark.slow
def test_training_lowers_the_loss(tmp_path: Path) -> None:
    """A model that only sees one token after every other learns it."""

    def constant(_generator: torch.Generator) -> Iterator[Mapping[str, Any]]:
        ids = torch.full((4, 8), 7)
        while True:
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    before = trained(tmp_path / "before", GPT2, Training(steps=1), 0, constant).loss
    after = trained(tmp_path / "after", GPT2, Training(steps=60, rate=1e-2, warm_up=1), 0, constant).loss
    assert before > 1
    assert after < before  # the mean of its last fifty steps


def test_a_mask_hides_what_is_asked_and_nothing_else() -> None:
    """Labels stand where the mask is, hold what was there, and cover about 15 % of what may be masked."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 9, (200, 50), generator=generator)
    maskable = ids != 3
    inputs, labels = masked(ids, 9, generator, maskable)
    hidden = inputs == 9
    assert torch.equal(hidden, labels != IGNORED)
    assert torch.equal(labels[hidden], ids[hidden])
    assert torch.equal(inputs[~hidden], ids[~hidden])
    assert not (hidden & ~maskable).any()
    assert float(hidden[maskable].double().mean()) == pytest.approx(0.15, abs=0.015)


def test_the_plateau_is_the_entropy_of_the_characters() -> None:
    """On a text held out from itself, the loss of the frequencies is their entropy; knowing the neighbour is worth more."""
    text = "abracadabra " * 200
    ids = {c: i for i, c in enumerate(sorted(set(text)))}
    tensor = torch.tensor([ids[c] for c in text])
    characters = Characters("".join(ids), tensor, tensor, 8)
    counts = Counter(text)
    entropy = -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values()) * math.log(2)
    assert characters.unigram_loss() == pytest.approx(entropy, rel=1e-12)
    assert characters.bigram_loss() < 0.7 * entropy


def test_a_word_that_no_method_holds_is_named() -> None:
    """A table without the row that was asked for must not be printed."""
    assert list(select(METHODS, ["activations: ffn"])) == ["naive", "activations: ffn"]
    assert list(select(METHODS, None)) == list(METHODS)
    with pytest.raises(UsageError, match="no method has 'weigths'"):
        select(METHODS, ["weigths"])


def test_an_even_grid_is_refused() -> None:
    """Half way would fall between two of its points, and the table would show another loss under that name."""
    with pytest.raises(UsageError, match="--points is 4"):
        measure("naive", naive, contest("bert"), points=4)
