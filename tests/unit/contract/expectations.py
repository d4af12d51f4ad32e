"""The kinds of expectation about vLLM's internals.

Names that exist only inside a method, such as instance attributes or vLLM's calls to us, are
checked in the source. Only `resolve` knows which vLLM is meant.
"""

import ast
import dataclasses
import functools
import inspect
import pkgutil
import textwrap
import typing


def resolve(path: str) -> object:
    """The object at `module:Class.method` in the imported vLLM."""
    return pkgutil.resolve_name(path)


def quoted(names: typing.Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


@dataclasses.dataclass(frozen=True)
class Expectation:
    """A vLLM class or function, as `module:Class.method`, and why the plugin relies on it."""

    path: str
    reason: str

    def __str__(self):
        return f"{type(self).__name__}-{self.label}"

    @property
    def label(self) -> str:
        return self.path.rpartition(":")[2]

    @property
    def target(self):
        return resolve(self.path)

    def description(self) -> str:
        """The expectation, for the ledger."""
        raise NotImplementedError

    def faults(self) -> list[str]:
        """What the installed vLLM is missing."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Takes(Expectation):
    """A callable's first parameters, without `self`, and those that we pass by name."""

    positional: tuple[str, ...] = ()
    keyword: tuple[str, ...] = ()

    def description(self):
        by_name = f"by name {quoted(self.keyword)}" if self.keyword else ""
        taken = "; ".join(filter(None, (quoted(self.positional), by_name)))
        return f"takes {taken}" if taken else "exists"

    def faults(self):
        parameters = [p for p in inspect.signature(self.target).parameters if p != "self"]
        in_order = tuple(parameters[: len(self.positional)]) == self.positional
        return [name for name in self.keyword if name not in parameters] + (
            [] if in_order else [f"begins with {parameters[: len(self.positional)]}"]
        )


@dataclasses.dataclass(frozen=True)
class Has(Expectation):
    """Attributes of a class, a module or an object; fields and annotations count."""

    attributes: tuple[str, ...] = ()
    properties: tuple[str, ...] = ()

    def description(self):
        properties = f"properties {quoted(self.properties)}" if self.properties else ""
        owned = "; ".join(filter(None, (quoted(self.attributes), properties)))
        return f"has {owned}" if owned else "exists"

    def faults(self):
        target = self.target
        known = set(getattr(target, "__annotations__", ())) | {
            field.name
            for field in (dataclasses.fields(target) if dataclasses.is_dataclass(target) else ())
        }
        return [
            name for name in self.attributes if name not in known and not hasattr(target, name)
        ] + [
            f"property {name}"
            for name in self.properties
            if not isinstance(inspect.getattr_static(target, name, None), property)
        ]


@dataclasses.dataclass(frozen=True)
class Sets(Expectation):
    """Attributes that a method assigns on `self`."""

    attributes: tuple[str, ...]

    def description(self):
        return f"sets {quoted(self.attributes)}"

    def faults(self):
        stored = {
            ast.unparse(node)
            for node in ast.walk(method_source(self.path))
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        }
        return [name for name in self.attributes if f"self.{name}" not in stored]


@dataclasses.dataclass(frozen=True)
class Reads(Expectation):
    """Expressions that a method evaluates, as `ast.unparse` writes them."""

    expressions: tuple[str, ...]

    def description(self):
        return f"evaluates {quoted(self.expressions)}"

    def faults(self):
        nodes = ast.walk(method_source(self.path))
        read = {ast.unparse(node) for node in nodes if isinstance(node, ast.expr)}
        return [expression for expression in self.expressions if expression not in read]


@dataclasses.dataclass(frozen=True)
class Calls(Expectation):
    """A call in a method that the plugin relies on, and how it passes its arguments."""

    function: str
    num_positional: int = 0
    keyword: tuple[str, ...] = ()

    def __str__(self):
        return f"{super().__str__()}-{self.function}"

    def description(self):
        in_order = f"{self.num_positional} in order" if self.num_positional else ""
        by_name = f"by name {quoted(self.keyword)}" if self.keyword else ""
        passed = "; ".join(filter(None, (in_order, by_name)))
        return f"calls `{self.function}`" + (f" with {passed}" if passed else "")

    def faults(self):
        calls = [
            node
            for node in ast.walk(method_source(self.path))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == self.function
        ]
        return [] if any(map(self._fits, calls)) else [ast.unparse(call) for call in calls] or ["-"]

    def _fits(self, call):
        keywords = {keyword.arg for keyword in call.keywords}
        return len(call.args) == self.num_positional and keywords >= set(self.keyword)


@dataclasses.dataclass(frozen=True)
class InOrder(Expectation):
    """Expressions that a method evaluates in this order, by their first occurrence."""

    expressions: tuple[str, ...]

    def description(self):
        return f"evaluates, in this order, {quoted(self.expressions)}"

    def faults(self):
        lines = {}
        for node in ast.walk(method_source(self.path)):
            if isinstance(node, ast.expr) and (text := ast.unparse(node)) in self.expressions:
                lines[text] = min(node.lineno, lines.get(text, node.lineno))
        return [] if sorted(lines, key=lines.get) == list(self.expressions) else [str(lines)]


@dataclasses.dataclass(frozen=True)
class Admits(Expectation):
    """Values of a `Literal`."""

    values: tuple[str, ...]

    def description(self):
        return f"admits {quoted(self.values)}"

    def faults(self):
        return [value for value in self.values if value not in typing.get_args(self.target)]


@functools.cache
def class_source(path: str) -> ast.ClassDef:
    source = textwrap.dedent(inspect.getsource(resolve(path)))
    return ast.parse(source).body[0]


def method_source(path: str) -> ast.FunctionDef:
    """A method's syntax tree, even if decorators replaced the method."""
    owner, _, name = path.rpartition(".")
    body = class_source(owner).body
    methods = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == name]
    assert methods, f"{owner} defines no method {name}"
    return methods[0]
