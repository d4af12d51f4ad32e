"""The kinds of expectation about vLLM's internals, each checked in a release's sources.

Some names exist only inside a method, such as instance attributes or vLLM's calls to us.
Expectations about them check the method's body.
"""

import ast
import dataclasses
import typing

from tests.unit.contract.sources import Definition, MissingError, Sources


def quoted(names: typing.Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def release_number(release: str) -> tuple[int, ...]:
    """A release series such as "0.32", for comparison."""
    return tuple(int(part) for part in release.split(".")[:2])


@dataclasses.dataclass(frozen=True)
class Expectation:
    """A vLLM class or function, as `module:Class.method`, and why the plugin relies on it."""

    path: str
    reason: str
    until: str = dataclasses.field(default="", kw_only=True)
    """Last release series to which the expectation applies; "" for all."""
    since: str = dataclasses.field(default="", kw_only=True)
    """First release series to which the expectation applies; "" for all."""

    def __str__(self):
        return f"{type(self).__name__}-{self.label}"

    @property
    def label(self) -> str:
        return self.path.rpartition(":")[2]

    def applies_to(self, release: str) -> bool:
        """Whether the expectation applies to a release series, such as "0.33"."""
        number = release_number(release)
        return not (
            (self.until and number > release_number(self.until))
            or (self.since and number < release_number(self.since))
        )

    def description(self) -> str:
        """The expectation, for the ledger."""
        releases = (self.since and f"from vLLM {self.since}", self.until and f"to {self.until}")
        limits = " ".join(filter(None, releases))
        return self.claim() + (f" ({limits})" if limits else "")

    def claim(self) -> str:
        """The expectation, without the releases to which it applies."""
        raise NotImplementedError

    def names(self) -> tuple[str, ...]:
        """The names that the expectation is about, to find where the plugin uses them."""
        *_, owner, name = ("", *self.label.split("."))
        return (owner if name == "__init__" else name,)

    def faults(self, sources: Sources) -> list[str]:
        """What the release lacks."""
        try:
            return self.check(sources)
        except MissingError as error:
            return [str(error)]

    def check(self, sources: Sources) -> list[str]:
        """What the release lacks.

        Raises:
            MissingError: The subject of the expectation does not exist.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Takes(Expectation):
    """A callable's first parameters, without `self`, and those that we pass by name."""

    positional: tuple[str, ...] = ()
    keyword: tuple[str, ...] = ()

    def claim(self):
        by_name = f"by name {quoted(self.keyword)}" if self.keyword else ""
        taken = "; ".join(filter(None, (quoted(self.positional), by_name)))
        return f"takes {taken}" if taken else "exists"

    def check(self, sources):
        parameters = sources.parameters(self.path)
        in_order = tuple(parameters[: len(self.positional)]) == self.positional
        return [name for name in self.keyword if name not in parameters] + (
            [] if in_order else [f"begins with {parameters[: len(self.positional)]}"]
        )


@dataclasses.dataclass(frozen=True)
class Has(Expectation):
    """Attributes of a class, a module or an object; fields and annotations count."""

    attributes: tuple[str, ...] = ()
    properties: tuple[str, ...] = ()

    def claim(self):
        properties = f"properties {quoted(self.properties)}" if self.properties else ""
        owned = "; ".join(filter(None, (quoted(self.attributes), properties)))
        return f"has {owned}" if owned else "exists"

    def check(self, sources):
        target = sources.find(self.path)
        missing = [name for name in self.attributes if not sources.has(target, name)]
        return missing + [
            f"property {name}"
            for name in self.properties
            if not is_property(sources.member(target, name))
        ]

    def names(self):
        return (*self.attributes, *self.properties) or super().names()


@dataclasses.dataclass(frozen=True)
class Sets(Expectation):
    """Attributes that a method assigns on `self`."""

    attributes: tuple[str, ...]

    def claim(self):
        return f"sets {quoted(self.attributes)}"

    def names(self):
        return tuple(name.rpartition(".")[2] for name in self.attributes)

    def check(self, sources):
        stored = {
            ast.unparse(node)
            for node in ast.walk(sources.own(self.path).node)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        }
        return [name for name in self.attributes if f"self.{name}" not in stored]


@dataclasses.dataclass(frozen=True)
class Reads(Expectation):
    """Expressions that a method evaluates, as `ast.unparse` writes them."""

    expressions: tuple[str, ...]

    def claim(self):
        return f"evaluates {quoted(self.expressions)}"

    def check(self, sources):
        nodes = ast.walk(sources.own(self.path).node)
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

    def claim(self):
        in_order = f"{self.num_positional} in order" if self.num_positional else ""
        by_name = f"by name {quoted(self.keyword)}" if self.keyword else ""
        passed = "; ".join(filter(None, (in_order, by_name)))
        return f"calls `{self.function}`" + (f" with {passed}" if passed else "")

    def check(self, sources):
        calls = [
            node
            for node in ast.walk(sources.own(self.path).node)
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

    def claim(self):
        return f"evaluates, in this order, {quoted(self.expressions)}"

    def check(self, sources):
        lines = {}
        for node in ast.walk(sources.own(self.path).node):
            if isinstance(node, ast.expr) and (text := ast.unparse(node)) in self.expressions:
                lines[text] = min(node.lineno, lines.get(text, node.lineno))
        return [] if sorted(lines, key=lines.get) == list(self.expressions) else [str(lines)]


@dataclasses.dataclass(frozen=True)
class Admits(Expectation):
    """Values of a `Literal`."""

    values: tuple[str, ...]

    def claim(self):
        return f"admits {quoted(self.values)}"

    def check(self, sources):
        return [value for value in self.values if value not in sources.literals(self.path)]


def is_property(found: Definition) -> bool:
    return "property" in map(ast.unparse, getattr(found.node, "decorator_list", ()))
