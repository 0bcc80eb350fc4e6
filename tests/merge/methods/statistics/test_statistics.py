"""Statistics files: what they say, what they refuse, the cache, the permuted model's own, and the command."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import bert_config, empty_cache, random_tensors, save_checkpoint, write_text

import merge
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.inputs import random_inputs
from merge.checkpoints.open import open_checkpoint
from merge.commands.statistics import statistics_command
from merge.disk.cache import cache_folder
from merge.errors import CalibrationError, OutputError, UsageError
from merge.methods.statistics.measure import (
    MEASURES,
    batches_hash,
    measure,
    statistics_at,
    statistics_for,
    statistics_key,
)
from merge.methods.statistics.permute import move_statistics
from merge.methods.statistics.record import Statistics, StatisticsError, read_statistics, write_statistics
from merge.progress import shown_by
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import apply, random
from merge.symmetry.transform import Transform

NAME = "bert.encoder.layer.0.intermediate.dense.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(str(save_checkpoint(tmp_path_factory.mktemp("model"))))


@pytest.fixture(params=MEASURES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def measured(checkpoint: Checkpoint, kind: str = "gram", **settings: Any) -> Statistics:
    return measure(checkpoint, kind, random_inputs(checkpoint.config), **settings)


def fails(path: Path, *parts: str, kind: str | None = None, checkpoint: Checkpoint | None = None) -> None:
    """Assert that reading is one StatisticsError of one line that names the file and holds every part."""
    with pytest.raises(StatisticsError) as caught:
        read_statistics(path, kind, checkpoint)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message


# ---- the file ----


def test_what_is_read_is_what_was_written(checkpoint: Checkpoint, kind: str, tmp_path: Path) -> None:
    """Every field and every bit, into a folder that did not exist; nothing else is left there."""
    before = measured(checkpoint, kind, text="a.txt: 16 lines", seed=3)
    path = tmp_path / "new" / "s.safetensors"
    write_statistics(path, before)
    after = read_statistics(path, kind, checkpoint)
    for field in dataclasses.fields(Statistics):
        if field.name != "tensors":
            assert getattr(after, field.name) == getattr(before, field.name)
    assert after.tensors.keys() == before.tensors.keys()
    assert all(torch.equal(after.tensors[name], before.tensors[name]) for name in before.tensors)
    assert list(path.parent.iterdir()) == [path]


def test_a_file_says_where_it_comes_from(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """All of it in the safetensors header, for who meets the file on its own."""
    path = tmp_path / "s.safetensors"
    write_statistics(path, measured(checkpoint, "fisher", text="a.txt", seed=3))
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["statistics"])
        entries = [file.get_tensor(name) for name in checkpoint.tensors]
    mean = sum(float(tensor.double().sum()) for tensor in entries) / sum(tensor.numel() for tensor in entries)
    assert record.pop("mean") == pytest.approx(mean, rel=1e-12)
    assert len(record.pop("sum")) == len(record.pop("checksum")) == 64
    assert record == {
        "format": 2,
        "kind": "fisher",
        "model": checkpoint.content_hash,
        "architecture": "BertForSequenceClassification",
        "text": "a.txt",
        "text_hash": batches_hash(random_inputs(checkpoint.config)),
        "texts": 16,
        "seed": 3,
        "version": merge.__version__,
        "transposed": [],
    }


def test_the_same_measurement_is_the_same_file(checkpoint: Checkpoint, kind: str, tmp_path: Path) -> None:
    for name in "ab":
        write_statistics(tmp_path / name, measured(checkpoint, kind))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_mode == write_text(tmp_path / "plain").stat().st_mode  # as readable as any file


def test_statistics_of_another_model_kind_or_shape_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    found = measured(checkpoint)
    write_statistics(path, found)
    assert read_statistics(path).model == checkpoint.content_hash
    other = open_checkpoint(str(save_checkpoint(tmp_path / "other", seed=1)))
    fails(path, "measured of another model", other.source, other.content_hash[:12], checkpoint=other)
    fails(path, "holds gram statistics, expected fisher", kind="fisher")
    write_statistics(path, dataclasses.replace(found, tensors={NAME: torch.zeros(40, 40)}))
    fails(path, NAME, "has shape (40, 40), expected (24, 24)", checkpoint=checkpoint)
    write_statistics(path, dataclasses.replace(found, kind="fisher", tensors={NAME: torch.zeros(24, 24)}))
    fails(path, "has shape (24, 24), expected (40, 24)", checkpoint=checkpoint)
    write_statistics(path, dataclasses.replace(found, tensors={"no.weight": torch.zeros(24, 24)}))
    fails(path, "holds no.weight", checkpoint=checkpoint)


def test_a_file_that_holds_no_statistics_is_one_clear_error(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Weights, text, half a file, another format, a NaN, no file."""
    path = tmp_path / "s.safetensors"
    fails(path, "cannot be read")
    path.write_text("no tensors")
    fails(path, "cannot be read")
    fails(checkpoint.folder / "model.safetensors", "holds no statistics")
    found = measured(checkpoint)
    write_statistics(path, found)
    path.write_bytes(path.read_bytes()[:-100])
    fails(path, "cannot be read")
    write_statistics(path, dataclasses.replace(found, tensors={NAME: torch.full((24, 24), torch.nan)}))
    fails(path, f"{NAME} is not float32 and finite")
    write_statistics(path, found)
    record = json.dumps({**found.to_json(), "format": 1})
    save_file(load_file(path), path, {"statistics": record})
    fails(path, "another format")
    save_file(load_file(path), path, {"statistics": json.dumps({"format": 2, "kind": "gram"})})
    fails(path, "its record is not one of merge-models")


