"""YAML files: one mapping each, strictly read, problems told with file, line and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from workers.errors import SettingsError


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML mapping, its problems told with line and column."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_OnceLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{path}: cannot be read: {error}"]) from error
    except yaml.YAMLError as error:
        raise SettingsError([f"{path}: not valid YAML: {' '.join(str(error).split())}"]) from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise SettingsError([f"{path}: expected `key: value` lines, found a {type(document).__name__}"])
    return document


class _OnceLoader(yaml.SafeLoader):
    """PyYAML's safe loader that refuses a key that is there twice, where PyYAML lets the last one win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _value in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict)):
                continue  # the safe loader says so itself
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
