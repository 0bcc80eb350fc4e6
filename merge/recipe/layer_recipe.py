"""The recipe of edit-layers apply: models by name, the plan, and what is done after it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from merge.disk.documents import read_json
from merge.errors import RecipeError, UsageError
from merge.layers.plans.document import plan_from_json
from merge.layers.plans.plan import LayerPlan
from merge.layers.plans.text import parse_plan
from merge.recipe.validation import located_faults
from merge.recipe.yaml_document import read_document
from merge.text.source import Record, as_list


class LayerRecipe(Record):
    """What edit-layers apply does.

    Attributes:
        models: name -> folder or Hub id, in the order of A, B, ...
        plan: the layers of the output, as text or as the list of an edit.json.
        stack: the list of layers, in models with two.
        align: how the models are aligned to the first; not at all when None.
        text, text_column, samples, seed: what is measured, fitted and healed on.
        repair, ridge, heal_steps, heal_rate: as the options of the same names.
    """

    models: dict[str, str] = Field(min_length=1)
    plan: str | list[Any]
    stack: str = ""
    align: str | None = None
    text: str | None = None
    text_column: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=2)
    samples: int | None = Field(default=None, gt=0, strict=True)
    seed: int | None = Field(default=None, ge=0, strict=True)
    repair: Literal["none", "auto", "seam", "affine"] = "none"
    ridge: float | None = Field(default=None, ge=0)
    heal_steps: int = Field(default=0, ge=0, strict=True)
    heal_rate: float = Field(default=2e-4, gt=0)
    output: str = Field(default="edited", min_length=1)

    @field_validator("text_column", mode="before")
    @classmethod
    def _one_name(cls, names: Any) -> Any:
        return as_list(names)

    def layer_plan(self) -> LayerPlan:
        """Return the plan.

        Raises:
            UsageError: it cannot be read.
        """
        names = list(self.models)
        if isinstance(self.plan, str):
            return parse_plan(self.plan, names, self.stack)
        return plan_from_json(self.plan, names, self.stack)

    def stated(self) -> dict[str, Any]:
        """Return the values that the file states, by the names of the command's options."""
        return {name: getattr(self, name) for name in self.model_fields_set - {"models", "plan", "align"}}


def read_layer_recipe(path: Path) -> LayerRecipe:
    """Read a recipe of edit-layers.

    Raises:
        RecipeError: each fault as file:line:column: message.
    """
    values, root = read_document(path, "recipe of edit-layers", "models, plan, ...")
    try:
        return LayerRecipe(**values)
    except ValidationError as error:
        raise RecipeError(located_faults(path, root, LayerRecipe, error)) from error


def plan_of_file(text: str, names: list[str], stack: str) -> LayerPlan | None:
    """Return the plan of a .json file (an edit.json, or its list of layers); None where the text names no file.

    Raises:
        UsageError: there is no such file, it holds no plan, or it is not a .json file.
    """
    path = Path(text)
    if path.suffix == ".json" and not os.path.exists(text):  # noqa: PTH110 (as below)
        raise UsageError(f"--plan {text}: there is no such file. Check the path.")
    if not path.suffix or not os.path.isfile(text):  # noqa: PTH113 (Path.is_file raises for a long plan)
        return None
    if path.suffix != ".json":
        raise UsageError(
            f"--plan {text} is a file: expected a plan as text ('A[0-3], B[4-5]'), or a .json file such as edit.json."
        )
    value = read_json(path, UsageError)
    return plan_from_json(value.get("layers") if isinstance(value, dict) else value, names, stack)
