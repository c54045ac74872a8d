"""Reading settings: YAML with plain floats, ``--set key=value``, nearest names, and one-line errors."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml


class SpecError(ValueError):
    """Bad input; the message is one clear line naming key, value and remedy. The command exits with code 2."""


TIMESTAMP = "tag:yaml.org,2002:timestamp"
# Keys of a database URL's query that drivers take a password from.
SECRET = re.compile(r"([?&](?:password|passwd|pwd|sslpassword|passphrase)=)([^&]*)", re.IGNORECASE)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 3e-4 is a number (YAML 1.1 wants 3.0e-4 and otherwise reads a string), and a date is a text.

    A key that stands twice is an error: of the two, YAML would take the last one without a word.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set[Any]()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):  # refused below
                continue
            if key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"{key} stands here twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that `_Loader` would read as a number (a study called 1e5)."""


for _side in (_Loader, _Dumper):
    _side.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
        for first, resolvers in _side.yaml_implicit_resolvers.items()
    }
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?(?:[eE][-+]?\d+)$|^[-+]?\.\d+(?:[eE][-+]?\d+)?$"),
        list("-+0123456789."),
    )


def parse_yaml(text: str, origin: str) -> Any:
    """The value that YAML ``text`` holds.

    Raises:
        SpecError: the text is no YAML; names ``origin``, line and column.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SpecError(f"{origin}{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    except (ValueError, RecursionError) as error:  # `!!timestamp` of no day, `!!int` of no number; brackets without end
        raise SpecError(f"{origin}: not valid YAML: {error}") from error


def dump_yaml(value: Any) -> str:
    """YAML text that `parse_yaml` reads back as ``value``; keys stay in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file (SpecError if it is none, or cannot be read)."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read {path}: {error}") from error
    return parse_yaml_mapping(text, str(path))


def parse_yaml_mapping(text: str, origin: str) -> dict[str, Any]:
    """The mapping that YAML ``text`` holds (SpecError if it is none); ``origin`` is for messages."""
    content = parse_yaml(text, origin)
    if not isinstance(content, dict):
        raise SpecError(f"{origin}: a study is a mapping of keys, got {type(content).__name__}")
    return content


def merge_assignments(settings: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """``settings`` with ``key.sub=value`` assignments over it; values are read as YAML.

    Raises:
        SpecError: an assignment without "=", with an empty key, or into something that is no mapping.
    """
    merged = dict(settings)
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if not sign or not all(key.strip().split(".")):
            raise SpecError(f"--set {assignment!r}: write key=value, e.g. --set search.trials=64")
        value = parse_yaml(text, f"--set {key}") if text else None
        merged = with_value(merged, key.strip(), value, f"--set {assignment!r}")
    return merged


def with_value(settings: Mapping[str, Any], key: str, value: Any, called: str) -> dict[str, Any]:
    """A copy of ``settings`` with ``value`` at a dotted key.

    Args:
        called: what asks for it, for messages.

    Raises:
        SpecError: the key leads into something that is no mapping.
    """
    first, _, rest = key.partition(".")
    if not rest:
        return {**settings, first: value}
    inner = {} if settings.get(first) is None else settings[first]
    if not isinstance(inner, Mapping):
        raise SpecError(f"{called}: {first} is {inner!r}, it has no keys below it")
    return {**settings, first: with_value(inner, rest, value, called)}


def without_password(url: str) -> tuple[str, tuple[str, ...]]:
    """A database URL to be shown, and the secrets that were taken out of it, longest first, as written and as meant."""
    secrets: set[str] = set()

    def hidden(found: re.Match[str]) -> str:
        secrets.add(found[2])
        return f"{found[1]}***"

    scheme, _, rest = url.partition("://")
    account, at, place = rest.rpartition("@")
    if at:
        user, _, password = account.partition(":")
        secrets.add(password)
        url = f"{scheme}://{user}:***@{place}"
    url = SECRET.sub(hidden, url)
    secrets |= {urllib.parse.unquote_plus(one) for one in secrets}
    return url, tuple(sorted(secrets - {""}, key=len, reverse=True))
