"""YAML texts: what they may hold is bounded before a value is built from them, and every fault has a line and a column."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

MAX_BYTES = 1 << 22
MAX_DEPTH = 64  # of nested lists and mappings
MAX_NODES = 200_000  # with every alias written out: a few lines of aliases of aliases stand for billions
# Errors of int("x") and the like that PyYAML raises unwrapped for a document with !!int x.
TAG_ERRORS = (ValueError, TypeError, LookupError, AttributeError, OverflowError)


class YamlFault(Exception):
    """A text is not YAML that can be read.

    Attributes:
        line, column: of the fault, from 1; None where it concerns the whole text.
    """

    def __init__(self, problem: str, mark: Any = None, line: int | None = None, column: int | None = None) -> None:
        super().__init__(problem)
        self.line = mark.line + 1 if mark else line
        self.column = mark.column + 1 if mark else column


class BoundedLoader(yaml.SafeLoader):
    """YAML loader that stops at the first bracket that is nested too deep: PyYAML takes the square of the depth in time."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level >= MAX_DEPTH:
            raise YamlFault(f"it is nested more than {MAX_DEPTH} deep", self.get_mark())
        super().fetch_flow_collection_start(token)


class StrictLoader(BoundedLoader):
    """YAML loader that refuses duplicate keys and reads 1e-3 as a number (text in YAML 1.1) and a date as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's name and form
        letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # <<: the entries of another mapping
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a name", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return dict(super().construct_mapping(node, deep))


class Dumper(yaml.SafeDumper):
    """YAML dumper that quotes text which `StrictLoader` would not read as text."""


for _resolver in (StrictLoader, Dumper):
    _resolver.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def parse_yaml(text: str, strict: bool = True) -> tuple[Any, Any]:
    """Return the value of a YAML text and its node tree.

    Args:
        strict: refuse duplicate keys, and read 1e-3 as a number.
    Raises:
        YamlFault: it is not YAML, or is larger than the bounds above.
    """
    if len(text) > MAX_BYTES:
        raise YamlFault(f"the text has {len(text):,} characters, more than {MAX_BYTES:,}")
    try:
        loader: Any = (StrictLoader if strict else BoundedLoader)(text)
        root = loader.get_single_node()
        if root is None:
            return None, None
        _check_bounds(root)
        return loader.construct_document(root), root
    except yaml.MarkedYAMLError as error:
        raise YamlFault(str(error.problem), error.problem_mark or error.context_mark) from error
    except yaml.reader.ReaderError as error:
        line, column = text.count("\n", 0, error.position) + 1, error.position - text.rfind("\n", 0, error.position)
        raise YamlFault(f"character {error.character!r} is not allowed in YAML", line=line, column=column) from error
    except RecursionError as error:
        raise YamlFault(f"it is nested more than {MAX_DEPTH} deep", line=1, column=1) from error
    except TAG_ERRORS as error:
        raise YamlFault(
            f"a YAML tag (!!int, !!float, ...) does not fit its value: {error}", line=1, column=1
        ) from error


def _check_bounds(root: Any) -> None:
    """Stop where a node tree is too deep or, with its aliases written out, too large, or a node is an alias of itself.

    Raises:
        YamlFault: it is.
    """
    known: dict[int, tuple[int, int]] = {}  # of a node -> its size and height
    inside: set[int] = set()

    def measured(node: Any) -> tuple[int, int]:
        if isinstance(node, yaml.ScalarNode):
            _check_text(node)
            return 1, 1
        if id(node) in inside:
            raise YamlFault("a value is an alias of itself", node.start_mark)
        if id(node) not in known:
            inside.add(id(node))
            pairs = isinstance(node, yaml.MappingNode)
            parts = [measured(part) for part in ([p for pair in node.value for p in pair] if pairs else node.value)]
            inside.remove(id(node))
            known[id(node)] = 1 + sum(size for size, _ in parts), 1 + max((height for _, height in parts), default=0)
            if known[id(node)][0] > MAX_NODES:
                raise YamlFault(f"with its aliases written out it has more than {MAX_NODES:,} values", node.start_mark)
            if known[id(node)][1] > MAX_DEPTH:
                raise YamlFault(f"it is nested more than {MAX_DEPTH} deep", node.start_mark)
        return known[id(node)]

    measured(root)


def _check_text(node: Any) -> None:
    if "\0" in node.value:
        raise YamlFault("a text holds the character NUL", node.start_mark)
    if any("\ud800" <= character <= "\udfff" for character in node.value):
        raise YamlFault("a text holds half of a surrogate pair", node.start_mark)
