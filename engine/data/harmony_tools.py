"""Definitions of tools as gpt-oss reads them: a TypeScript namespace in the developer message.

Follows openai/harmony, src/encoding.rs (`template_tools_section`, `json_schema_to_typescript`), which the tests
compare with, down to its spaces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.data.shape import Unusable

SYSTEM_LINE = "\nCalls to these tools must go to the commentary channel: 'functions'."
"""What the system message says behind its channels when there are tools."""

_PLAIN = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}


def section(tools: Sequence[Any]) -> str:
    """The part of the developer message that defines `tools`. Raises Unusable."""
    lines = ["# Tools", "", "## functions", "", "namespace functions {", ""]
    for tool in tools:
        name, description, parameters = _parts(tool)
        lines += [f"// {line}" for line in _lines(description)]
        signature = f"(_: {_type(parameters, '')})" if parameters is not None else "()"
        lines += [f"type {name} = {signature} => any;", ""]
    return "\n".join([*lines, "} // namespace functions"])


def _parts(tool: Any) -> tuple[str, str, Mapping[str, Any] | None]:
    """Name, description and parameters of a definition, in OpenAI's form or without its envelope."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise Unusable("the definition of a tool has no name")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise Unusable(f"the parameters of the tool {name!r} are no JSON schema")
    return name, str(function.get("description") or ""), parameters


def _type(schema: Any, indent: str) -> str:
    if not isinstance(schema, Mapping):
        return "any"
    if isinstance(schema.get("oneOf"), list):
        # Here, and only here, OpenAI's code also puts the default of an enumeration into quotes.
        variants = (_variant(one, indent) + _comment(one, _description(one), quotes=True) for one in schema["oneOf"])
        return "".join(f"\n{indent} | {text}" for text in variants)
    kind = schema.get("type")
    if isinstance(kind, list):
        names = [_PLAIN.get(one, one) for one in kind if isinstance(one, str)]
        if names:
            return " | ".join(names)
    if kind == "object":
        return _object(schema, indent)
    if kind == "array":
        return f"{_type(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
    if kind == "string":
        return " | ".join(f'"{one}"' for one in schema.get("enum") or () if isinstance(one, str)) or "string"
    return _PLAIN.get(kind, "any") if isinstance(kind, str) else "any"


def _object(schema: Mapping[str, Any], indent: str) -> str:
    made = [f"{indent}// {text}\n" if (text := _description(schema)) is not None else "", "{\n"]
    properties = schema.get("properties")
    required = schema.get("required") or ()
    for name, value in properties.items() if isinstance(properties, Mapping) else ():
        value = value if isinstance(value, Mapping) else {}
        title = f"{name}{'' if name in required else '?'}:"
        made += _remarks(value, indent)
        if isinstance(value.get("oneOf"), list):
            made += _choices(title, value, indent)
            continue
        made.append(f"{indent}{title} {_variant(value, indent + ' ')},{_comment(value, None)}\n")
    return "".join([*made, indent, "}"])


def _remarks(value: Mapping[str, Any], indent: str) -> Iterator[str]:
    """The comments above a property."""
    if isinstance(value.get("title"), str):
        yield f"{indent}// {value['title']}\n{indent}//\n"
    if "oneOf" not in value and (text := _description(value)) is not None:
        yield f"{indent}// {text}\n"
    examples = value.get("examples")
    if isinstance(examples, list) and examples:
        yield f"{indent}// Examples:\n"
        yield from (f'{indent}// - "{one}"\n' for one in examples if isinstance(one, str))


def _choices(title: str, value: Mapping[str, Any], indent: str) -> Iterator[str]:
    """A property of several types."""
    variants, above = value["oneOf"], _description(value)
    is_above = above is not None and not (variants and above == _description(variants[0]))
    if is_above:
        yield f"{indent}// {above}\n"
    if "default" in value:
        yield f"{indent}// {_default(value)}\n"
    yield f"{indent}{title}\n"
    for number, one in enumerate(variants):
        text = _description(one)
        says = None if (number == 0 and is_above) or text == above else text
        yield f"{indent} | {_variant(one, indent)}{_comment(one, says)}\n"
    yield f"{indent},\n"


def _variant(value: Any, indent: str) -> str:
    text = _type(value, indent + "   ")
    is_nullable = isinstance(value, Mapping) and value.get("nullable") is True
    return f"{text} | null" if is_nullable and "null" not in text else text


def _comment(value: Any, description: str | None, quotes: bool = False) -> str:
    """What stands behind a type."""
    parts = [description] if description is not None else []
    if isinstance(value, Mapping) and "default" in value:
        parts.append(_default(value, quotes))
    return f" // {' '.join(parts)}" if parts else ""


def _default(value: Mapping[str, Any], quotes: bool = False) -> str:
    default = value["default"]
    if isinstance(default, str):
        return f"default: {default}" if value.get("enum") and not quotes else f'default: "{default}"'
    return f"default: {json.dumps(default, ensure_ascii=False, separators=(',', ':'))}"


def _description(value: Any) -> str | None:
    text = value.get("description") if isinstance(value, Mapping) else None
    return text if isinstance(text, str) else None


def _lines(text: str) -> list[str]:
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines
