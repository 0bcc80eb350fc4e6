"""The card says what was merged and how it scores, in the forms that the Hub reads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import save_checkpoint

from merge.checkpoints.open import open_checkpoint
from merge.errors import CheckpointError
from merge.publish.card import licence_of, loading_class, metadata, score_lines, write_card
from merge.publish.card_results import add_results
from merge.recipe.recipe import make_recipe
from merge.run.run import run

FACTS: dict[str, Any] = {
    "name": "soup {name}",
    "recipe_yaml": "models:\n- a\n- org/b\n",
    "method": "linear",
    "architecture": "BertForSequenceClassification",
    "models": [
        {"source": "a", "commit": None, "content_hash": "a" * 64},
        {"source": "org/b", "commit": "c0ffee", "content_hash": "b" * 64},
    ],
    "licences": ["apache-2.0"],
    "alignment": [],
    "calibration": None,
    "notes": ["labels of b reordered by name"],
}


def front(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    return loaded


def test_the_header_names_hub_models_and_a_shared_licence_only(tmp_path: Path) -> None:
    """A local path means nothing to a reader of the Hub, and a licence that not all sources state is not ours to give."""
    write_card(tmp_path, FACTS)
    assert front(tmp_path) == {
        "library_name": "transformers",
        "tags": ["merge", "merge-models"],
        "license": "apache-2.0",
        "base_model": ["org/b"],
        "base_model_relation": "merge",
        "pipeline_tag": "text-classification",
    }
    assert "license" not in metadata(FACTS | {"licences": ["apache-2.0", None]})
    assert "license" not in metadata(FACTS | {"licences": ["apache-2.0", "mit"]})
    assert "base_model" not in metadata(FACTS | {"models": FACTS["models"][:1]})


def test_a_name_is_written_as_it_is(tmp_path: Path) -> None:
    """Braces and quotes too: the text is not a template."""
    write_card(tmp_path, FACTS | {"name": "it's {name}", "notes": ["{name}"]})
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "# it's {name}\n" in text
    assert 'AutoModelForSequenceClassification.from_pretrained("it\'s {name}")' in text
    assert "- {name}\n" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: mit\n---\n# x", "mit"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None),
        ("---\ntags: [x]\n---\n", None),
        ("---\n: [\n---\n", None),
        ("---\ndate: 2020-99-99\n---\n", None),
        ("# no header", None),
        ("---\nlicense: mit\n---\n\xff", "mit"),
    ],
)
def test_the_licence_of_a_source_is_read_off_its_card(text: str, expected: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(text.encode("latin-1"))
    assert licence_of(tmp_path / "README.md") == expected
    assert licence_of(tmp_path / "absent") is None


def scored(checkpoint_hash: str, **scores: float | None) -> dict[str, Any]:
    return {"kind": "scores", "key": checkpoint_hash, "task": "mnli", "data": "dev.jsonl", "split": "dev", "n": 40,
            "model": {"name": "m", "hash": checkpoint_hash},
            "scores": scores}  # fmt: skip


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    """Return a merged folder, and the content hashes of the merge and its two models."""
    folder = tmp_path_factory.mktemp("card")
    for seed, name in enumerate("ab"):
        save_checkpoint(folder / name, seed=seed)
    run(make_recipe({"models": [str(folder / "a"), str(folder / "b")], "output": str(folder / "m")}))
    return folder / "m", tuple(open_checkpoint(str(folder / name)).content_hash for name in "mab")


def test_results_of_the_merge_and_its_models_enter_the_card(
    merged: tuple[Path, tuple[str, ...]], tmp_path: Path
) -> None:
    """Scores of the merge also as the Hub's model-index; those of strangers stay out; figures that are not finite are '-'."""
    folder, (own, a, b) = merged
    curve = {"name": "naive", "lam": [0, 1], "barrier": None, "epsilon": 0.25, "convexity_gap": 0.5}
    curve |= {"loss": [0.5, 0.5], "accuracy": [0.5, 0.5], "barrier_lam": None, "standard_error": None}
    curve["calibrated_barrier"] = 0.125
    barrier = {
        "kind": "barrier",
        "key": "barrier",
        "task": "mnli",
        "split": "dev",
        "data": "dev.jsonl",
        "n": 40,
        "a": {"name": "a", "hash": a},
        "b": {"name": "b", "hash": b},
        "curves": [curve],
    }
    barrier["curves"] = [curve]
    stranger = {**barrier, "b": {"name": "c", "hash": "c" * 64}}
    records = [scored(own, accuracy=0.75, loss=0.5), scored(a, accuracy=0.5), scored("d" * 64, accuracy=0.1, loss=1.0)]
    results = tmp_path / "results.json"
    results.write_text(
        json.dumps({"results": [*records, barrier, stranger, {"kind": "new", "key": "n"}]}), encoding="utf-8"
    )
    assert add_results(folder, results) == 3
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "| **this merge** | mnli (dev.jsonl) | 40 | accuracy 0.7500 | 0.5000 |" in text
    assert f"| {folder.parent / 'a'} | mnli (dev.jsonl) | 40 | accuracy 0.5000 | - |" in text
    assert "| naive | - | 0.1250 | 0.2500 | 0.5000 |" in text
    assert "Loss barrier on mnli (dev.jsonl, 40 rows), 2 points:" in text
    assert "0.1000" not in text
    index = front(folder)["model-index"]
    assert [entry["metrics"] for entry in index[0]["results"]] == [
        [{"type": "accuracy", "value": 0.75}, {"type": "loss", "value": 0.5}]
    ]
    manifest = json.loads((folder / "merge.json").read_text(encoding="utf-8"))
    assert manifest["files"]["README.md"] == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("data", ["dev.tsv, 39 rows", "dev.tsv, 39 of 1,000 rows drawn with seed 0", "rows.tsv, 1 row"])
