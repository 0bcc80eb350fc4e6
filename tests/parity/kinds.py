"""The kinds of mergekit file that people publish: model cards, mergekit's own examples, issues, dumps of its other tools.

One of each, on four tiny models of one start; names of models and lengths are ours, keys and values as published.
"""

from __future__ import annotations

import dataclasses

SAME, OTHERWISE, REFUSED = "same result", "runs, difference named", "refused, reason named"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: what is particular to it.
        text: the file.
        outcome: SAME (every tensor is mergekit's up to rounding), OTHERWISE or REFUSED.
        words: of the note that names the difference, or of the refusal.
        models: of decoders, of encoders with a classification head, of GPT-2, which stores weights as (inputs, outputs),
            or decoders stored in bfloat16.
    """

    name: str
    text: str
    outcome: str = SAME
    words: str = ""
    models: str = "decoders"


def _of_models(method: str, per_model: tuple[str, ...], rest: str = "") -> str:
    names = ("a", "b", "c")[: len(per_model)]
    lines = [
        f"  - model: ./{name}" + (f"\n    parameters: {{{own}}}" if own else "")
        for name, own in zip(names, per_model, strict=True)
    ]
    return "\n".join(["models:", *lines, f"merge_method: {method}", rest]) + "\n"


FLOAT32 = "dtype: float32"
BASE = "base_model: ./base\ndtype: float32"
FILTERED = "weight: [{filter: self_attn, value: 0.8}, {filter: mlp, value: 0.3}, {value: 0.5}]"
STRAY = (
    "normalize: true, int8_mask: true, rescale: true, filter_wise: false, smooth: false, allow_negative_weights: false"
)
WEIGHTS = ("weight: 0.6", "weight: 0.4")

KINDS: tuple[Kind, ...] = (
    Kind("linear: a weight for each model", _of_models("linear", WEIGHTS, FLOAT32)),
    Kind("linear: weights that are not normalised", _of_models("linear", WEIGHTS, "parameters: {normalize: false}")),
    Kind(
        "linear: a gradient of weights over the layers",
        _of_models("linear", ("weight: [0.2, 0.9, 0.4]", "weight: 0.5")),
    ),
    Kind(
        "linear: weights by filter",
        _of_models(
            "linear",
            (FILTERED, "weight: 0.5"),
        ),
    ),
    Kind("linear: one weight for all, three models", _of_models("linear", ("", "", ""), "parameters: {weight: 1.0}")),
    Kind(
        "linear: one model, to change its dtype",
        _of_models("linear", ("weight: 1.0",), "dtype: float32\nout_dtype: bfloat16"),
    ),
    Kind(
        "linear in bfloat16, of models stored so", _of_models("linear", WEIGHTS, "dtype: bfloat16"), models="bfloat16"
    ),
    Kind(
        "slerp in bfloat16, of models stored so",
        _of_models("slerp", ("", ""), "base_model: ./a\nparameters: {t: [0.3, 0.7]}\ndtype: bfloat16"),
        models="bfloat16",
    ),
    Kind(
        "linear in bfloat16, of models stored in float32",
        _of_models("linear", WEIGHTS, "dtype: bfloat16"),
        OTHERWISE,
        "mergekit rounds the models first",
    ),
    Kind(
        "linear, where the base_model is one of the models",
        _of_models("linear", WEIGHTS, "base_model: ./a\ndtype: float32"),
    ),
    Kind("linear of encoders with a classifier", _of_models("linear", WEIGHTS, FLOAT32), models="encoders"),
    Kind(
        "linear, as mergekit-evolve writes it: slices, flags as numbers",
        "base_model: ./a\ndtype: float32\nmerge_method: linear\nparameters: {int8_mask: 1.0, normalize: 1.0}\nslices:\n"
        "- sources:\n  - {layer_range: [0, 2], model: ./a, parameters: {weight: 0.84}}\n"
        "  - {layer_range: [0, 2], model: ./b, parameters: {weight: 0.16}}\n"
        "- sources:\n  - {layer_range: [2, 4], model: ./a, parameters: {weight: 0.3}}\n"
        "  - {layer_range: [2, 4], model: ./b, parameters: {weight: 0.7}}\n",
    ),
    Kind(
        "linear, as mergekit-evolve writes it: filters in every slice",
        "merge_method: linear\nparameters: {normalize: 1.0}\nslices:\n"
        "- sources:\n  - {layer_range: [0, 2], model: ./a, parameters: {weight: [{filter: mlp, value: 0.2}, {value: 0.9}]}}\n"
        "  - {layer_range: [0, 2], model: ./b, parameters: {weight: [{filter: mlp, value: 0.7}, {value: 0.1}]}}\n"
        "- sources:\n  - {layer_range: [2, 4], model: ./a, parameters: {weight: [{filter: self_attn, value: 0.4}, "
        "{value: 0.6}]}}\n"
        "  - {layer_range: [2, 4], model: ./b, parameters: {weight: 0.5}}\n",
    ),
    Kind(
        "linear in modules: default: slices",
        "dtype: float32\nmerge_method: linear\nmodules:\n  default:\n    slices:\n    - sources:\n"
        "      - {layer_range: [0, 4], model: ./a, parameters: {weight: 0.25}}\n"
        "      - {layer_range: [0, 4], model: ./b, parameters: {weight: 1.0}}\nparameters: {int8_mask: 1.0, normalize: 1.0}\n",
    ),
    Kind(
        "linear over stacked slices, a second model of weight 0",
        "merge_method: linear\nparameters: {weight: 1.0}\nslices:\n"
        "  - sources:\n      - {model: ./a, layer_range: [0, 1]}\n"
        "      - {model: ./b, layer_range: [0, 1], parameters: {weight: 0}}\n"
        "  - sources: [{model: ./a, layer_range: [1, 3]}]\n  - sources: [{model: ./b, layer_range: [1, 4]}]\ndtype: float32\n",
    ),
    Kind("slerp: one t", _of_models("slerp", ("", ""), "base_model: ./a\nparameters: {t: 0.5}\ndtype: float32")),
    Kind(
        "slerp: slices, gradients by filter",
        "slices:\n  - sources:\n      - {model: ./a, layer_range: [0, 4]}\n      - {model: ./b, layer_range: [0, 4]}\n"
        "merge_method: slerp\nbase_model: ./a\nparameters:\n  t:\n    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}\n"
        "    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}\n    - {value: 0.5}\ndtype: float32\n",
    ),
    Kind(
        "slerp: a gradient over all tensors, the last ones too",
        _of_models("slerp", ("", ""), "base_model: ./a\nparameters: {t: [0.1, 0.6, 0.9]}\ndtype: float32"),
    ),
    Kind(
        "slerp: embeddings and head by filter",
        _of_models(
            "slerp",
            ("", ""),
            "base_model: ./a\nparameters: {t: [{filter: embed_tokens, value: 0.0}, {filter: lm_head, value: 1.0}, {value: 0.4}]}",
        ),
    ),
    Kind(
        "slerp, where the base_model is not listed", _of_models("slerp", ("",), "base_model: ./b\nparameters: {t: 0.3}")
    ),
    Kind(
        "slerp of encoders, gradients by filter",
        _of_models(
            "slerp", ("", ""), "base_model: ./a\nparameters: {t: [{filter: attention, value: [0, 1]}, {value: 0.5}]}"
        ),
        models="encoders",
    ),
    Kind(
        "ties: weights and densities",
        _of_models(
            "ties",
            ("density: 0.5, weight: 0.5", "density: 0.5, weight: 0.3"),
            f"{BASE}\nparameters: {{normalize: true, int8_mask: true}}",
        ),
    ),
    Kind(
        "ties: the base among the models, without parameters",
        _of_models("ties", ("density: 0.5, weight: 0.5", "density: 0.4, weight: 0.3"), BASE).replace(
            "models:", "models:\n  - model: ./base"
        ),
    ),
    Kind(
        "ties: gradients of density and weight, a filter",
        _of_models(
            "ties",
            (
                "density: [1, 0.7, 0.1], weight: 1.0",
                "density: 0.5, weight: [0, 0.3, 0.7, 1]",
                "density: 0.33, weight: [{filter: mlp, value: 0.5}, {value: 0.1}]",
            ),
            BASE + "\nparameters: {normalize: true, int8_mask: true}",
        ),
    ),
    Kind(
        "ties: a density from 0",
        _of_models("ties", ("density: [0, 0.25, 0.5, 1], weight: 1.0", "density: 0.5, weight: 0.5"), BASE),
    ),
    Kind(
        "ties: rescaled",
        _of_models("ties", ("density: 0.5, weight: 0.5",) * 2, f"{BASE}\nparameters: {{rescale: true}}"),
    ),
    Kind(
        "slerp with embed_slerp, which older versions had",
        _of_models("slerp", ("", ""), "base_model: ./a\nparameters: {t: 0.5, embed_slerp: true}\ndtype: float32"),
        words="embed_slerp is left out",
    ),
    Kind("ties: without a density", _of_models("ties", WEIGHTS, BASE)),
    Kind(
        "ties in bfloat16",
        _of_models("ties", ("density: 0.5, weight: 0.5",) * 2, "base_model: ./base\ndtype: bfloat16"),
        OTHERWISE,
        "mergekit rounds the models first",
    ),
    Kind(
        "ties: a negative weight, summed",
        _of_models(
            "ties",
            ("density: 0.5, weight: 1", "density: 0.5, weight: -0.3"),
            f"{BASE}\nparameters: {{normalize: false}}",
        ),
    ),
    Kind(
        "ties: a negative weight in a mean",
        _of_models("ties", ("density: 0.5, weight: 1", "density: 0.5, weight: -0.3"), BASE),
        REFUSED,
        "weights must not be negative when agreeing models are averaged",
    ),
    Kind("task_arithmetic", _of_models("task_arithmetic", WEIGHTS, BASE)),
    Kind(
        "task_arithmetic: lambda, a model taken away",
        _of_models("task_arithmetic", ("weight: 1", "weight: -0.5"), f"{BASE}\nparameters: {{lambda: 0.8}}"),
    ),
    Kind(
        "task_arithmetic over slices with the base in each, a stray key",
        "base_model: ./base\ndtype: float32\nmerge_method: task_arithmetic\nallow_negative_weights: true\n"
        "parameters: {int8_mask: 1.0, normalize: 1.0}\nslices:\n"
        + "".join(
            f"- sources:\n  - {{layer_range: [{i}, {i + 2}], model: ./a, parameters: {{weight: {w}}}}}\n"
            f"  - {{layer_range: [{i}, {i + 2}], model: ./b, parameters: {{weight: {1 - w}}}}}\n"
            f"  - {{layer_range: [{i}, {i + 2}], model: ./base}}\n"
            for i, w in ((0, 0.9), (2, 0.35))
        ),
        words="allow_negative_weights is left out",
    ),
    Kind(
        "dare_ties: random masks",
        _of_models(
            "dare_ties",
            ("density: 0.53, weight: 0.4", "density: 0.53, weight: 0.3"),
            f"{BASE}\nparameters: {{int8_mask: true}}",
        ),
        OTHERWISE,
        "random masks differ",
    ),
    Kind(
        "dare_ties: a density of 1",
        _of_models("dare_ties", ("density: 1, weight: 0.4", "density: 1, weight: 0.3"), BASE),
    ),
    Kind(
        "dare_linear: random masks",
        _of_models("dare_linear", ("density: 0.5, weight: 0.4", "density: 0.5, weight: 0.3"), BASE),
        OTHERWISE,
        "random masks differ",
    ),
    Kind(
        "della: random masks",
        _of_models("della", ("density: 0.5, epsilon: 0.1, weight: 0.4",) * 2, BASE),
        OTHERWISE,
        "random masks differ",
    ),
    Kind("della_linear: nothing dropped", _of_models("della_linear", WEIGHTS, BASE)),
    Kind("breadcrumbs", _of_models("breadcrumbs", ("density: 0.9, gamma: 0.01, weight: 0.5",) * 2, BASE)),
    Kind("breadcrumbs_ties", _of_models("breadcrumbs_ties", ("density: 0.9, gamma: 0.01, weight: 0.5",) * 2, BASE)),
    Kind("sce", _of_models("sce", ("", ""), f"{BASE}\nparameters: {{select_topk: 0.5}}")),
    Kind(
        "sce with parameters of other methods and versions",
        _of_models(
            "sce",
            ("weight: 1.0, density: 0.9",) * 2,
            f"{BASE}\nparameters: {{{STRAY}, lambda: 1.0, select_topk: 0.1}}",
        ),
    ),
    Kind(
        "sce: select_topk outside parameters, where mergekit does not read it",
        _of_models("sce", ("", ""), f"{BASE}\nselect_topk: 0.15"),
        REFUSED,
        "select_topk: unknown key",
    ),
    Kind("model_stock", _of_models("model_stock", ("", "", ""), BASE)),
    Kind("model_stock by rows", _of_models("model_stock", ("", ""), f"{BASE}\nparameters: {{filter_wise: true}}")),
    Kind("nuslerp", _of_models("nuslerp", WEIGHTS, FLOAT32)),
    Kind(
        "nuslerp of task vectors by rows",
        _of_models(
            "nuslerp",
            WEIGHTS,
            "base_model: ./base\ndtype: float64\nout_dtype: float32\n"
            "parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}",
        ),
    ),
    Kind("multislerp", _of_models("multislerp", WEIGHTS, FLOAT32)),
    Kind(
        "karcher",
        _of_models(
            "karcher", ("", "", ""), "parameters: {max_iter: 100, tol: 1e-9}\ndtype: float64\nout_dtype: float32"
        ),
    ),
    Kind(
        "GPT-2: model_stock by rows, which are inputs there",
        _of_models("model_stock", ("", ""), f"{BASE}\nparameters: {{filter_wise: true}}"),
        models="gpt2",
    ),
    Kind(
        "GPT-2: nuslerp by rows, which are inputs there",
        _of_models("nuslerp", WEIGHTS, f"{FLOAT32}\nparameters: {{nuslerp_flatten: false}}"),
        models="gpt2",
    ),
    Kind("GPT-2: ties", _of_models("ties", ("density: 0.5, weight: 0.5",) * 2, BASE), models="gpt2"),
    Kind("nearswap", _of_models("nearswap", ("", ""), "base_model: ./a\nparameters: {t: 0.01}\ndtype: float32")),
    Kind("arcee_fusion", _of_models("arcee_fusion", ("",), BASE)),
    Kind("ram", _of_models("ram", ("", ""), BASE)),
    Kind("ramplus_tl", _of_models("ramplus_tl", ("", ""), f"{BASE}\nparameters: {{r: 0.2, alpha: 0.3}}")),
    Kind(
        "passthrough: stacked layers of two models",
        "slices:\n  - sources: [{model: ./a, layer_range: [0, 3]}]\n  - sources: [{model: ./b, layer_range: [1, 4]}]\n"
        "merge_method: passthrough\ndtype: float32\n",
    ),
    Kind(
        "passthrough: repeated layers with their outputs scaled",
        "merge_method: passthrough\nslices:\n  - sources: [{model: ./a, layer_range: [0, 2]}]\n"
        "  - sources: [{model: ./a, layer_range: [1, 3], parameters: {scale: [{filter: o_proj, value: 0.0}, "
        "{filter: down_proj, value: 0.0}, {value: 1.0}]}}]\n"
        "  - sources: [{model: ./a, layer_range: [3, 4]}]\n",
    ),
    Kind(
        "passthrough: layers left out",
        "slices:\n  - sources: [{model: ./a, layer_range: [0, 1]}]\n  - sources: [{model: ./a, layer_range: [3, 4]}]\n"
        "merge_method: passthrough\ndtype: float32\n",
    ),
    Kind(
        "models written as mappings",
        "merge_method: linear\nmodels:\n- model: {model: {path: ./a, revision: null}, lora: null, override_architecture: null}\n"
        "  parameters: {weight: 0.5}\n- model: {model: {path: ./b}}\n  parameters: {weight: 0.5}\n",
    ),
    Kind("numbers as text", _of_models("linear", ('weight: "0.6"', 'weight: "4e-1"'), FLOAT32)),
    Kind(
        "a name, as mergekit-multi has it",
        "name: first\n" + _of_models("linear", WEIGHTS, FLOAT32),
        words="name is left out",
    ),
    Kind(
        "several documents of mergekit-multi",
        _of_models("linear", WEIGHTS) + "---\n" + _of_models("linear", WEIGHTS),
        REFUSED,
        "a second document begins here",
    ),
    Kind(
        "tokenizer_source: base",
        _of_models("ties", WEIGHTS, f"{BASE}\ntokenizer_source: base"),
        models="encoders",
        words="a token that a model lacks",
    ),
    Kind(
        "tokenizer: source: a model",
        _of_models("linear", WEIGHTS, "tokenizer: {source: ./a}"),
        models="encoders",
        words="a token that a model lacks",
    ),
    Kind(
        "chat_template: auto",
        _of_models("linear", WEIGHTS, "chat_template: auto"),
        words="chat_template auto is left out",
    ),
    Kind(
        "chat_template: chatml",
        _of_models("linear", WEIGHTS, "chat_template: chatml"),
        words="chat_template chatml is left out",
    ),
    Kind(
        "tokenizer with a rule for some tokens",
        _of_models("linear", WEIGHTS, "tokenizer: {source: union, tokens: {x: {source: ./a, force: true}}}"),
        REFUSED,
        "tokenizer.tokens has no counterpart",
    ),
    Kind(
        "tokenizer: pad_to_multiple_of",
        _of_models("linear", WEIGHTS, "tokenizer: {source: ./a, pad_to_multiple_of: 8}"),
        REFUSED,
        "tokenizer.pad_to_multiple_of has no counterpart",
    ),
    Kind(
        "a LoRA adapter, model+adapter",
        _of_models("linear", WEIGHTS).replace("./a", "./a+./lora"),
        REFUSED,
        "names a LoRA adapter",
    ),
    Kind(
        "modules of a vision-language model",
        "merge_method: linear\nmodules:\n  text_decoder: {models: [{model: ./a, parameters: {weight: 1}}]}\n"
        "  vision_tower: {models: [{model: ./b, parameters: {weight: 1}}]}\n",
        REFUSED,
        "modules text_decoder, vision_tower",
    ),
    Kind(
        "a method for one slice, which mergekit does not read",
        "merge_method: passthrough\nslices:\n  - merge_method: slerp\n    sources: [{model: ./a, layer_range: [0, 4]}]\n",
        REFUSED,
        "mergekit takes no method of a slice",
    ),
    Kind(
        "a misspelt key (dype), which mergekit ignores",
        _of_models("linear", WEIGHTS, "dype: float32"),
        REFUSED,
        "dype: unknown key. Did you mean 'dtype'?",
    ),
    Kind(
        "a misspelt parameter (densitty), which mergekit ignores",
        _of_models("ties", ("weight: 1, densitty: 0.5", "weight: 1"), BASE),
        REFUSED,
        "no parameter 'densitty'",
    ),
    Kind(
        "the same model twice, which mergekit refuses too",
        _of_models("linear", WEIGHTS).replace("./b", "./a"),
        REFUSED,
        "listed twice",
    ),
)
