"""Which method makes which tensor, from which tensors: overrides, gradients, slices and a base that lacks some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import bert_config, random_tensors, save_checkpoint

from merge.checkpoints.model_set import ModelSet
from merge.checkpoints.open import open_checkpoint
from merge.errors import MismatchError, RecipeError, UsageError
from merge.recipe.recipe import make_recipe
from merge.run.plan.heads import plan_heads
from merge.run.plan.schedule import Schedule, make_schedule
from merge.run.run import run

CONFIG = bert_config(num_hidden_layers=3)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with models a, b, c and their base, which has another head, and a tuned base, which has theirs."""
    for seed, name in enumerate(("a", "b", "c", "tuned")):
        save_checkpoint(tmp_path / name, CONFIG, seed=seed)
    save_checkpoint(tmp_path / "base", bert_config("BertForMaskedLM", num_hidden_layers=3), seed=9)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scheduled(**values: Any) -> Schedule:
    recipe = make_recipe({"models": ["a", "b"], **values})
    models = tuple(open_checkpoint(entry.model) for entry in recipe.models)
    base = None if recipe.base is None else open_checkpoint(recipe.base.model)
    return make_schedule(recipe, plan_heads(recipe.heads, ModelSet(models, base)))


def weights_of(schedule: Schedule, name: str) -> Any:
    return {job.name: job.method for job in schedule.jobs}[name].weights  # type: ignore[attr-defined]


def merged(**values: Any) -> dict[str, torch.Tensor]:
    run(make_recipe({"models": ["a", "b"], "output": "out", **values}), force=True)
    return load_file("out/model.safetensors")


def models(*names: str) -> list[dict[str, torch.Tensor]]:
    return [load_file(f"{name}/model.safetensors") for name in names]


def test_without_more_every_tensor_has_the_recipes_method_and_all_models(place: Path) -> None:
    schedule = scheduled(models=["a", "b", "c"])
    assert [job.name for job in schedule.jobs] == list(open_checkpoint("a").tensors)
    assert {job.sources for job in schedule.jobs} == {tuple((k, job.name) for k in range(3)) for job in schedule.jobs}
    assert len({id(job.method) for job in schedule.jobs}) == 1  # one record, not one a tensor
    assert schedule.plan is None
    assert schedule.notes == ()


def test_a_later_override_wins_and_patterns_match_whole_names(place: Path) -> None:
    """Shell patterns over the names in the file: * and ?, not parts of names."""
    schedule = scheduled(
        overrides=[
            {"tensors": "bert.encoder.*", "settings": {"weights": [1, 3]}},
            {"tensors": ["*.layer.?.attention.*", "classifier.*"], "settings": {"weights": [1, 0]}},
        ]
    )
    assert weights_of(schedule, "bert.encoder.layer.1.output.dense.weight") == (1, 3)
    assert weights_of(schedule, "bert.encoder.layer.1.attention.self.query.weight") == (1, 0)
    assert weights_of(schedule, "classifier.bias") == (1, 0)
    assert weights_of(schedule, "bert.pooler.dense.weight") is None


def test_an_override_may_choose_another_method(place: Path) -> None:
    """Then nothing of the recipe's settings holds for it: they are another method's."""
    out = merged(
        settings={"weights": [3, 1]},
        overrides=[{"tensors": "classifier.*", "method": "slerp", "settings": {"lam": 0.0}}],
    )
    a, b = models("a", "b")
    assert torch.equal(out["classifier.weight"], a["classifier.weight"])
    name = "bert.pooler.dense.weight"
    assert torch.allclose(out[name], 0.75 * a[name] + 0.25 * b[name], atol=1e-6)


def test_an_override_that_matches_nothing_is_an_error_with_the_nearest_name(place: Path) -> None:
    with pytest.raises(RecipeError, match=r"no tensor is named 'clasifier.\*'. The nearest is 'classifier\."):
        scheduled(overrides=[{"tensors": "clasifier.*", "settings": {"weights": [1, 0]}}])
    with pytest.raises(RecipeError, match="no tensor is named 'query'"):
        scheduled(overrides=[{"tensors": ["classifier.*", "query"], "settings": {"weights": [1, 0]}}])


