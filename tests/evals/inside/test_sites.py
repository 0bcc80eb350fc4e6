"""Sites are the activations that transformers itself computes, without padding, in every family."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from classifier_families import classifier_config
from quick import quick_on
from tiny import random_tensors

from evals.inside.rows import Rows, see_sites
from evals.inside.sites import LOGITS, POOLER, Site, Sites, sites_of
from merge.checkpoints.inputs import random_inputs
from merge.checkpoints.transformers_model import build
from merge.errors import UsageError

# Families with every part of a layer, and one of another kind each.
FAMILIES = (
    "bert", "albert", "deberta", "deberta-v2", "distilbert", "electra", "gpt2", "llama", "megatron-bert", "modernbert", "mpnet",
    "nomic_bert", "opt", "roberta", "roberta-prelayernorm", "roformer", "xlnet",
)  # fmt: skip
# Whose last hidden state is normed once more, after the last layer.
NORMED = {"gpt2", "llama", "megatron-bert", "modernbert", "opt", "roberta-prelayernorm"}
PARTS_OF_BERT = ["attention", "attention norm", "ffn input", "ffn preactivation", "ffn hidden", "ffn", "output"]


def live(family: str, **changes: Any) -> Any:
    config = classifier_config(family, **changes)
    return build(config, random_tensors(config, 0, torch.float32))


def sites_and_rows(model: Any) -> tuple[Sites, dict[str, Any], Any, torch.Tensor]:
    sites, batch = sites_of(model), random_inputs(model.config.to_dict())[0]
    rows: dict[str, Rows] = {}

    def keep(site: Site, seen: Rows) -> None:
        rows[site.name] = replace(seen, values=seen.values.clone())

    see_sites(model, batch, sites.sites.values(), keep)
    return sites, rows, batch, batch["attention_mask"].bool()


@pytest.mark.parametrize("family", quick_on(("bert", "xlnet"), FAMILIES))
def test_layers_and_logits_are_the_hidden_states_of_transformers(family: str) -> None:
    model = live(family)
    sites, rows, batch, mask = sites_and_rows(model)
    with torch.inference_mode():
        output = model(**batch, output_hidden_states=True)
    states = [state[mask] for state in output.hidden_states]
    torch.testing.assert_close(rows["embeddings"].values, states[0])
    count = len(sites.layers) - (family in NORMED)
    assert len(sites.layers) == len(states) - 1 >= 2
    for k in range(count):
        torch.testing.assert_close(rows[f"layer {k} output"].values, states[k + 1])
        assert not torch.equal(rows[f"layer {k} output"].values, states[k])
    torch.testing.assert_close(rows[LOGITS].values, output.logits)
    assert rows[LOGITS].pooled
    for name in ("attention", "ffn input", "ffn hidden", "ffn"):
        assert f"layer 1 {name}" in rows or (family, name) == ("xlnet", "attention")
    texts = rows["embeddings"].texts
    assert texts.tolist() == [text for text, length in enumerate(mask.sum(1).tolist()) for _ in range(length)]


def test_the_parts_of_a_post_norm_layer_add_up_to_its_output() -> None:
    """output = norm(ffn input + ffn), hidden = gelu(preactivation), ffn = W hidden + b; by hand from the weights."""
    model = live("bert")
    sites, rows, _, _ = sites_and_rows(model)
    assert [site.kind for site in sites.sites.values() if site.layer == 1] == PARTS_OF_BERT
    part = {kind: rows[f"layer 1 {kind}"].values for kind in PARTS_OF_BERT}
    layer = model.bert.encoder.layer[1]
    norm, dense = layer.output.LayerNorm.requires_grad_(False), layer.output.dense.requires_grad_(False)
    shape, eps = (model.config.hidden_size,), norm.eps
    total = torch.nn.functional.layer_norm(part["ffn input"] + part["ffn"], shape, norm.weight, norm.bias, eps)
    torch.testing.assert_close(part["output"], total)
    torch.testing.assert_close(part["ffn hidden"], torch.nn.functional.gelu(part["ffn preactivation"]))
    torch.testing.assert_close(part["ffn"], part["ffn hidden"] @ dense.weight.T + dense.bias)
    torch.testing.assert_close(part["attention norm"], part["ffn input"])
    assert rows[POOLER].pooled


def test_layers_that_share_a_module_are_told_apart() -> None:
    """ALBERT: four layers in two groups. The hidden units of two layers of a group differ, as their inputs do."""
    sites, rows, _, _ = sites_and_rows(live("albert"))
    assert [(layer.path[-1], layer.run) for layer in sites.layers] == [("0", 0), ("0", 1), ("1", 0), ("1", 1)]
    assert not torch.equal(rows["layer 0 ffn hidden"].values, rows["layer 1 ffn hidden"].values)


def test_sites_are_chosen_by_name_and_by_kind() -> None:
    sites = sites_of(live("bert"))
    assert [site.name for site in sites.select(["ffn hidden", "embeddings"])] == [
        "embeddings", "layer 0 ffn hidden", "layer 1 ffn hidden",
    ]  # fmt: skip
    assert [site.name for site in sites.select(["layer 1 output"])] == ["layer 1 output"]
    with pytest.raises(UsageError, match=r"unknown site 'layer 2 output'\. Did you mean 'layer 1 output'"):
        sites.select(["layer 2 output"])


def test_a_model_with_two_inputs_has_no_sites() -> None:
    with pytest.raises(UsageError, match="T5ForSequenceClassification: this works for models with one text input"):
        sites_of(live("t5"))


def test_a_module_that_runs_without_being_called_is_named() -> None:
    """As SqueezeBERT runs its layers: no hook sees what they read."""
    model = live("bert")
    layer = model.bert.encoder.layer[0]
    model.bert.encoder.layer[0] = Uncalled(layer)
    sites = [Site("embeddings", "embeddings", None, "bert.encoder.layer.0.layer:in")]
    with pytest.raises(UsageError, match=r"'embeddings' .* does not call the module bert\.encoder\.layer\.0\.layer"):
        see_sites(model, random_inputs(model.config.to_dict())[0], sites, lambda *_: None)


class Uncalled(torch.nn.Module):
    """Runs a layer past its hooks."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.forward(*args, **kwargs)
