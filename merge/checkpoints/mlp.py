"""The plain multi-layer perceptron: a model of rows of numbers that transformers itself has no class for.

    logits = W_L relu(n_{L-1}(W_{L-1} ... relu(n_0(W_0 x + b_0)) ... + b_{L-1})) + b_L         n_i: LayerNorm, or nothing

A checkpoint of it is as any other: config.json with model_type "mlp" and safetensors, written by `save_pretrained`. This
package builds it by name. Importing this module registers it with transformers' Auto classes, for programs of one's own.

A row is read from text: its numbers, with blanks between them ("0.31 -1.2"). Tasks, calibration text and every command
then take such models as they take models of language.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import SequenceClassifierOutput

from merge.errors import CalibrationError, brief

if TYPE_CHECKING:
    from torch import Tensor

MODEL_TYPE = "mlp"


class MLPConfig(PreTrainedConfig):
    """The sizes of a multi-layer perceptron.

    Attributes:
        input_size: numbers of a row.
        hidden_size: units of every hidden layer.
        num_hidden_layers: hidden layers, the last (linear) layer not counted.
        hidden_act: the activation after each of them.
        layer_norm: whether a LayerNorm precedes each activation.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        input_size: int = 2,
        hidden_size: int = 16,
        num_hidden_layers: int = 1,
        hidden_act: str = "relu",
        layer_norm: bool = False,
        layer_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        **common: Any,
    ) -> None:
        self.input_size, self.hidden_size, self.num_hidden_layers = input_size, hidden_size, num_hidden_layers
        self.hidden_act, self.layer_norm, self.layer_norm_eps = hidden_act, layer_norm, layer_norm_eps
        self.initializer_range = initializer_range
        super().__init__(**common)


class HiddenLayer(torch.nn.Module):
    """A linear map, a LayerNorm if the config asks for one, and the activation."""

    def __init__(self, config: MLPConfig, inputs: int) -> None:
        super().__init__()
        self.dense = torch.nn.Linear(inputs, config.hidden_size)
        self.norm = (
            torch.nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            if config.layer_norm
            else torch.nn.Identity()
        )
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, values: Tensor) -> Tensor:
        hidden: Tensor = self.activation(self.norm(self.dense(values)))
        return hidden


class MLPForSequenceClassification(PreTrainedModel):
    """A multi-layer perceptron that classifies rows of numbers.

    The rows are its `input_ids`, the name by which every part of the tool gives a model what it reads: floating-point
    numbers of shape (rows, input_size).
    """

    config_class = MLPConfig
    base_model_prefix = ""
    main_input_name = "input_ids"

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        sizes = [config.input_size, *[config.hidden_size] * config.num_hidden_layers]
        self.layers = torch.nn.ModuleList(HiddenLayer(config, inputs) for inputs in sizes[:-1])
        self.classifier = torch.nn.Linear(sizes[-1], config.num_labels)
        self.post_init()

    def forward(self, input_ids: Tensor) -> SequenceClassifierOutput:
        """Return the logits of rows of numbers, shape (rows, classes)."""
        hidden = input_ids.to(self.dtype)
        for layer in self.layers:
            hidden = layer(hidden)
        return SequenceClassifierOutput(logits=self.classifier(hidden))


class NumberReader:
    """Reads rows of numbers from text; stands where a model of language has its tokenizer."""

    padding_side = "right"
    pad_token_id, mask_token_id, all_special_ids = 0, None, ()
    model_max_length = 1 << 30

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, texts: str | Sequence[str], pairs: Any = None, **_: Any) -> dict[str, list[Any]]:
        """Return the rows as `input_ids`.

        Raises:
            CalibrationError: a text is not `size` numbers, or there are pairs of texts.
        """
        if pairs is not None:
            raise CalibrationError("a multi-layer perceptron reads one row of numbers, and a pair of texts was given.")
        rows = [self._numbers(text) for text in ([texts] if isinstance(texts, str) else texts)]
        return {"input_ids": rows[0] if isinstance(texts, str) else rows}

    def _numbers(self, text: str) -> list[float]:
        try:
            numbers = [float(word) for word in text.split()]
        except ValueError:
            numbers = []
        if len(numbers) != self.size or not all(abs(number) < float("inf") for number in numbers):
            raise CalibrationError(
                f'expected {self.size} numbers with blanks between them, found "{brief(text)}". A multi-layer perceptron '
                "reads rows of numbers."
            )
        return numbers


AutoConfig.register(MODEL_TYPE, MLPConfig, exist_ok=True)
AutoModelForSequenceClassification.register(MLPConfig, MLPForSequenceClassification, exist_ok=True)