def test_a_wrong_override_is_found_with_the_recipe(place: Path) -> None:
    for wrong, expected in (
        ({"tensors": "*", "method": "sleep"}, "unknown method 'sleep'"),
        ({"tensors": "*", "settings": {"weights": [1, 2, 3]}}, "3 weights for 2 models"),
        ({"tensors": [], "settings": {}}, "tensors"),
        ({"tensors": "*", "method": "ties"}, "merges task vectors and needs a base"),
        ({"tensors": "*", "metod": "ties"}, "unknown key. Did you mean 'method'"),
    ):
        with pytest.raises(RecipeError, match=expected):
            scheduled(overrides=[wrong])


def test_a_gradient_runs_from_the_first_layer_to_the_last(place: Path) -> None:
    """Embeddings stand at its beginning; the pooler and the head, which read the last layer, at its end."""
    schedule = scheduled(settings={"weights": [{"gradient": [0, 1]}, {"gradient": [1, 0.5, 0.5]}]})
    at = {
        "bert.embeddings.word_embeddings.weight": 0.0,
        "bert.encoder.layer.0.output.dense.weight": 0.0,
        "bert.encoder.layer.1.output.dense.weight": 0.5,
        "bert.encoder.layer.2.output.dense.weight": 1.0,
        "bert.pooler.dense.bias": 1.0,
        "classifier.weight": 1.0,
    }
    for name, position in at.items():
        expected = (position, float(np.interp(position, [0, 0.5, 1], [1, 0.5, 0.5])))
        assert weights_of(schedule, name) == pytest.approx(expected)


def test_a_gradient_is_checked_at_each_of_its_points(place: Path) -> None:
    with pytest.raises(RecipeError, match="lam must be a number from 0 to 1, found 1.5"):
        scheduled(method="slerp", settings={"lam": {"gradient": [0, 1.5, 0]}})
    with pytest.raises(RecipeError, match="a gradient is written"):
        scheduled(method="slerp", settings={"lam": {"gradient": "0..1"}})


def test_weights_beside_the_models_may_be_gradients(place: Path) -> None:
    out = merged(
        models=[{"model": "a", "weight": {"gradient": [1, 0]}}, {"model": "b", "weight": {"gradient": [0, 1]}}]
    )
    a, b = models("a", "b")
    first, middle, last = (f"bert.encoder.layer.{i}.output.dense.weight" for i in range(3))
    assert torch.equal(out[first], a[first])
    assert torch.allclose(out[middle], (a[middle] + b[middle]) / 2, atol=1e-6)
    assert torch.equal(out[last], b[last])


def test_slices_stack_layers_of_several_models(place: Path) -> None:
    """Embeddings come with the first slice, pooler and head with the last; the config counts the layers."""
    run(make_recipe({
        "models": ["a", "b"], "method": "passthrough", "output": "out",
        "slices": [{"sources": [{"model": "a", "layers": "0-1"}]}, {"sources": [{"model": "b", "layers": "0-2"}]}],
    }))  # fmt: skip
    out, (a, b) = load_file("out/model.safetensors"), models("a", "b")
    tensor = "bert.encoder.layer.{}.intermediate.dense.weight".format
    origin = [a[tensor(0)], a[tensor(1)], b[tensor(0)], b[tensor(1)], b[tensor(2)]]
    assert all(torch.equal(out[tensor(i)], expected) for i, expected in enumerate(origin))
    assert tensor(5) not in out
    assert torch.equal(out["bert.embeddings.word_embeddings.weight"], a["bert.embeddings.word_embeddings.weight"])
    assert torch.equal(out["classifier.weight"], b["classifier.weight"])
    assert open_checkpoint("out").config["num_hidden_layers"] == 5


def test_a_slice_has_its_own_method_and_settings(place: Path) -> None:
    out = merged(
        slices=[
            {"layers": "0-1", "settings": {"weights": [1, 0]}},
            {"layers": "2", "method": "slerp", "settings": {"lam": 1.0}},
        ]
    )
    a, b = models("a", "b")
    for i, expected in enumerate((a, a, b)):
        name = f"bert.encoder.layer.{i}.output.dense.weight"
        assert torch.equal(out[name], expected[name])
    assert torch.equal(out["bert.embeddings.LayerNorm.bias"], a["bert.embeddings.LayerNorm.bias"])
    assert torch.equal(out["classifier.bias"], b["classifier.bias"])


