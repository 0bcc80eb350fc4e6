"""The greedy soup against the search done by hand in numpy, on models whose score is known from one tensor."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quick import quick_on
from safetensors.torch import load_file
from tiny import bert_config, empty_cache, random_tensors, save_checkpoint

import merge.run.search.greedy_soup as module
from merge.checkpoints.open import open_checkpoint
from merge.commands.merge_models import main
from merge.errors import RecipeError
from merge.recipe.recipe import Recipe, make_recipe, read_recipe
from merge.run.run import run
from merge.run.search.greedy_soup import ScoreError, last_words, run_scorer, score_in, stored_scores
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import apply, random, restrict

# Minus the distance of the classifier's bias from 0; every call is written down. It reads safetensors by hand: to import
# numpy would take most of the time of these tests.
SCORER = """\
import array, json, struct, sys
from pathlib import Path

def load_file(path):
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: array.array("f", data[end + first : end + last]) for name, (first, last) in spans.items()}

folder = Path(sys.argv[1])
with Path("log.txt").open("a") as log:
    log.write(f"{folder}\\n")
bias = load_file(folder / "model.safetensors")["classifier.bias"]
print("scored")
print(-sum(abs(entry) for entry in bias))
"""


def with_bias(folder: Path, bias: Sequence[float], seed: int = 0) -> Path:
    tensors = random_tensors(bert_config(), seed, torch.float32) | {"classifier.bias": torch.tensor(bias)}
    return save_checkpoint(folder, tensors=tensors)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the scorer in it, and an empty cache: scores are remembered by content."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MERGE_MODELS_CACHE", str(empty_cache(tmp_path / "cache")))
    (tmp_path / "score.py").write_text(SCORER, encoding="utf-8")
    return tmp_path


def scorer() -> str:
    return " ".join([sys.executable, "-S", "score.py", "{model}"])


def calls() -> list[str]:
    return Path("log.txt").read_text(encoding="utf-8").splitlines() if Path("log.txt").exists() else []


def soup(*models: Path, output: str = "out", settings: dict[str, Any] | None = None, **more: Any) -> Recipe:
    chosen = {"scorer": scorer()} if settings is None else settings
    names = [str(m) for m in models]
    return make_recipe({"models": names, "method": "greedy_soup", "settings": chosen, "output": output, **more})


def trio(place: Path) -> list[Path]:
    """Scores -1, -1.2 and -3; of the first two together -0.1, of all three worse."""
    biases = ([1.0, 0, 0], [-1.2, 0, 0], [3.0, 0, 0])
    return [with_bias(place / name, bias, k) for k, (name, bias) in enumerate(zip("abc", biases, strict=True))]


def test_a_model_joins_if_the_score_does_not_fall(place: Path) -> None:
    """Planted: a and b cancel, c spoils it. The soup is the plain merge of a and b, bit for bit; nothing else is left."""
    a, b, c = trio(place)
    before = {path.name for path in place.iterdir()}
    report = run(soup(c, a, b))
    run(make_recipe({"models": [str(a), str(b)], "output": "plain"}))
    made, plain = (load_file(place / name / "model.safetensors") for name in ("out", "plain"))
    assert all(torch.equal(made[name], plain[name]) for name in plain)
    assert report.recipe.settings["weights"] == [0.0, 1.0, 1.0]
    assert {path.name for path in place.iterdir()} - before == {"out", "plain", "log.txt"}
    assert [Path(call).name for call in calls()] == ["c", "a", "b", "soup", "soup"]
    notes = json.loads((place / "out" / "merge.json").read_text(encoding="utf-8"))["notes"]
    assert [note for note in notes if note.startswith("greedy_soup")] == [
        f"greedy_soup: {c} scores -3.0",
        f"greedy_soup: {a} scores -1.0",
        f"greedy_soup: {b} scores {-float(np.float32(1.2))}",
        f"greedy_soup: {a} + {b} scores {-abs(float(made['classifier.bias'][0]))}: {b} joins",
        notes[-2],
        notes[-1],
    ]
    assert f"{c} is left out" in notes[-2]
    assert f"the soup is {a} + {b}" in notes[-1]


@pytest.mark.parametrize("lower", quick_on((True,), (False, True)))
def test_the_search_is_that_of_the_paper(place: Path, lower: bool) -> None:
    """Five random models, the recipe of the paper written again in numpy; with lower_is_better the distance is to grow."""
    biases = np.random.default_rng(6).normal(size=(5, 3)).astype(np.float32)
    folders = [with_bias(place / f"m{k}", bias.tolist(), k) for k, bias in enumerate(biases)]

    def score(members: list[int]) -> float:
        return (1 if lower else -1) * float(abs(biases[members].astype(float).mean(0)).sum())

    ranked = sorted(range(5), key=lambda k: score([k]), reverse=True)
    chosen = ranked[:1]
    for k in ranked[1:]:
        if score([*chosen, k]) >= score(chosen):
            chosen = [*chosen, k]
    report = run(soup(*folders, settings={"scorer": scorer(), "lower_is_better": lower}))
    assert report.recipe.settings["weights"] == [float(k in chosen) for k in range(5)]
    assert lower or 1 < len(chosen) < 5


def test_equal_scores_join_and_the_first_of_equals_is_taken_first(place: Path) -> None:
    """Not lower is enough: twins of one score are both in, and which comes first is their order in the recipe."""
    a = with_bias(place / "a", [1.0, 0, 0], 0)
    b = with_bias(place / "b", [1.0, 0, 0], 1)
    report = run(soup(b, a))
    assert report.recipe.settings["weights"] == [1.0, 1.0]
    assert any(f"{b} + {a} scores -1.0: {a} joins" in note for note in report.notes)


def test_the_recipe_beside_the_soup_repeats_it_without_scoring(place: Path) -> None:
    run(soup(*trio(place)))
    again = read_recipe(place / "out" / "recipe.yaml")
    assert again.settings["scorer"] == scorer()
    (place / "score.py").write_text("raise SystemExit('not again')", encoding="utf-8")
    report = run(again.model_copy(update={"output": "again"}))
    one, two = (load_file(place / name / "model.safetensors") for name in ("out", "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert "greedy_soup: weights are given, so nothing was scored" in report.notes


def test_what_was_scored_once_is_not_scored_again(place: Path) -> None:
    """Models by their content, the scorer by its words and the files that they name; a changed scorer scores anew."""
    models = trio(place)
    first = run(soup(*models))
    assert len(calls()) == 5
    models[0].rename(place / "moved")
    second = run(soup(place / "moved", *models[1:], output="second"))
    assert len(calls()) == 5
    assert second.recipe.settings == first.recipe.settings
    (place / "score.py").write_text(SCORER + "\n", encoding="utf-8")
    run(soup(place / "moved", *models[1:], output="third"))
    assert len(calls()) == 10


def test_a_score_by_another_metric_is_not_taken_for_this_one(place: Path) -> None:
    """One scorer may print several metrics: the second search must not read the scores that the first remembered."""
    a, b = (with_bias(place / name, [0, 0, 0], seed) for seed, name in enumerate("ab"))
    text = SCORER.partition("bias =")[0] + 'print(json.dumps({"accuracy": 0.25, "loss": 4.5}))\n'
    (place / "score.py").write_text(text, encoding="utf-8")
    accuracy = run(soup(a, b, output="first", settings={"scorer": scorer(), "metric": "accuracy"}))
    assert len(calls()) == 3
    loss = run(soup(a, b, output="second", settings={"scorer": scorer(), "metric": "loss", "lower_is_better": True}))
    assert len(calls()) == 6
    for report, score in ((accuracy, 0.25), (loss, 4.5)):
        assert [f"scores {score}" in note for note in report.notes if " scores " in note] == [True] * 3


def test_a_search_that_failed_resumes_and_leaves_nothing_behind(place: Path) -> None:
    """The scorer dies on the first soup: the error ends with its last words, and the scores of the models are kept."""
    models = trio(place)
    dying = SCORER.replace(
        "print", "if folder.name == 'soup' and not Path('go').exists():\n    sys.exit('out of luck')\nprint", 1
    )
    (place / "score.py").write_text(dying, encoding="utf-8")
    with pytest.raises(ScoreError, match=r"failed on .*a \+ .*b \(exit 1\): out of luck"):
        run(soup(*models, output="deep/er/out"))
    assert not (place / "deep").exists()
    assert len(calls()) == 4
    (place / "go").touch()
    run(soup(*models))
    assert len(calls()) == 6


def test_an_interrupted_search_leaves_nothing_behind(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = trio(place)
    seen: list[bool] = []

    def stop(words: Any, folder: Path, metric: Any, name: str) -> float:
        if folder.name != "soup":
            return 1.0
        seen.append((folder / "config.json").is_file())
        raise KeyboardInterrupt

    before = {path.name for path in place.iterdir()} - {"cache"}
    monkeypatch.setattr(module, "run_scorer", stop)
    with pytest.raises(KeyboardInterrupt):
        run(soup(*models))
    assert seen == [True]
    assert {path.name for path in place.iterdir()} - {"cache"} == before


def test_a_dry_run_scores_nothing(place: Path) -> None:
    run(soup(*trio(place)), dry_run=True)
    assert calls() == []
    assert not (place / "out").exists()


@pytest.mark.slow
def test_candidates_are_merges_of_aligned_models(place: Path) -> None:
    """b is a in another basis: aligned, their soup is a; the naive average scores worse and stays out."""
    a = save_checkpoint(place / "a")
    opened = open_checkpoint(str(a))
    spec = spec_for(opened.config)
    p = random(spec, opened.shapes, torch.Generator().manual_seed(1))
    moved = apply(spec, restrict(p, set(p.indices) - spec.named), opened.state_dict())
    b = save_checkpoint(place / "b", opened.config, tensors={opened.written_name(n): t for n, t in moved.items()})
    norms = SCORER.replace('bias = load_file(folder / "model.safetensors")["classifier.bias"]', "").replace(
        "print(-sum(abs(entry) for entry in bias))",
        'all = load_file(folder / "model.safetensors")\nprint(round(sum(x * x for t in all.values() for x in t), 1))',
    )
    (place / "score.py").write_text(norms, encoding="utf-8")
    aligned = run(soup(a, b, align={"by": "weights", "axes": ["residual", "heads", "ffn", "pooler"]}))
    naive = run(soup(a, b, output="naive"))
    assert aligned.recipe.settings["weights"] == [1.0, 1.0]
    assert naive.recipe.settings["weights"] == [1.0, 0.0]
    merged, original = (load_file(folder / "model.safetensors") for folder in (place / "out", a))
    assert all(torch.allclose(merged[name], original[name], atol=1e-6) for name in original)


def test_with_overrides_a_soup_of_one_is_scored_too(place: Path) -> None:
    """The classifier is always c's, so that a alone is not what goes into the average."""
    a, b, c = trio(place)
    head = {"tensors": "classifier.*", "settings": {"weights": [0, 0, 1]}}
    report = run(soup(a, b, c, overrides=[head]))
    assert [Path(call).name for call in calls()] == ["a", "b", "c", "soup", "soup", "soup"]
    assert report.recipe.settings["weights"] == [1.0, 1.0, 1.0]  # all score -3
    assert load_file(place / "out" / "model.safetensors")["classifier.bias"].tolist() == [3.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "part",
    [
        {"overrides": [{"tensors": "*", "settings": {"lower_is_better": True}}]},
        {"slices": [{"sources": [{"model": "a", "layers": "0"}, {"model": "b", "layers": "1"}]}]},
        {"method": "linear", "settings": {}, "overrides": [
            {"tensors": "*", "method": "greedy_soup", "settings": {"scorer": "s {model}"}}]},
    ],
)  # fmt: skip
def test_a_part_cannot_have_a_search_of_its_own(part: dict[str, Any]) -> None:
    values = {"models": ["a", "b"], "method": "greedy_soup", "settings": {"scorer": "s {model}"}, **part}
    with pytest.raises(RecipeError, match="greedy_soup computes weights once, for whole models"):
        make_recipe(values)
    given = json.loads(json.dumps(values).replace('"lower_is_better": true', '"weights": [1, 2]'))
    if "overrides" in part and "method" not in part:
        assert make_recipe(given).overrides[0].settings == {"weights": [1, 2]}


