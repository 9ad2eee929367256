"""Jinja as transformers sets it up for chat templates, its switches, its date.

Source: transformers/utils/chat_template_utils.py, `_cached_compile_jinja_template`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from cmgr.errors import UsageError

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.nodes import Node

SWITCHES = ("enable_thinking", "thinking", "reasoning_effort")  # what templates call them
INSPECTORS = {"split", "rsplit", "partition", "rpartition", "replace", "startswith", "endswith"}


class Rules(NamedTuple):
    """A template, and what it is rendered with beside the messages."""

    template: str
    bos: str = ""
    eos: str = ""
    thinking: bool = False


def render(rules: Rules, said: Sequence[tuple[str, str]], generation: bool) -> str:
    """What the template makes of (role, content) pairs. Raises UsageError where it refuses."""
    try:
        return compiled(rules.template).render(
            messages=[{"role": role, "content": content} for role, content in said],
            tools=None,
            documents=None,
            add_generation_prompt=generation,
            bos_token=rules.bos,
            eos_token=rules.eos,
            **_switches(rules.template, rules.thinking),
        )
    except Exception as error:  # whatever an operation of the template raises
        raise UsageError(f"the base's chat template refuses this conversation: {error}") from None


@lru_cache(maxsize=32)
def _switches(template: str, thinking: bool) -> dict[str, Any]:
    """The thinking switches as they are set: off, the least effort that a template takes."""
    found: dict[str, Any] = {"enable_thinking": thinking, "thinking": thinking}
    if not thinking and "reasoning_effort" in template:
        found["reasoning_effort"] = "low"
        try:
            messages = [{"role": "user", "content": "x"}]
            compiled(template).render(messages=messages, bos_token="", eos_token="", **found)
        except Exception:  # it has other names for them: its own default
            del found["reasoning_effort"]
    return found


@lru_cache(maxsize=1)
def _moment() -> datetime:
    """The time that templates are given: one for a process, so that kept prompts stay right."""
    return datetime.now()


@lru_cache(maxsize=8)
def compiled(template: str) -> Template:
    """The template ready to render, in the environment that transformers gives it."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """`{% generation %}`, which marks answers for training elsewhere: its body as it is."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller: Any) -> Any:
            return caller()

    def check(name: str) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace holds no {name!r}")

    class Guarded(Namespace):
        """A namespace without underscored names, which the sandbox would not guard."""

        def __setitem__(self, name: str, value: Any) -> None:
            check(name)
            super().__setitem__(name, value)

    def namespace(*args: Any, **values: Any) -> Guarded:
        for name in dict(*args, **values):
            check(name)
        return Guarded(*args, **values)

    def refuse(message: str) -> str:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: _moment().strftime(form)
    environment.globals["namespace"] = namespace
    return environment.from_string(template)


@lru_cache(maxsize=32)
def looked_for(template: str) -> list[str]:
    """The texts that a template looks for in others (`in`, `split`, `replace`), longest first."""
    from jinja2 import nodes

    found: set[str] = set()

    def take(node: Node) -> None:
        if isinstance(node, nodes.Const) and isinstance(node.value, str) and node.value.strip():
            found.add(node.value)

    tree = compiled(template).environment.parse(template)
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in INSPECTORS:
            for value in call.args:
                take(value)
    for use in tree.find_all(nodes.Filter):
        if use.name == "replace":
            for value in use.args:
                take(value)
    for compared in tree.find_all(nodes.Compare):
        if any(operand.op in ("in", "notin") for operand in compared.ops):
            take(compared.expr)
    return sorted(found, key=len, reverse=True)