def test_slices_as_text_are_the_slices_written_out(place: Path) -> None:
    """Copies, merges by the method, means with weights; a slice with a method of its own."""
    text = [
        "A[0-1]",
        {"layers": "merge(A[1-2], B[0,2]), B0", "method": "slerp", "settings": {"lam": 0.5}},
        "mean(0.7*A1, 0.3*B2)",
    ]
    written = [
        {"sources": [{"model": "a", "layers": "0-1"}], "method": "passthrough"},
        {"sources": [{"model": "a", "layers": "1-2"}, {"model": "b", "layers": "0,2"}], "method": "slerp"}
        | {"settings": {"lam": 0.5}},
        {"sources": [{"model": "b", "layers": "0"}], "method": "passthrough"},
        {"sources": [{"model": "a", "layers": "1"}, {"model": "b", "layers": "2"}], "method": "linear"}
        | {"settings": {"weights": [0.7, 0.3]}},
    ]
    assert make_recipe({"models": ["a", "b"], "slices": text}) == make_recipe({"models": ["a", "b"], "slices": written})
    out, (a, b) = merged(slices="A0, merge(A1, B1), B[2]*2"), models("a", "b")
    name = "bert.encoder.layer.{}.output.dense.weight".format
    due = [a[name(0)], (a[name(1)] + b[name(1)]) / 2, b[name(2)], b[name(2)]]
    assert all(torch.allclose(out[name(i)], expected, atol=1e-6) for i, expected in enumerate(due))