# ---- scores that are known ----


def results(path: Path, *scores: tuple[Path, float], **more: Any) -> Path:
    """Write a results.json as evaluate-models does."""
    records = [
        {"kind": "scores", "key": f"scores-{k}", "task": "mnli", "split": "dev", "data": "dev.tsv", "n": 100, **more,
         "model": {"name": "x", "hash": open_checkpoint(str(folder)).content_hash}, "scores": {"accuracy": score}}
        for k, (folder, score) in enumerate(scores)
    ]  # fmt: skip
    other = {"kind": "scores", "key": "o", "task": "hans", "split": "dev", "data": "dev.tsv", "n": 7,
             "model": {"name": "o", "hash": "0"}, "scores": {"accuracy": 9.0}}  # fmt: skip
    path.write_text(json.dumps({"format": 1, "results": [other, *records]}), encoding="utf-8")
    return path


def test_models_that_were_evaluated_are_not_scored_again(place: Path) -> None:
    """Found by content, under whatever name; b, which was not evaluated, is scored."""
    a, b, c = trio(place)
    file = results(place / "results.json", (a, -1.0), (c, -0.5))
    report = run(soup(a, b, c, settings={"scorer": scorer(), "results": str(file), "metric": "mnli/accuracy"}))
    assert [Path(call).name for call in calls()][:1] == ["b"]
    assert {Path(call).name for call in calls()[1:]} == {"soup"}
    assert f"greedy_soup: {c} scores -0.5 (from {file})" in report.notes
    assert report.recipe.settings["weights"][2] == 1.0  # by its record the best; by the scorer the worst


