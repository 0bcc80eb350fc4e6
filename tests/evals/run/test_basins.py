"""Sweeps over many models: every loss is one that transformers computes, nothing is computed twice, and faults are one line."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import NLI, bert_config, save_checkpoint, sentence
from torch import Tensor

import evals
from evals.clusters.sweep import work
from evals.commands.evaluate_models import evaluate
from merge.errors import MergeError, MismatchError, OutputError, TaskError, UsageError

POINTS, ROWS = 3, 12
OTHER_ORDER = ("contradiction", "entailment", "neutral")
HEAD = ("classifier.weight", "classifier.bias")
fork = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with models a, b, c and d, of which c has its classes in another order, and rows."""
    root, generator = tmp_path_factory.mktemp("zoo"), random.Random(0)
    for seed, name in enumerate("abcd"):
        save_checkpoint(root / name, bert_config(labels=OTHER_ORDER if name == "c" else NLI), seed=seed)
    rows = [
        {"premise": sentence(generator, 9), "hypothesis": sentence(generator, 5), "label": NLI[k % 3]}
        for k in range(ROWS)
    ]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root


def sweep(zoo: Path, names: Sequence[str], output: Path | None = None, **options: Any) -> evals.run.results.Basins:
    settings = {"task": "mnli", "data": zoo / "rows.jsonl", "points": POINTS, "processes": 1, **options}
    return evals.basins([zoo / name for name in names], output=output, **settings)