@pytest.mark.parametrize(
    ("slices", "place_of_caret", "words"),
    [
        ("A[0-1], C2", 8, "there is no model 'C'; the models are A, B"),
        ("A0, zero(B1)", 4, r"zero\(...\) belongs to edit-layers apply; here are merge\(...\), mean\(...\)"),
        ("merge(A[0-1], B2)", 0, "equally many layers of each source, found 2 and 1"),
        ([{"layers": "A[1]-ffn"}], 4, "edit-layers apply takes sublayers out"),
    ],
)
def test_a_mistake_in_the_text_of_slices_has_a_caret(place: Path, slices: Any, place_of_caret: int, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        make_recipe({"models": ["a", "b"], "slices": slices})
    assert str(caught.value).split("\n")[2] == "  " + " " * place_of_caret + "^"


def test_layers_that_go_nowhere_are_said(place: Path) -> None:
    schedule = scheduled(slices=[{"layers": "0,2"}])
    assert schedule.plan is not None
    assert schedule.plan.layers == (((0, 0), (1, 0)), ((0, 2), (1, 2)))
    assert sum("16 tensors are in no slice of the result" in note for note in schedule.notes) == 2


@pytest.mark.parametrize(
    ("slices", "expected"),
    [
        ([{"layers": "0-3"}], "3"),
        ([{"sources": [{"model": "a", "layers": "0-1"}, {"model": "b", "layers": "0"}]}], "same number of layers"),
        ([{"layers": "2-x"}], "x"),
    ],
)
def test_layers_that_are_not_there_are_an_error(place: Path, slices: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        scheduled(slices=slices)
    for wrong, said in (
        ([{"sources": [{"model": "d", "layers": "0"}]}], "'d' is not one of the models"),
        ([{"layers": "0", "sources": [{"model": "a", "layers": "0"}]}], "either layers .* or sources"),
        ([{"sources": [{"model": "a", "layers": "0"}]}], "passthrough copies one"),
    ):
        with pytest.raises(RecipeError, match=said):
            scheduled(slices=wrong)


def test_a_base_with_another_head_needs_a_rule_for_what_it_lacks(place: Path) -> None:
    """The pretrained model has a decoder where the fine-tuned ones have pooler and classifier."""
    with pytest.raises(
        MismatchError, match=r"base base lacks bert\.pooler\.dense\.\w+, .* --base-lacks average, or reference"
    ):
        scheduled(method="ties", base="base")
    schedule = scheduled(method="ties", base="base", base_lacks="average")
    assert any("not in the base" in note and "classifier.weight" in note for note in schedule.notes)
    without = {job.name for job in schedule.jobs if job.base is None}
    assert without == {f"{part}.{kind}" for part in ("bert.pooler.dense", "classifier") for kind in ("weight", "bias")}


@pytest.mark.parametrize(("rule", "share"), [("average", 0.5), ("reference", 1.0)])
def test_what_the_base_lacks_follows_the_rule(place: Path, rule: str, share: float) -> None:
    out = merged(method="task_arithmetic", base="base", base_lacks=rule, settings={"weights": [0.5, 0.25]})
    a, b, base = (load_file(f"{name}/model.safetensors") for name in ("a", "b", "base"))
    head, body = "classifier.weight", "bert.encoder.layer.1.output.dense.bias"
    assert torch.allclose(out[head], share * a[head] + (1 - share) * b[head], atol=1e-6)
    assert torch.allclose(
        out[body], base[body] + 0.5 * (a[body] - base[body]) + 0.25 * (b[body] - base[body]), atol=1e-6
    )


def test_methods_without_a_base_leave_it_alone_beside_methods_with_one(place: Path) -> None:
    schedule = scheduled(method="ties", base="tuned", overrides=[{"tensors": "classifier.*", "method": "linear"}])
    assert {job.base for job in schedule.jobs if job.name.startswith("classifier.")} == {None}
    assert all(job.base == job.name for job in schedule.jobs if not job.name.startswith("classifier."))


@pytest.mark.slow
def test_the_base_is_brought_into_the_reference_basis_too(place: Path) -> None:
    """Task vectors between bases of two kinds would be noise: a and b are re-based copies of what they were."""
    from merge.symmetry.architectures import spec_for
    from merge.symmetry.permutation import apply, random, restrict

    tuned = load_file("tuned/model.safetensors")
    generator = torch.Generator().manual_seed(0)
    noisy = [{n: t + 0.01 * torch.randn(t.shape, generator=generator) for n, t in tuned.items()} for _ in range(2)]
    spec = spec_for(CONFIG)
    p = random(spec, {n: tuple(t.shape) for n, t in tuned.items()}, torch.Generator().manual_seed(1))
    p = restrict(p, set(p.indices) - spec.named)
    for name, tensors in (("a", noisy[0]), ("b", apply(spec, p, noisy[1])), ("tuned", apply(spec, p, tuned))):
        save_file({n: t.contiguous() for n, t in tensors.items()}, f"{name}/model.safetensors", {"format": "pt"})
    out = merged(method="task_arithmetic", base="tuned", settings={"weights": [0.5, 0.5]},
                 align={"by": "weights", "axes": ["residual", "heads", "ffn", "pooler"]})  # fmt: skip
    expected = {n: (noisy[0][n] + noisy[1][n]) / 2 for n in tuned}
    assert all(torch.allclose(out[n], expected[n], atol=1e-5) for n in tuned)


@pytest.mark.slow
def test_an_alignment_needs_a_base_of_the_models_class(place: Path) -> None:
    recipe = {
        "models": ["a", "b"],
        "method": "ties",
        "base": "base",
        "base_lacks": "average",
        "align": {"by": "weights"},
    }
    with pytest.raises(
        MismatchError, match="base base is BertForMaskedLM, the models are BertForSequenceClassification"
    ):
        run(make_recipe({**recipe, "output": "out"}))
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_base_of_another_family_or_size_is_an_error(place: Path) -> None:
    save_checkpoint(place / "wide", bert_config(hidden_size=36, num_hidden_layers=3))
    roberta = bert_config("RobertaForSequenceClassification", model_type="roberta", pad_token_id=1)
    save_checkpoint(place / "other", roberta, tensors=random_tensors(roberta, 0, torch.float32))
    for base, expected in (("wide", "hidden_size is 24 in a, 36 in wide"), ("other", "base other is a roberta model")):
        with pytest.raises(MismatchError, match=expected):
            run(make_recipe({"models": ["a", "b"], "method": "ties", "base": base, "output": "out"}))