def test_results_that_do_not_compare_are_refused(place: Path) -> None:
    a, b, _ = trio(place)
    models = [open_checkpoint(str(folder)) for folder in (a, b)]
    file = results(place / "r.json", (a, 0.5), (b, 0.6))
    assert stored_scores(file, "mnli/accuracy", models) == {0: 0.5, 1: 0.6}
    assert stored_scores(file, "sst2/accuracy", models) == {}
    with pytest.raises(ScoreError, match="has no number 'acuracy' on mnli. Did you mean 'accuracy'"):
        stored_scores(file, "mnli/acuracy", models)
    with pytest.raises(ScoreError, match="holds 2 scores of .*a on mnli"):
        stored_scores(results(place / "r.json", (a, 0.5), (a, 0.6)), "mnli/accuracy", models)
    text = results(place / "r.json", (a, 0.5), (b, 0.6)).read_text(encoding="utf-8")
    file.write_text(text.replace('"n": 100', '"n": 50', 1), encoding="utf-8")
    with pytest.raises(ScoreError, match="on different rows: dev.tsv .100 rows.; dev.tsv .50 rows."):
        stored_scores(file, "mnli/accuracy", models)
    for content in ("[]", "{}", '{"results": [{"kind": "scores"}]}', "no json"):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ScoreError, match="is not a results store|malformed records|it is malformed"):
            stored_scores(file, "mnli/accuracy", models)
    with pytest.raises(ScoreError, match="cannot be read: No such file"):
        stored_scores(place / "none.json", "mnli/accuracy", models)


