"""The soup of a ranking is the average that the file ranks first, and no model is run for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import bert_config, empty_cache, random_tensors, save_checkpoint

import merge.run.search.greedy_soup as search
from merge.checkpoints.open import open_checkpoint
from merge.disk.checksums import with_checksum
from merge.errors import MergeError
from merge.recipe.recipe import make_recipe
from merge.run.run import run
from merge.run.search.soup_ranking import ranked_soup


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    return [
        save_checkpoint(root / name, tensors=random_tensors(bert_config(), seed, torch.float32))
        for seed, name in enumerate("abc")
    ]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MERGE_MODELS_CACHE", str(empty_cache(tmp_path / "cache")))


def basins(folders: list[Path], order: str = "cab", **changes: Any) -> dict[str, Any]:
    """Return a record over the models in some order: a + b is best with .2, then b + c with .25, then all with .4."""
    by_name = {folder.name: open_checkpoint(str(folder)).content_hash for folder in folders}
    at = {name: k for k, name in enumerate(order)}
    subsets = [("ab", 0.2), ("bc", 0.25), ("abc", 0.4)]
    ranking = {
        "subsets": [{"models": sorted(at[name] for name in names), "loss": loss} for names, loss in subsets],
        "losses": [{"a": 0.3, "b": 0.31, "c": 0.35}[name] for name in order],
        "weights": [1.0] * 3,
    }
    return {
        "kind": "basins",
        "task": "mnli",
        "data": "dev.jsonl",
        "models": [{"name": name, "hash": by_name[name]} for name in order],
        "analyses": [{"line": "naive", "ranking": ranking, "verification": None}],
        **changes,
    }


def write(record: Any) -> Path:
    path = Path("basins.json")
    path.write_text(json.dumps(with_checksum(record)), encoding="utf-8")
    return path


def soup(models: list[Path], **more: Any) -> Any:
    settings = {"results": "basins.json"}
    return make_recipe(
        {"models": [str(m) for m in models], "method": "greedy_soup", "settings": settings, "output": "out", **more}
    )


def test_the_soup_is_the_plain_merge_of_the_best_ranked_models(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has the models in another order; they are known by their content."""
    monkeypatch.setattr(search, "run_scorer", lambda *_: pytest.fail("a model was run"))
    write(basins(folders))
    report = run(soup(folders))
    run(make_recipe({"models": [str(folder) for folder in folders[:2]], "output": "plain"}))
    made, plain = (load_file(Path(name) / "model.safetensors") for name in ("out", "plain"))
    assert all(torch.equal(made[name], plain[name]) for name in plain)
    assert report.recipe.settings["weights"] == [1.0, 1.0, 0.0]
    a, b = folders[:2]
    assert (
        f"greedy_soup: the soup is {a} + {b}, with a predicted loss of 0.2 on mnli (dev.jsonl), from basins.json"
        in report.notes
    )


def _weights(
    folders: list[Path], record: dict[str, Any], names: str = "abc", aligned: bool = False
) -> tuple[float, ...]:
    models = [open_checkpoint(str(folder)) for folder in folders if folder.name in names]
    return ranked_soup(write(record), models, aligned).weights


def test_what_was_measured_counts_more_than_what_was_predicted(folders: list[Path]) -> None:
    record = basins(folders, "abc")
    record["analyses"][0]["verification"] = {
        "subsets": [{"models": [0, 1], "measured": 0.28}, {"models": [1, 2], "measured": 0.27}]
    }
    assert _weights(folders, record) == (0.0, 1.0, 1.0)


def test_a_model_alone_is_the_soup_where_no_average_is_better(folders: list[Path]) -> None:
    record = basins(folders, "abc")
    record["analyses"][0]["ranking"]["losses"] = [0.3, 0.1, 0.3]
    assert _weights(folders, record) == (0.0, 1.0, 0.0)


def test_of_some_of_the_models_the_best_average_among_them_is_taken(folders: list[Path]) -> None:
    assert _weights(folders, basins(folders), "bc") == (1.0, 1.0)
    with pytest.raises(MergeError, match="none of its 3 ranked averages is of these models alone"):
        _weights(folders, basins(folders), "ac")


def test_aligned_merges_take_the_ranking_of_aligned_lines(folders: list[Path]) -> None:
    record = basins(folders, "abc")
    with pytest.raises(MergeError, match="has no aligned lines"):
        _weights(folders, record, aligned=True)
    aligned = json.loads(json.dumps(record["analyses"][0])) | {"line": "aligned by weights"}
    aligned["ranking"]["subsets"][0]["models"] = [0, 2]
    record["analyses"].append(aligned)
    assert _weights(folders, record, aligned=True) == (1.0, 0.0, 1.0)
    assert _weights(folders, record) == (1.0, 1.0, 0.0)


def test_weights_of_the_ranking_are_those_of_the_soup(folders: list[Path]) -> None:
    record = basins(folders, "abc")
    record["analyses"][0]["ranking"]["weights"] = [2.0, 1.0, 1.0]
    assert _weights(folders, record) == (2.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "scores"}, "is not the basins.json of evaluate-models: expected kind basins"),
        ({"results": []}, "holds scores and no ranking"),
        ({"analyses": []}, "is malformed, evaluate-models did not write it so: analyses"),
        ({"analyses": [{"line": "naive"}]}, r"malformed.*analyses.0.ranking: Field required"),
        (
            {"models": [{"name": "x", "hash": "0"}, {"name": "y", "hash": "1"}]},
            "the ranking of its naive lines is not of its 2",
        ),
        (
            {"models": [{"name": name, "hash": name} for name in "xyz"]},
            "has no model with the content of .*it has x, y, z",
        ),
    ],
)
def test_files_that_rank_nothing_are_one_line(folders: list[Path], change: dict[str, Any], message: str) -> None:
    with pytest.raises(MergeError, match=message):
        _weights(folders, {**basins(folders), **change})


def test_a_ranking_that_was_changed_since_it_was_written_is_not_used(folders: list[Path]) -> None:
    """One loss by hand, or no checksum as older versions wrote it; the control: the file as it was written ranks."""
    models = [open_checkpoint(str(folder)) for folder in folders]
    path = write(basins(folders))
    assert ranked_soup(path, models, False).weights == (1.0, 1.0, 0.0)
    text = path.read_text(encoding="utf-8")
    for changed in (text.replace("0.25", "0.15"), json.dumps(basins(folders))):
        assert changed != text
        path.write_text(changed, encoding="utf-8")
        with pytest.raises(MergeError, match="was changed since it was written, or an older version wrote it") as error:
            ranked_soup(path, models, False)
        assert "\n" not in str(error.value)


def test_a_missing_file_and_recipes_that_change_averages_are_one_line(folders: list[Path]) -> None:
    with pytest.raises(MergeError, match=r"basins\.json"):
        run(soup(folders))
    write(basins(folders))
    with pytest.raises(MergeError, match="ranks plain averages, and this recipe has overrides"):
        run(soup(folders, overrides=[{"tensors": "classifier.*", "method": "linear"}]))
    assert not Path("out").exists()
