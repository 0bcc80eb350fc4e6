"""The parameters of a model's forward method, by what they are for.

Inputs decide the outputs. Some of them only the model itself can make: embeddings of tokens, and the states of an
earlier call (keys and values, the encoder's outputs). Answers are what a loss compares the outputs with; switches choose
what is returned.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

# Input of vectors -> the tokens that the model's own table embeds to them.
EMBEDDED = {"inputs_embeds": "input_ids", "decoder_inputs_embeds": "decoder_input_ids"}
# State of an earlier call -> the switch that makes a call return it.
STATES = {
    "cache": "use_cache",
    "past_key_values": "use_cache",
    "past_buckets_states": "use_cache",
    "state": "use_cache",
    "mems": "use_mems",
    "encoder_outputs": "",
}
# Input -> the setting without which a model has no part that reads it; some say so with an error, some ignore it.
PARTS = {
    "encoder_hidden_states": "add_cross_attention",
    "encoder_attention_mask": "add_cross_attention",
    "bool_masked_pos": "use_mask_token",
}
_ANSWERS = re.compile(
    r"(.*_)?labels?|labels_\w+|start_positions|end_positions|is_impossible|ans|float_answer|numeric_values(_scale)?"
    r"|num_items_in_batch"
)
_RETURNS = re.compile(
    r"output_\w+|return_\w+|use_cache|use_mems|logits_to_keep|num_logits_to_keep|reduce_loss|reduction"
)


@dataclass(frozen=True)
class Parameters:
    """The parameters of a forward method.

    Attributes:
        inputs: of values that a caller gives.
        embedded: inputs of vectors that the model's own table of embeddings makes.
        states: of an earlier call.
        switches: other true or false settings -> their default.
        ignored: answers, and switches of what is returned.
    """

    inputs: tuple[str, ...]
    embedded: tuple[str, ...]
    states: tuple[str, ...]
    switches: dict[str, bool]
    ignored: tuple[str, ...]


def parameters_of(model: Any) -> Parameters:
    """Return the parameters of the model's forward method, without `self` and open keyword arguments."""
    inputs: list[str] = []
    embedded, states, ignored, switches = list[str](), list[str](), list[str](), dict[str, bool]()
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if _ANSWERS.fullmatch(name) or _RETURNS.fullmatch(name):
            ignored.append(name)
        elif name in EMBEDDED:
            embedded.append(name)
        elif name in STATES:
            states.append(name)
        elif re.match(r"(typing\.)?(Optional\[)?bool\b", _annotation(parameter)):
            switches[name] = parameter.default is True
        else:
            inputs.append(name)
    return Parameters(tuple(inputs), tuple(embedded), tuple(states), switches, tuple(ignored))


def _annotation(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