# ---- the output of a scorer ----

RECORDS = json.dumps([
    {"task": "mnli", "scores": {"accuracy": 0.75, "loss": 0.5}, "hans": {"accuracy": 0.5}, "n": 100, "note": "x"}
], indent=2)  # fmt: skip


@pytest.mark.parametrize(
    ("stdout", "metric", "expected"),
    [
        ("0.5\n", None, 0.5),
        ("loading\n 1e-3 \n\n", None, 1e-3),
        ("0.5\n", "accuracy", 0.5),
        (RECORDS, "loss", 0.5),
        (RECORDS, "scores.accuracy", 0.75),
        (RECORDS, "0.hans.accuracy", 0.5),
        (RECORDS, "mnli/accuracy", 0.75),
        ('{"a": {"b": 1}, "b": 2}', "b", 2.0),
        ('{"results": {"acc,none": 3, "flag": true}}', "acc,none", 3.0),
    ],
)
def test_a_score_is_the_last_line_or_the_metric(stdout: str, metric: str | None, expected: float) -> None:
    assert score_in(stdout, metric) == expected


@pytest.mark.parametrize(
    ("stdout", "metric", "said"),
    [
        ("", None, "it printed nothing"),
        ("done\n", None, "its last line is 'done'"),
        (RECORDS, None, "set metric to the key of the score"),
        (RECORDS, "accuracy", "holds 2 numbers 'accuracy': 0.scores.accuracy, 0.hans.accuracy. Give more of the path"),
        (RECORDS, "0.scores.acuracy", "holds no number '0.scores.acuracy'. Did you mean '0.scores.accuracy'"),
        (RECORDS, "hans/accuracy", "holds no number 'hans/accuracy'"),
        ('{"flag": true, "text": "1"}', "flag", "holds no number 'flag'"),
    ],
)
def test_what_is_no_score_is_an_error(stdout: str, metric: str | None, said: str) -> None:
    with pytest.raises(ScoreError, match=said):
        score_in(stdout, metric)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["no-such-command", "{model}"], "scorer 'no-such-command' cannot be run"),
        ([sys.executable, "-c", "print('nan')", "{model}"], "printed nan for m; expected a finite number"),
        ([sys.executable, "-c", "import sys; sys.exit(3)", "{model}"], r"failed on m \(exit 3\): \(nothing\)"),
        ([sys.executable, "-c", "import sys; print('x'); sys.stderr.write('hm\\nso')", "{model}"], "stderr: hm so"),
    ],
)
def test_a_scorer_that_fails_is_one_line(place: Path, command: list[str], said: str) -> None:
    with pytest.raises(ScoreError, match=said) as caught:
        run_scorer(command, place, None, "m")
    assert "\n" not in str(caught.value)


def test_the_words_of_a_scorer_are_words(place: Path) -> None:
    """No shell: what looks like one is an argument, and {model} may be part of a word."""
    folder = place / "with space; and $HOME"
    code = "import sys; print(float(sys.argv[1] == '--at=' + sys.argv[2] and ';' in sys.argv[2]))"
    assert run_scorer([sys.executable, "-c", code, "--at={model}", "{model}"], folder, None, "m") == 1.0
    assert len(last_words("x" * 1000)) == 300


def test_a_command_beside_this_python_is_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment need not be activated for evaluate-models."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ScoreError, match="evaluate-models"):
        run_scorer(["evaluate-models", "nothing", "{model}"], place, None, "m")
    assert shutil.which("evaluate-models") is None


def test_a_scorer_may_hold_a_comma_when_it_is_quoted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the command line a comma makes a list of numbers; in quotes it is text."""
    words = ["a", "b", "--method", "greedy_soup", "--set", "scorer='score {model} --labels x,y'", "--print-recipe"]
    monkeypatch.setattr(sys, "argv", ["merge-models", *words])
    main()
    assert "scorer: score {model} --labels x,y" in capsys.readouterr().out