def test_the_rows_of_a_barrier_are_stated_once(data: str) -> None:
    """evaluate-models states them with the file; the control is a file alone, in the test above."""
    curve = {"name": "naive", "lam": [0, 1], "barrier": 0.5, "epsilon": 0.25, "convexity_gap": 0.5}
    barrier = {"kind": "barrier", "task": "mnli", "data": data, "n": 39, "curves": [curve]}
    assert score_lines([barrier], {"models": []}, "this merge")[1] == f"Loss barrier on mnli ({data}), 2 points:"


@pytest.mark.parametrize(
    ("scores", "cells"),
    [
        ({"matthews_correlation": 0.5, "loss": 0.25}, "matthews_correlation 0.5000 | 0.2500"),
        ({"pearson": 0.75, "spearmanr": None, "loss": 0.5}, "pearson 0.7500, spearmanr - | 0.5000"),
        ({"accuracy": 0.5, "f1": 0.625, "loss": None}, "accuracy 0.5000, f1 0.6250 | -"),
        ({"loss": 0.5}, "- | 0.5000"),
    ],
)
def test_a_task_is_told_by_its_own_scores(
    scores: dict[str, float | None], cells: str, merged: tuple[Path, tuple[str, ...]], tmp_path: Path
) -> None:
    """CoLA and STS-B have no accuracy, MRPC has a second score; one that is undefined is '-'."""
    folder, (own, *_) = merged
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"results": [scored(own, **scores)]}), encoding="utf-8")
    assert add_results(folder, results) == 1
    lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    assert "| model | task | rows | scores | loss |" in lines
    assert f"| **this merge** | mnli (dev.jsonl) | 40 | {cells} |" in lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "No such file"),
        ("{", "cannot be read: it is malformed"),
        ("[]", "is not a results store"),
        ('{"results": 5}', "is not a results store"),
        ('{"results": [{}]}', "results.0. has no kind"),
        ('{"results": [{"kind": "scores"}]}', "results.0. has no key"),
        ('{"results": []}', "holds no score of"),
    ],
)
def test_results_that_say_nothing_of_the_merge_are_one_line(
    text: str | None, expected: str, merged: tuple[Path, tuple[str, ...]], tmp_path: Path
) -> None:
    results = tmp_path / "results.json"
    if text is not None:
        results.write_text(text, encoding="utf-8")
    before = (merged[0] / "README.md").read_bytes()
    with pytest.raises(CheckpointError, match=expected) as caught:
        add_results(merged[0], results)
    assert "\n" not in str(caught.value)
    assert (merged[0] / "README.md").read_bytes() == before


def test_a_folder_that_was_not_merged_is_one_line(merged: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="merge-models card needs a merged folder"):
        add_results(merged[0].parent / "a", tmp_path / "results.json")


