"""Marks: where each value of a recipe comes from, written as a YAML tag in front of it.

    width: !A 1536          # from the authors' own files
    global: !C              # a mark on a block holds for everything in it
      scale: [0.32, 1.0]

Reads and writes such files. Knows nothing of what the values mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eosin.errors import RecipeError
from eosin.files import PathLike, write_text

MARKS: dict[str, str] = {
    "A": "the authors' own released files (code, configs, model cards)",
    "P": "the paper itself",
    "S": "stated by secondary readers of the paper",
    "I": "inferred, for example from checkpoint names",
    "C": "reference code it builds on (Meta's DINO / DINOv2 configs)",
    "R": "a published replication",
    "O": "ours; nothing published",
    "U": "the user's own",
}


@dataclass(frozen=True)
class _Marked:
    value: Any
    mark: str


class _MarkLoader(yaml.SafeLoader):
    """YAML's safe loader, plus the marks as tags; a key given twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _construct(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if suffix not in MARKS:
        raise yaml.constructor.ConstructorError(None, None, f"unknown mark !{suffix}", node.start_mark)
    if isinstance(node, yaml.MappingNode):
        value: Any = loader.construct_mapping(node, deep=True)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        plain = yaml.SafeLoader(node.value)
        style = getattr(node, "style", None)
        tag = plain.resolve(yaml.ScalarNode, node.value, (style is None, False))
        plain.dispose()
        value = loader.construct_object(yaml.ScalarNode(tag, node.value, node.start_mark, node.end_mark, style))
    return _Marked(value, suffix)


_MarkLoader.add_multi_constructor("!", _construct)


def read_marked(path: PathLike) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a marked YAML file: the plain nested values, and the mark of each dotted key that has one.

    Raises RecipeError naming file and line for a missing file, broken YAML, an unknown mark or a key given twice.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except OSError as error:
        raise RecipeError(f"cannot read recipe {path}: {error.strerror}") from error
    return parse_marked(text, str(path))


def parse_marked(text: str, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The same from a string; `name` stands for the file in errors."""
    try:
        tree = yaml.load(text, Loader=_MarkLoader)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{name}{where}: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{name}: a recipe is a mapping of keys to values")
    marks: dict[str, str] = {}
    values = _strip(tree, "", "", marks)
    return values, marks


def _strip(node: Any, key: str, mark: str, marks: dict[str, str]) -> Any:
    """Take the marks off `node`; a mark on a block holds for every leaf below it that has none of its own."""
    if isinstance(node, _Marked):
        node, mark = node.value, node.mark
    if isinstance(node, dict):
        return {name: _strip(item, f"{key}.{name}" if key else str(name), mark, marks) for name, item in node.items()}
    if mark:
        marks[key] = mark
    return [_strip(item, key, "", {}) for item in node] if isinstance(node, list) else node


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as {dotted key: leaf}; lists are leaves."""
    found: dict[str, Any] = {}
    for name, item in values.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(item, dict):
            found.update(leaves(item, key))
        else:
            found[key] = item
    return found


def format_marked(values: dict[str, Any], marks: dict[str, str], indent: int = 0, prefix: str = "") -> str:
    """YAML text with a mark in front of each value that has one; `read_marked` gives the same back."""
    lines: list[str] = []
    for name, item in values.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        pad = "  " * indent
        if isinstance(item, dict) and item:
            lines += [f"{pad}{name}:", format_marked(item, marks, indent + 1, key).rstrip("\n")]
            continue
        flow = yaml.safe_dump(item, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
        mark = f"!{marks[key]} " if key in marks else ""
        lines.append(f"{pad}{name}: {mark}{flow}")
    return "\n".join(lines) + "\n"


def write_marked(path: PathLike, values: dict[str, Any], marks: dict[str, str]) -> None:
    """Write a marked YAML file atomically."""
    write_text(path, format_marked(values, marks))