@pytest.mark.parametrize("place", ["a tensor", "the record"])
def test_a_file_that_was_changed_is_not_used(place: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """One bit of one number, which is a number as good as any; the control is the same file rewritten unchanged."""
    path = tmp_path / "s.safetensors"
    write_statistics(path, measured(checkpoint, "fisher", text="a.txt"))
    with safe_open(path, framework="pt") as file:
        record = file.metadata()["statistics"]
    tensors = load_file(path)
    save_file(tensors, path, {"statistics": record})
    assert read_statistics(path).texts == 16
    if place == "a tensor":
        name = min(tensors)
        tensors[name].view(torch.int32).view(-1)[0] ^= 1
        save_file(tensors, path, {"statistics": record})
    else:
        save_file(tensors, path, {"statistics": record.replace("a.txt", "b.txt")})
    fails(path, "is damaged, or was changed since it was written. Measure it again")


def test_a_place_that_cannot_be_written_is_one_clear_error(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """And leaves nothing."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"s.safetensors cannot be written"):
        write_statistics(tmp_path / "file" / "s.safetensors", measured(checkpoint))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_ctrl_c_while_writing_leaves_the_old_file(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.safetensors"
    write_statistics(path, measured(checkpoint, seed=1))

    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_statistics(path, measured(checkpoint, seed=2))
    assert read_statistics(path).seed == 1
    assert list(tmp_path.iterdir()) == [path]


# ---- the cache ----


class Counting:
    """Progress that counts the loops it saw."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def __call__(self, items: Sequence[Any], label: str) -> Iterable[Any]:
        self.labels.append(label)
        return items


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the folder that statistics are kept in."""
    monkeypatch.setenv("MERGE_MODELS_CACHE", str(empty_cache(tmp_path / "cache")))
    return tmp_path / "cache" / "statistics"


def test_what_was_measured_once_is_not_measured_again(
    checkpoint: Checkpoint, kind: str, tmp_path: Path, cache: Path
) -> None:
    """Until model, text, number of texts or seed change."""
    batches, seen = random_inputs(checkpoint.config), Counting()
    other = open_checkpoint(str(save_checkpoint(tmp_path / "other", seed=1)))
    with shown_by(seen):
        first = statistics_for(checkpoint, kind, batches)
        again = statistics_for(checkpoint, kind, batches)
        assert len(seen.labels) == 1
        assert all(torch.equal(first.tensors[name], again.tensors[name]) for name in first.tensors)
        changed = ({**batches[0], "input_ids": batches[0]["input_ids"].roll(1)}, *batches[1:])
        statistics_for(other, kind, batches)
        statistics_for(checkpoint, kind, changed)
        statistics_for(checkpoint, kind, batches[:3])
        statistics_for(checkpoint, kind, batches, seed=1)
    assert len(seen.labels) == len(list(cache.iterdir())) == 5


def test_the_two_kinds_of_one_model_lie_side_by_side(checkpoint: Checkpoint, cache: Path) -> None:
    batches = random_inputs(checkpoint.config)
    kinds = [statistics_for(checkpoint, kind, batches).kind for kind in ("fisher", "gram", "fisher")]
    assert kinds == ["fisher", "gram", "fisher"]
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("kind_of_fault", ["another model", "half a file"])
def test_a_cached_file_that_does_not_fit_is_measured_again(
    kind_of_fault: str, checkpoint: Checkpoint, tmp_path: Path, cache: Path
) -> None:
    """The name is only a key: what lies under it is checked as any file is, and nobody can be told to measure it again."""
    batches = random_inputs(checkpoint.config)
    other = open_checkpoint(str(save_checkpoint(tmp_path / "other", seed=1)))
    path = cache / f"{statistics_key(checkpoint, 'gram', batches, 0)}.safetensors"
    write_statistics(path, measure(other, "gram", batches))
    if kind_of_fault == "half a file":
        path.write_bytes(path.read_bytes()[:-100])
    found, expected = statistics_for(checkpoint, "gram", batches), measure(checkpoint, "gram", batches)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())
    assert read_statistics(path).model == checkpoint.content_hash


def test_a_cached_file_is_named_by_the_text_of_this_run(checkpoint: Checkpoint, cache: Path) -> None:
    batches = random_inputs(checkpoint.config)
    assert [statistics_for(checkpoint, "gram", batches, text).text for text in ("a.txt", "b.txt")] == ["a.txt", "b.txt"]
    assert len(list(cache.iterdir())) == 1


def test_the_cache_is_where_the_environment_says(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own variable first, then the desktop's, then the home folder; a relative XDG path is invalid by its standard."""
    batches = random_inputs(checkpoint.config)[:1]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MERGE_MODELS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "merge-models"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "merge-models"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "merge-models"
    monkeypatch.setenv("MERGE_MODELS_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    statistics_for(checkpoint, "gram", batches)
    key = statistics_key(checkpoint, "gram", batches, 0)
    assert (tmp_path / "own" / "statistics" / f"{key}.safetensors").is_file()


def test_an_unknown_kind_and_no_text_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="unknown kind of statistics 'gramm'. Did you mean 'gram'"):
        statistics_for(checkpoint, "gramm", random_inputs(checkpoint.config))
    with pytest.raises(CalibrationError, match="need text, and there is none"):
        measure(checkpoint, "gram", ())


# ---- what a method gets ----


def test_fisher_information_is_handed_over_by_its_mean(checkpoint: Checkpoint) -> None:
    """Over the whole model it is 1 for every model; a weight has the same ratio to another as before."""
    found = measured(checkpoint, "fisher")
    loud = dataclasses.replace(found, tensors={n: 100 * t for n, t in found.tensors.items()}, mean=100 * found.mean)
    handed = {name: statistics_at([found, loud], name) for name in checkpoint.tensors}
    assert all(torch.allclose(one, other, rtol=1e-6, atol=0) for one, other in handed.values())
    total = sum(float(one.double().sum()) for one, _ in handed.values())
    assert total == pytest.approx(sum(one.numel() for one, _ in handed.values()), rel=1e-6)
    with pytest.raises(StatisticsError, match="is 0 everywhere"):
        statistics_at([found, dataclasses.replace(found, mean=0.0)], NAME)


def test_a_gram_matrix_is_handed_over_as_it_is(checkpoint: Checkpoint) -> None:
    """For a weight stored as (in, out) too, which the method gets turned; and nothing for what has none."""
    found = measured(checkpoint)
    assert torch.equal(statistics_at([found, found], NAME)[1], found.tensors[NAME])
    turned = dataclasses.replace(found, transposed=(NAME,))
    assert torch.equal(statistics_at([turned], NAME)[0], found.tensors[NAME])
    assert statistics_at([found, found], "bert.embeddings.LayerNorm.weight") == ()
    assert statistics_at([], NAME) == ()
    with pytest.raises(StatisticsError, match="measured for 1 of 2 models"):
        statistics_at([found, dataclasses.replace(found, tensors={})], NAME)


# ---- permutations ----


@pytest.mark.parametrize("architecture", ["BertForSequenceClassification", "BertForTokenClassification"])
def test_the_statistics_of_a_permuted_model_are_the_permuted_statistics(
    architecture: str, kind: str, tmp_path: Path
) -> None:
    """Measured on the permuted model, in float64, all axes moved at once; unpermuted ones would not do.

    For token classification the classes stay in place, or other classes would be drawn with the same numbers.
    """
    config = bert_config(architecture)
    tensors, spec = random_tensors(config, 0), spec_for(config)
    p = random(spec, {name: tuple(t.shape) for name, t in tensors.items()}, torch.Generator().manual_seed(2))
    if architecture == "BertForTokenClassification":
        p = dataclasses.replace(p, indices={**p.indices, "labels": torch.arange(3)})
    folders = [
        save_checkpoint(tmp_path / "a", config, tensors=tensors),
        save_checkpoint(tmp_path / "b", config, tensors=apply(spec, p, tensors)),
    ]
    plain, expected = (measure(open_checkpoint(str(f)), kind, random_inputs(config)) for f in folders)
    found = move_statistics(spec, Transform(p, {}), plain)
    moved = 0
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        bound = 1e-6 * float(tensor.max()) + 1e-26  # the key bias has no gradient but rounding
        assert float((found.tensors[name] - tensor).abs().max()) <= bound
        moved += bool((plain.tensors[name] - tensor).abs().max() > bound)
    assert moved > (30 if kind == "fisher" else 12)


def test_a_weight_stored_as_in_out_is_permuted_by_its_first_axis(checkpoint: Checkpoint) -> None:
    """(ffn0, residual) read as (out, in) has the order of the residual stream, read as (in, out) that of ffn0."""
    spec = spec_for(checkpoint.config)
    p = random(spec, checkpoint.shapes, torch.Generator().manual_seed(2))
    found = measured(checkpoint)
    square = {NAME: torch.arange(1600.0).reshape(40, 40)}
    turned = move_statistics(spec, Transform(p, {}), dataclasses.replace(found, tensors=square, transposed=(NAME,)))
    order = p.indices["ffn0"]
    assert torch.equal(turned.tensors[NAME], square[NAME][order][:, order])


# ---- the command ----


Run = Callable[..., Any]


@pytest.fixture
def run(checkpoint: Checkpoint, tmp_path: Path) -> Run:
    """Return a function that runs the command on the tiny model and a text of its words."""
    write_text(tmp_path / "text.txt", 40)

    def command(*arguments: str) -> Any:
        given = [str(checkpoint.folder), "--text", str(tmp_path / "text.txt"), *arguments]
        return CliRunner().invoke(statistics_command, given)

    return command


def test_the_command_writes_a_file_that_fits_the_model(
    run: Run, kind: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Answer on stdout; progress and notes on stderr, none with -q."""
    path = tmp_path / "s.safetensors"
    answer = run("--kind", kind, "-o", str(path), "--samples", "12")
    assert answer.exit_code == 0
    assert answer.stdout.startswith(f"{path}: {kind} of ")
    assert "the sample is small: 12 texts" in answer.stderr
    assert "measuring" in answer.stderr
    found = read_statistics(path, kind, checkpoint)
    assert found.texts == 12
    assert found.text == "text.txt: 12 of 40 lines, seed 0"
    quiet = run("--kind", kind, "-o", str(path), "--samples", "12", "-q", "--json", "--force")
    record = json.loads(quiet.stdout)
    assert quiet.stderr == ""
    assert record["output"] == str(path)
    assert record["model"] == checkpoint.content_hash
    assert record["tensors"] == len(found.tensors)


def test_the_command_replaces_no_file_unasked(run: Run, tmp_path: Path) -> None:
    """Said before anything is measured."""
    path = tmp_path / "s.safetensors"
    path.write_text("mine")
    answer = run("--kind", "gram", "-o", str(path))
    assert isinstance(answer.exception, OutputError)
    assert "exists" in str(answer.exception)
    assert path.read_text() == "mine"
    assert isinstance(run("--kind", "gram", "-o", str(tmp_path), "--force").exception, OutputError)


def test_the_command_needs_a_tokenizer(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "bare", tokenizer=False)
    answer = CliRunner().invoke(
        statistics_command, [str(folder), "--kind", "gram", "-o", str(tmp_path / "s.safetensors")]
    )
    assert isinstance(answer.exception, CalibrationError)
    assert "has no tokenizer. Add its tokenizer files" in str(answer.exception)
    assert not (tmp_path / "s.safetensors").exists()


@pytest.mark.parametrize("missing", [["--kind", "gram"], ["-o", "s"], ["--kind", "hessian", "-o", "s"]])
def test_the_command_says_what_is_missing(run: Run, missing: list[str]) -> None:
    answer = run(*missing)
    assert answer.exit_code == 2
    assert "--kind" in answer.stderr or "--output" in answer.stderr