@pytest.fixture(scope="module")
def abc(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a sweep over a, b and c."""
    output = tmp_path_factory.mktemp("abc") / "out"
    sweep(zoo, "abc", output)
    return output


def files(output: Path, kind: str = "*") -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in (output / "sweep").glob(f"{kind}/*") if path.parent.name != "running"
    }


def stamps(output: Path) -> dict[str, int]:
    """Return when each record was written."""
    return {path.name: path.stat().st_mtime_ns for path in (output / "sweep").glob("*/*.parquet")}


def by_hand(zoo: Path, weights: Mapping[str, Tensor]) -> np.ndarray:
    """Return the loss of each row of a model in the order of classes of a, by transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(zoo / "a"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(zoo / "a")).eval()
    model.load_state_dict(weights)
    losses = []
    with torch.no_grad():
        for line in (zoo / "rows.jsonl").read_text().splitlines():
            row = json.loads(line)
            gold = torch.tensor([NLI.index(row["label"])])
            logits = model(**tokenizer(row["premise"], row["hypothesis"], return_tensors="pt")).logits
            losses.append(float(torch.nn.functional.cross_entropy(logits, gold)))
    return np.array(losses)


def weights_of(zoo: Path, name: str) -> dict[str, Tensor]:
    """Return a model's weights with its classes in the order of a's."""
    tensors = load_file(zoo / name / "model.safetensors")
    if name == "c":
        order = [OTHER_ORDER.index(label) for label in NLI]
        tensors = {n: t[order] if n in HEAD else t for n, t in tensors.items()}
    return tensors


def test_every_loss_is_that_of_the_averaged_weights(zoo: Path, abc: Path) -> None:
    """Endpoints and midpoints, classes in one order; the average without that order has another loss (control)."""
    swept = sweep(zoo, "abc", abc)
    losses, tensors = swept.losses[0], [weights_of(zoo, name) for name in "abc"]
    assert losses.models == ("a", "b", "c")
    assert losses.complete
    assert losses.lam == (0.0, 0.5, 1.0)
    for k in range(3):
        assert losses.ends[k] == pytest.approx(by_hand(zoo, tensors[k]), abs=1e-5)
    for i, j in losses.pairs:
        middle = {name: (tensors[i][name] + tensors[j][name]) / 2 for name in tensors[i]}
        assert losses.curve(i, j)[1] == pytest.approx(by_hand(zoo, middle), abs=1e-5)
        distance = (
            sum(float((tensors[i][n].double() - tensors[j][n].double()).square().sum()) for n in tensors[i]) ** 0.5
        )
        assert losses.distance[i, j] == pytest.approx(distance, rel=1e-6)
    unordered = load_file(zoo / "c" / "model.safetensors")
    middle = {name: (tensors[0][name] + unordered[name]) / 2 for name in unordered}
    assert np.abs(losses.curve(0, 2)[1] - by_hand(zoo, middle)).max() > 1e-3
    barriers = losses.curve(0, 1).mean(1)[1] - losses.ends[:2].mean()
    assert swept.matrix("loss barrier")[1, 0] == pytest.approx(max(barriers, 0), abs=1e-6)


def test_a_further_model_costs_its_own_pairs_alone(zoo: Path, abc: Path, tmp_path: Path) -> None:
    """Whatever its place; models in another order cost nothing, and give the lines backwards."""
    output = tmp_path / "out"
    shutil.copytree(abc, output)
    before = stamps(output)
    assert len(before) == 3 + 3
    told: list[str] = []
    four = sweep(zoo, "dabc", output, tell=told.append)
    after = stamps(output)
    assert len(after) == 4 + 6
    assert {name: after[name] for name in before} == before
    assert "stored already: 3 models, 3 pairs" in told[0]
    told.clear()
    turned = sweep(zoo, "cbad", output, tell=told.append)
    assert stamps(output) == after
    assert "nothing is left to measure" in told
    assert np.array_equal(turned.losses[0].curve(0, 1), four.losses[0].curve(3, 2))
    assert not np.array_equal(turned.losses[0].curve(0, 1)[0], turned.losses[0].curve(0, 1)[-1])


def test_references_are_measured_against_all(zoo: Path, abc: Path, tmp_path: Path) -> None:
    swept = sweep(zoo, "abc", tmp_path / "out", references=["b"])
    assert swept.losses[0].pairs == [(0, 1), (1, 2)]
    assert np.isnan(swept.matrix()[0, 2])
    assert files(tmp_path / "out", "pairs").items() < files(abc, "pairs").items()
    with pytest.raises(UsageError, match="reference 'bb' is not one of the models. Did you mean 'b'"):
        sweep(zoo, "abc", references=["bb"])


def test_a_forced_sweep_measures_everything_again_to_the_same_bytes(zoo: Path, abc: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(abc, output)
    before = stamps(output)
    sweep(zoo, "abc", output, force=True)
    assert files(output) == files(abc)
    assert all(stamps(output)[name] > then for name, then in before.items())


def test_a_damaged_record_is_measured_again(zoo: Path, abc: Path, tmp_path: Path) -> None:
    """One that was cut short at once; one whose bytes changed inside is named, and used nowhere."""
    output = tmp_path / "out"
    shutil.copytree(abc, output)
    first, second = sorted((output / "sweep" / "pairs").iterdir())[:2]
    first.write_bytes(first.read_bytes()[:-30])
    sweep(zoo, "abc", output)
    assert files(output) == files(abc)
    data = bytearray(second.read_bytes())
    data[40] ^= 255
    second.write_bytes(bytes(data))
    with pytest.raises(OutputError, match=f"{second.name} is damaged or gone; delete it"):
        sweep(zoo, "abc", output)


def test_averages_are_measured_beside_what_is_predicted(zoo: Path, abc: Path, tmp_path: Path) -> None:
    """The best ranked, that of all and one that is asked for; each is the loss of the weights that torch averages."""
    output = tmp_path / "out"
    shutil.copytree(abc, output)
    swept = sweep(zoo, "abc", output, verify=1, averages=[(2, 1)])
    measured = {tuple(each["models"]): each for each in swept.record["analyses"][0]["verification"]["subsets"]}
    best = tuple(swept.record["analyses"][0]["ranking"]["subsets"][0]["models"])
    assert set(measured) == {best, (0, 1, 2), (1, 2)}
    for members, each in measured.items():
        of = [weights_of(zoo, "abc"[k]) for k in members]
        mean = {name: torch.stack([tensors[name] for tensors in of]).mean(0) for name in of[0]}
        assert each["measured"] == pytest.approx(by_hand(zoo, mean).mean(), abs=1e-5)
    assert swept.verdict == tuple(swept.record["analyses"][-1]["verdict"])
    assert sorted(name for cluster in swept.clusters for name in cluster) == ["a", "b", "c"]
    before = stamps(output)
    assert len(before) == 6 + len(measured)
    sweep(zoo, "abc", output, verify=1, averages=[(1, 2)])
    assert stamps(output) == before


@pytest.mark.slow
def test_diagnostics_are_the_scores_of_the_command(zoo: Path, tmp_path: Path) -> None:
    """On a part of HANS and on rows of one's own; they are stored as scores, and not taken again."""
    rows = [json.loads(line) for line in (zoo / "rows.jsonl").read_text().splitlines()]
    asked = {"hans:ln_subject/object_swap": None, "mnli:loss": rows[:7]}
    swept = sweep(zoo, "ab", tmp_path / "out", diagnostics=asked, limit=9)
    assert list(swept.record["diagnostics"]) == list(asked)
    expected = [entry["loss"] for entry in evals.score([zoo / "a", zoo / "b"], "mnli", data=rows[:7])]
    assert swept.record["diagnostics"]["mnli:loss"] == pytest.approx(expected, abs=1e-7)
    stored = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    hans = [record for record in stored if record["task"] == "hans"]
    assert [record["n"] for record in hans] == [9, 9]
    assert all(list(record["hans"]["subcases"]) == ["ln_subject/object_swap"] for record in hans)
    taken = (tmp_path / "out" / "results.json").stat().st_mtime_ns
    sweep(zoo, "ab", tmp_path / "out", diagnostics=asked, limit=9)
    assert (tmp_path / "out" / "results.json").stat().st_mtime_ns == taken


@pytest.mark.slow
def test_aligned_lines_are_beside_the_naive_ones(zoo: Path, tmp_path: Path) -> None:
    """A copy of a with its units elsewhere: aligned, by itself or to a reference, the line is one point; naively it is not."""
    from merge.symmetry.architectures import spec_for
    from merge.symmetry.permutation import apply, restrict
    from merge.symmetry.permutation import random as random_permutation

    tensors = load_file(zoo / "a" / "model.safetensors")
    spec = spec_for(bert_config())
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    drawn = random_permutation(spec, shapes, torch.Generator().manual_seed(5))
    moved = apply(spec, restrict(drawn, [axis for axis in drawn.indices if axis != "labels"]), tensors)
    shutil.copytree(zoo / "a", tmp_path / "moved")
    save_file({n: t.contiguous() for n, t in moved.items()}, tmp_path / "moved" / "model.safetensors", {"format": "pt"})
    models = [zoo / "a", tmp_path / "moved", zoo / "c"]
    settings: dict[str, Any] = {"task": "mnli", "data": zoo / "rows.jsonl", "points": POINTS, "processes": 1}
    for way in ("pair", "reference"):
        output = tmp_path / way
        swept = evals.basins(models, align="weights", align_to=way, output=output, **settings)
        naive, aligned = swept.losses
        assert [naive.name, aligned.name[:17]] == ["naive", "aligned (weights,"]
        assert np.ptp(naive.curve(0, 1).mean(1)) > 1e-2
        assert np.ptp(aligned.curve(0, 1), axis=0).max() < 1e-4
        before = stamps(output)
        transforms = sorted((output / "sweep" / "transforms").glob("*"))
        assert len(transforms) == (2 if way == "reference" else 0)
        evals.basins(models, align="weights", align_to=way, output=output, **settings)
        assert stamps(output) == before
    with pytest.raises(UsageError, match="--align-to reference belongs to an alignment"):
        evals.basins(models, align_to="reference", **settings)


def die_at_write(zoo: Path, output: Path, death: int) -> None:
    """Sweep over a, b and c; die by kill -9 as the given one of all records is about to take its place."""
    left, replace = [death], Path.replace

    def dying(self: Path, target: Any) -> Any:
        left[0] -= self.suffix == ".tmp" and "parquet" in self.name
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = dying  # type: ignore[method-assign]
    signal.alarm(120)
    sweep(zoo, "abc", output)


@pytest.mark.parametrize("death", [2, 5])
def test_killed_and_resumed_no_pair_is_computed_twice_and_bytes_are_the_same(
    zoo: Path, abc: Path, tmp_path: Path, death: int
) -> None:
    """Records 1 to 3 are those of models, 4 to 6 those of pairs; what a kill leaves half written goes."""
    output = tmp_path / "out"
    process = fork.Process(target=die_at_write, args=(zoo, output, death))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before = stamps(output)
    assert len(before) == death - 1
    assert list((output / "sweep").glob("*/.*.tmp"))
    sweep(zoo, "abc", output)
    after = stamps(output)
    assert {name: after[name] for name in before} == before
    assert files(output) == files(abc)
    assert not list((output / "sweep").glob("*/.*.tmp"))


def two_processes(zoo: Path, output: Path) -> None:
    signal.alarm(200)
    sweep(zoo, "abc", output, processes=2)


@pytest.mark.slow
def test_two_processes_killed_and_resumed_by_one_give_the_bytes_of_one(zoo: Path, abc: Path, tmp_path: Path) -> None:
    """kill -9 of the command alone: its workers stop by themselves, and what they finished is kept."""
    output = tmp_path / "out"
    process = fork.Process(target=two_processes, args=(zoo, output))
    process.start()
    while process.is_alive() and len([*(output / "sweep" / "ends").glob("*.parquet")]) < 2:  # not those being written
        time.sleep(0.01)
    process.kill()
    process.join()
    time.sleep(0.5)  # a point that a worker is at
    before = stamps(output)
    assert len(before) >= 2
    sweep(zoo, "abc", output)
    after = stamps(output)
    assert {name: after[name] for name in before} == before
    assert files(output) == files(abc)


def test_two_sweeps_do_not_share_a_folder(zoo: Path, tmp_path: Path) -> None:
    with work.alone(tmp_path), pytest.raises(OutputError, match="another sweep writes to"):
        sweep(zoo, "ab", tmp_path)
    with work.alone(tmp_path):  # control: once it is let go, it can be held
        assert True


def command(*words: object) -> Any:
    return evaluate.main([str(word) for word in words], standalone_mode=False)


def test_a_dry_run_states_the_cost_and_measures_nothing(
    zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ("basins", zoo / "a", zoo / "b", zoo / "c", "--task", "mnli", "--data", zoo / "rows.jsonl")
    command(*base, "--dry-run", "--processes", 2, "-o", tmp_path)
    said = capsys.readouterr()
    assert "3 models, 3 pairs x 9 points between them, 12 rows" in said.out
    assert "estimate: " in said.out
    assert "2 processes; measured on the first pair" in said.out
    assert stamps(tmp_path) == {}
    command(*base, "--dry-run", "--json", "-q")
    cost = json.loads(capsys.readouterr().out)
    assert (cost["pairs_left"], cost["points"], cost["models_left"]) == (3, 9, 3)
    assert (
        cost["seconds"] * cost["processes"]
        >= cost["forward_seconds"]
        == pytest.approx((3 + 27) * cost["point_seconds"])
    )


@pytest.mark.slow
def test_the_command_prints_models_and_pairs(zoo: Path, abc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The estimate and notes on stderr; a model that is named twice is counted once, and that is said."""
    names = ("a", "b", "c", "a")
    models = [zoo / name for name in names]
    command("basins", *models, "--task", "mnli", "--data", zoo / "rows.jsonl", "--points", POINTS, "-o", abc)
    said = capsys.readouterr()
    record = json.loads((abc / "basins.json").read_text())
    verdict = record["analyses"][0]["verdict"]
    assert said.out.splitlines()[1 : 1 + len(verdict)] == verdict
    assert said.out.count("\n") == 1 + len(verdict) + 1 + 3 + 1 + 3
    assert "nothing is left to measure" in said.err
    assert "is given twice: it is counted once" in said.err
    assert "Basins" in (abc / "index.html").read_text()
    table = (abc / "basins-pairs.csv").read_text().splitlines()
    assert table[0].startswith("a,b,error barrier,± s.e.,loss barrier,± s.e.")
    assert [line.split(",")[:2] for line in table[1:]] == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert [model["name"] for model in record["models"]] == ["a", "b", "c"]


def broken(zoo: Path, folder: Path, change: Mapping[str, Any]) -> Path:
    shutil.copytree(zoo / "b", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    return folder


def test_every_fault_is_one_line_before_anything_is_measured(zoo: Path, tmp_path: Path) -> None:
    larger = save_checkpoint(tmp_path / "larger", bert_config(hidden_size=32), seed=1)
    masked = save_checkpoint(tmp_path / "masked", bert_config("BertForMaskedLM"), seed=1)
    labels = {"0": "yes", "1": "no", "2": "maybe"}
    other = broken(zoo, tmp_path / "other", {"id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}})
    a, b = zoo / "a", zoo / "b"
    faults: list[tuple[Sequence[Path], dict[str, Any], type[MergeError], str]] = [
        ([a], {}, UsageError, "needs at least two different models, found 1 model"),
        ([a, a], {}, UsageError, "found 2 models .*is given twice"),
        ([a, larger], {}, MismatchError, "hidden_size is 24 in .*a, 32 in .*larger"),
        ([a, masked], {}, MismatchError, "architectures differ"),
        ([a, other], {}, MismatchError, "label"),
        ([a, b], {"diagnostics": ["qqp"]}, TaskError, "are not those of qqp"),
        ([a, b], {"diagnostics": ["hans:lexical"]}, UsageError, "Did you mean 'lexical_overlap'"),
        ([a, b], {"diagnostics": ["mnli:f1"]}, UsageError, "mnli has no score 'f1'"),
        ([a, b], {"diagnostics": ["mnly"]}, UsageError, "Did you mean 'mnli'"),
        ([a, b], {"diagnostics": ["mnli:"]}, UsageError, "found 'mnli:'"),
        ([a, b], {"backend": "rai"}, UsageError, "Did you mean 'ray'"),
        ([a, b], {"summary": "loss barier"}, UsageError, "unknown summary 'loss barier'. Did you mean 'loss barrier'"),
        ([a, b], {"method": "spectal"}, UsageError, "unknown cluster method 'spectal'. Did you mean 'spectral'"),
        ([a, b], {"clusters": 9}, UsageError, "asked for 9"),
        ([a, b], {"points": 2}, UsageError, "points must be at least 3"),
        ([a, b], {"processes": 0}, UsageError, "processes must be at least 1"),
        ([a, b], {"align": "weights", "align_to": "refrence"}, UsageError, "Did you mean 'reference'"),
    ]
    for models, options, kind, message in faults:
        settings = {"task": "mnli", "data": zoo / "rows.jsonl", "processes": 1, **options}
        with pytest.raises(kind, match=message):
            evals.basins(models, output=tmp_path / "out", **settings)
        assert not stamps(tmp_path / "out")


def test_an_absent_backend_names_its_extra(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    whole = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else whole(name, *more))
    with pytest.raises(
        UsageError, match=r"--backend ray needs ray, which is not installed: pip install 'merge-models\[ray\]'"
    ):
        sweep(zoo, "ab", backend="ray")


def test_an_error_names_the_models(zoo: Path, tmp_path: Path) -> None:
    """A model that overflows, whatever it is measured with: it is named, and what was measured before is kept."""
    shutil.copytree(zoo / "a", tmp_path / "high")
    tensors = load_file(zoo / "a" / "model.safetensors")
    tensors["classifier.weight"] = torch.full_like(tensors["classifier.weight"], 3e38)
    save_file(tensors, tmp_path / "high" / "model.safetensors", {"format": "pt"})
    settings: dict[str, Any] = {"task": "mnli", "data": zoo / "rows.jsonl", "points": 3, "processes": 1}
    with pytest.raises(
        TaskError, match=r"^(a - high|high - a), naive: losses, at 0.5: the logits of \d+ of 12 rows are NaN"
    ):
        evals.basins([zoo / "a", tmp_path / "high"], output=tmp_path / "two", **settings)
    with pytest.raises(TaskError, match=r"^high: losses, at 0.0: the logits of \d+ of 12 rows are NaN"):
        evals.basins([zoo / "a", zoo / "b", tmp_path / "high"], output=tmp_path / "three", **settings)
    assert (len(stamps(tmp_path / "two")), len(stamps(tmp_path / "three"))) == (0, 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_local_cluster_of_ray_gives_the_same_bytes(zoo: Path, abc: Path, tmp_path: Path) -> None:
    """Two workers, started and stopped here."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        sweep(zoo, "abc", tmp_path / "out", processes=2, backend="ray")
    finally:
        ray.shutdown()
    assert files(tmp_path / "out") == files(abc)