def test_a_part_of_a_familys_model_is_loaded_by_its_own_class() -> None:
    """AutoModel would load the whole, with random weights for what the part lacks. The control: classes that it gives back."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    whole = {name for names in MODEL_MAPPING_NAMES.values() for name in ((names,) if isinstance(names, str) else names)}
    words = ("EncoderModel", "DecoderModel", "TextModel", "VisionModel", "AudioModel", "BaseModel")
    parts = [name for name in transformers.__all__ if name.endswith(words) and name not in whole]
    assert {"T5EncoderModel", "MT5EncoderModel", "UMT5EncoderModel"} <= set(parts)
    assert len(parts) > 40
    assert [name for name in parts if loading_class(name) != name] == []
    assert {loading_class(name) for name in ("BertModel", "T5Model", "GPT2Model", "ModernBertModel")} == {"AutoModel"}


def test_the_class_that_the_card_loads_is_that_of_the_model() -> None:
    """Every model that transformers lists under a task: the AutoModel class of the card must give back its class.

    transformers' own tables are read. A family whose class is listed under two model types is loaded by its config's type.
    """
    from transformers.models.auto import modeling_auto

    tables = {
        "AutoModel": "MODEL_MAPPING_NAMES",
        "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
        "AutoModelForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
        "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
        "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        "AutoModelForMultipleChoice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",
        "AutoModelForNextSentencePrediction": "MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES",
        "AutoModelForPreTraining": "MODEL_FOR_PRETRAINING_MAPPING_NAMES",
        "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    }
    families = {
        "albert", "bert", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "esm", "gpt2",
        "llama", "modernbert", "mpnet", "nomic_bert", "rembert", "roberta", "roformer", "vit", "xlm-roberta",
    }  # fmt: skip
    checked = 0
    for table in tables.values():
        for family, name in getattr(modeling_auto, table).items():
            names = (name,) if isinstance(name, str) else name
            for architecture in names if family in families else ():
                loaded = loading_class(architecture)
                listed = getattr(modeling_auto, tables[loaded]).get(family) if loaded in tables else architecture
                assert architecture in ((listed,) if isinstance(listed, str) else listed), (architecture, loaded)
                checked += 1
    assert checked > 80


def test_the_card_says_what_was_done_and_names_the_base(tmp_path: Path) -> None:
    """ties and slerp are no averages, one model is not "1 models", and the base is an input."""
    base = {"source": "org/base", "commit": "beef", "content_hash": "c" * 64}
    write_card(tmp_path, FACTS | {"method": "ties", "base": base})
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "2 models merged with merge-models by `ties`, from their base org/base." in text
    assert "| org/base (base) | beef | `cccccccccccccccc` |" in text
    assert "averaged" not in text
    write_card(tmp_path, FACTS | {"method": "passthrough", "models": FACTS["models"][:1]})
    assert "from 1 model without averaging" in (tmp_path / "README.md").read_text(encoding="utf-8")


PACKAGE = "sentence_transformers.models"
KINDS = [
    ({"modules.json": [{"type": f"{PACKAGE}.Transformer"}, {"type": f"{PACKAGE}.Pooling"}]},
     ("sentence-transformers", "sentence-similarity", "SentenceTransformer('merged')")),
    ({"modules.json": [{"type": f"{PACKAGE}.Transformer"}, {"type": "sentence_transformers.sparse_encoder.SpladePooling"}]},
     ("sentence-transformers", "feature-extraction", "SparseEncoder('merged')")),
    ({"modules.json": [{"type": f"{PACKAGE}.Transformer"}, {"type": "pylate.models.Dense.Dense"}]},
     ("PyLate", "sentence-similarity", "models.ColBERT('merged')")),
    ({"config.json": {"sentence_transformers": {"version": "5.0.0"}, "id2label": {"0": "LABEL_0"}}},
     ("sentence-transformers", "text-ranking", "CrossEncoder('merged')")),
    ({"config.json": {"sbert_ce_default_activation_function": "x.Identity", "id2label": {"0": "a", "1": "b"}}},
     ("sentence-transformers", "text-classification", "CrossEncoder('merged')")),
    ({"config_sentence_transformers.json": {"model_type": "MultiVectorEncoder"}, "modules.json": [{"type": "x.Transformer"}]},
     ("sentence-transformers", "sentence-similarity", "MultiVectorEncoder('merged')")),
    ({"config.json": {"id2label": {"0": "a"}}}, ("transformers", "text-classification", "AutoModelForSequenceClassification")),
]  # fmt: skip


@pytest.mark.parametrize(("files", "expected"), KINDS)
def test_a_card_names_the_library_that_loads_the_folder(
    tmp_path: Path, files: dict[str, Any], expected: tuple[str, str, str]
) -> None:
    """The Hub lists a model by its library and pipeline; the code on the card is of the same library."""
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value), encoding="utf-8")
    write_card(tmp_path, FACTS | {"name": "merged"})
    header, text = front(tmp_path), (tmp_path / "README.md").read_text(encoding="utf-8")
    assert (header["library_name"], header["pipeline_tag"]) == expected[:2]
    assert expected[2] in text
    assert ("from transformers" in text) == (expected[0] == "transformers")
    assert ("sentence-similarity" in header["tags"]) == (expected[2].startswith(("SentenceTransformer", "models.")))
    assert header["tags"][-2:] == ["merge", "merge-models"]
