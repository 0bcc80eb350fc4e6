"""Specimen: a model of a config with random parameters, and inputs made up for it.

Every parameter is drawn: a default of 0 or 1 would hide an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from merge.checkpoints.inputs import random_inputs
from merge.checkpoints.structure import Structure
from merge.checkpoints.transformers_model import meta_model, model_class, model_config, quiet
from merge.errors import SpecError, one_line
from merge.symmetry.architectures.derive.trace import InFloat64
from merge.symmetry.forward.call import Run, call, fault_of
from merge.symmetry.forward.runs import NO_RUNS, Runs, completed, find_runs

MAX_PARAMETERS = 1_000_000_000  # 8 GB in float64
TEXTS = 2  # in a run that gives unusual inputs


@dataclass(frozen=True)
class Specimen:
    """A random model in float64, and its inputs.

    Attributes:
        structure: of the config.
        model: in evaluation mode; `outputs` changes its weights.
        tensors: a copy of its floating-point tensors by canonical name, tied ones once.
        batches: random values of its usual inputs: texts, images.
        others: runs that give the inputs of its forward method beside these, and the inputs that none could give.
    """

    structure: Structure
    model: Any
    tensors: Mapping[str, Tensor]
    batches: Sequence[Mapping[str, Any]]
    others: Runs = NO_RUNS

    @property
    def runs(self) -> list[Run]:
        """Every call that its outputs are compared on; the first is one of the usual inputs."""
        return [*map(Run, self.batches), *self.others.runs]

    def model_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the model itself, not copies, by canonical name, tied ones once; integer ones too."""
        stored = self.model.state_dict(keep_vars=True)
        return {checkpoint_name(self.structure, n): t for n, t in stored.items() if n not in self.structure.ties}

    def outputs(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return the outputs of each run with these weights, computed in float64 throughout."""
        targets = self.model_tensors()
        with torch.no_grad():
            for name, tensor in tensors.items():
                targets[name].copy_(tensor)
            with InFloat64():
                return [call(self.model, run) for run in self.runs]

    def with_all_inputs(self) -> Specimen:
        """Return the specimen with runs that give every input of its forward method which a run could be made up for.

        Raises:
            SpecError: it runs on no inputs that are made up for it.
        """

        def attempt(run: Run) -> str | None:
            with InFloat64():
                return fault_of(self.model, run)

        batches = list(self.batches)
        for number, batch in enumerate(self.batches):
            fault = attempt(Run(batch))
            if fault is not None:
                whole = completed(self.model, batch, attempt) if batch else None
                if whole is None:
                    raise refusal(self.structure, f"it does not run on random inputs: {fault}")
                batches[number] = whole
        usual = {n: v[:TEXTS] if isinstance(v, Tensor) and v.ndim else v for n, v in batches[0].items()}
        return replace(self, batches=batches, others=find_runs(self.model, usual, attempt))


def checkpoint_name(structure: Structure, name: str) -> str:
    """Return the name with the base model's prefix, which transformers leaves out of models without a head."""
    prefix = f"{structure.prefix}."
    is_written = not structure.prefix or any(n.startswith(prefix) for n in structure.shapes)
    return name if is_written else prefix + name


def refusal(structure: Structure, why: str) -> SpecError:
    """Return the error for a model that has no table and for which none can be derived."""
    return SpecError(
        f"no permutation table for model type {structure.config['model_type']!r} ({structure.architecture}), and none can be "
        f"derived: {why}. Merge without alignment: --align none."
    )


def specimen_of(structure: Structure) -> Specimen:
    """Return a random model of a structure.

    Raises:
        SpecError: it is too large, cannot be built, or its inputs cannot be made up.
    """
    model = _random_model(structure)
    bare = Specimen(structure, model, {}, _batches(model, structure))
    tensors = {name: t.detach().clone() for name, t in bare.model_tensors().items() if t.is_floating_point()}
    return Specimen(structure, model, tensors, bare.batches)


def _random_model(structure: Structure) -> Any:
    """Return the model in float64 with every parameter drawn."""
    count = sum(p.numel() for p in meta_model(structure.config).parameters())
    if count > MAX_PARAMETERS:
        raise refusal(structure, f"its {count:,} parameters are more than the {MAX_PARAMETERS:,} that are proved")
    settings = model_config(structure.config)
    settings.use_cache = False
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            model = model_class(structure.config)._from_config(
                settings, dtype=torch.float64, attn_implementation="eager"
            )
    # Model code raises errors of any type.
    except Exception as error:
        raise refusal(structure, f"it cannot be built: {one_line(error)}") from error
    generator = torch.Generator().manual_seed(0)
    learned = {id(p) for p in model.parameters()}
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if not tensor.is_floating_point():
                continue
            drawn = torch.randn(tensor.shape, generator=generator).double()
            if id(tensor) not in learned:  # running statistics: positive, as variances are
                tensor.copy_(0.5 + drawn.abs())
            elif tensor.ndim < 2:
                tensor.copy_(0.3 * drawn + (1.0 if name.endswith("weight") else 0.0))
            else:
                tensor.copy_(drawn * min(0.3, tensor.shape[-1] ** -0.5))
    return model.eval()


def _batches(model: Any, structure: Structure) -> list[dict[str, Tensor]]:
    """Return two random batches of the inputs of the model's forward method: text, images, or both."""
    parameters = inspect.signature(model.forward).parameters
    config = structure.settings
    text = {**config, **dict(config.get("text_config") or {})}
    vision = {**config, **dict(config.get("vision_config") or {})}
    text["architectures"] = [structure.architecture]
    batches: list[dict[str, Tensor]] = [{}, {}]
    if "input_ids" in parameters:
        # Without a table of tokens there is none that could be exceeded.
        text = {"vocab_size": 256, **{key: v for key, v in text.items() if key not in ("image_size", "vision_config")}}
        text["max_position_embeddings"] = text.get("max_position_embeddings") or text.get("n_positions") or 24
        batches = [dict(batch) for batch in random_inputs(text)[:2]]
    if "pixel_values" in parameters:
        side, channels = vision.get("image_size") or vision.get("input_size") or 32, vision.get("num_channels", 3)
        height, width = side if isinstance(side, list | tuple) else (side, side)
        generator = torch.Generator().manual_seed(1)
        for batch in batches:
            batch["pixel_values"] = torch.randn(4, channels, height, width, generator=generator, dtype=torch.float64)
    for batch in batches:
        if "decoder_input_ids" in parameters and "input_ids" in batch:
            batch["decoder_input_ids"] = batch["input_ids"].flip(0)[:, :-3]
        if "type_vocab_sizes" in config:  # a number of several columns for each token
            batch.pop("token_type_ids", None)
        elif "token_type_ids" in parameters and "type_vocab_size" not in config and "input_ids" in batch:
            batch["token_type_ids"] = batch["input_ids"] % 2
        if "use_cache" in parameters:
            batch["use_cache"] = False  # type: ignore[assignment]
    return [{name: value for name, value in batch.items() if name in parameters} for batch in batches]
