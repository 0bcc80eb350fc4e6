"""Legacy names: what transformers renames, what it takes apart by rows, and what no rule of its reaches."""

from __future__ import annotations

from typing import Any

import pytest
from architecture_case import CASES

from merge.checkpoints.names import renamed as legacy_names
from merge.checkpoints.names.renamed import names_today
from merge.checkpoints.structure import structure_of

VIT = structure_of(CASES["ViTForImageClassification"][0])
QUERY = "vit.encoder.layer.0.attention.attention.query.weight"


def test_a_renamed_tensor_has_one_name_today_and_a_fused_one_several_in_the_order_of_its_rows() -> None:
    nomic = structure_of(CASES["NomicBertForMaskedLM"][0])
    at = "nomic_bert.layers.1.self_attn"
    assert names_today(VIT, [QUERY]) == {QUERY: ("vit.layers.0.attention.q_proj.weight",)}
    assert names_today(nomic, ["nomic_bert.encoder.layers.1.attn.Wqkv.weight"]) == {
        "nomic_bert.encoder.layers.1.attn.Wqkv.weight": tuple(f"{at}.{part}_proj.weight" for part in "qkv")
    }


def test_a_file_of_the_base_model_is_renamed_inside_a_model_with_a_head() -> None:
    bare = QUERY.removeprefix("vit.")
    assert names_today(VIT, [bare]) == {bare: ("vit.layers.0.attention.q_proj.weight",)}


@pytest.mark.parametrize("name", ["vit.layers.0.attention.q_proj.weight", "other", QUERY.replace(".0.", ".7.")])
def test_what_no_rule_leads_to_a_tensor_of_the_model_is_absent(name: str) -> None:
    """Today's names, foreign ones, and a layer that the model does not have."""
    assert names_today(VIT, [name, QUERY]).keys() == {QUERY}


def test_what_was_asked_once_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import of transformers takes longer than a merge: the second time, nobody is asked."""
    expected = names_today(VIT, [QUERY, "other"])

    def fail(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(legacy_names, "_ask_transformers", fail)
    assert names_today(VIT, ["other", QUERY]) == expected
    assert names_today(VIT, []) == {}
    with pytest.raises(AssertionError):
        names_today(VIT, ["never asked before"])


def test_a_tensor_taken_apart_in_another_way_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only blocks of rows are views of a file; all else would have to be computed, and is carried under its own name."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import Chunk, WeightConverter

    targets = [f"attention.{part}_proj" for part in "qkv"]

    def rules(dim: int) -> Any:
        return lambda _: [WeightConverter(["attention.fused"], targets, [Chunk(dim=dim)])]

    name = "vit.layers.0.attention.fused.weight"
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", rules(1))
    assert legacy_names._ask_transformers(VIT, [name]) == {}
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", rules(0))
    assert legacy_names._ask_transformers(VIT, [name]).keys() == {name}
