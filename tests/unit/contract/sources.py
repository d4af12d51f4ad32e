"""Read a release's sources by syntax tree; nothing of vLLM is imported or run.

So one check works for the installed release and for one that cannot run here.
"""

import ast
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
ASSIGNMENTS = (ast.Assign, ast.AnnAssign)
GENERATED_CONSTRUCTORS = ("dataclass", "config", "NamedTuple", "Struct")
"""Decorators and bases of classes whose fields are their constructor's parameters."""


class MissingError(LookupError):
    """These sources do not define a name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Definition:
    """A module, class, function or assignment, and the module that holds it."""

    module: str
    node: ast.AST


@dataclasses.dataclass(frozen=True)
class Sources:
    """Python files below a directory that holds `vllm/`."""

    root: Path

    def find(self, path: str) -> Definition:
        """Return what `module:Class.method` names, followed through imports and base classes.

        Raises:
            MissingError: A part of the path is not defined.
        """
        module, _, qualified_name = path.partition(":")
        found = Definition(module, self._parsed(module))
        for name in filter(None, qualified_name.split(".")):
            found = self.member(found, name)
        return found

    def own(self, path: str) -> Definition:
        """Return the method that a class defines itself, or a function.

        Raises:
            MissingError: It is not defined there.
        """
        found = self.find(path)
        owner, _, name = path.rpartition(".")
        if ":" in owner and found.node not in _bindings(self.find(owner).node).get(name, ()):
            raise MissingError(f"{owner} does not define {name} itself")
        if not isinstance(found.node, FUNCTIONS):
            raise MissingError(f"{path} is no function")
        return found

    def member(self, owner: Definition, name: str) -> Definition:
        """Return an attribute of a module, of a class or of an object that an assignment makes.

        Raises:
            MissingError: The owner has no such attribute.
        """
        if isinstance(owner.node, ast.Module):
            return self._global(owner.module, name)
        for cls in self.ancestry(self._class_of(owner)):
            if nodes := _bindings(cls.node).get(name):
                return Definition(cls.module, nodes[-1])
        raise MissingError(f"{name} is not defined in {getattr(owner.node, 'name', owner.module)}")

    def has(self, owner: Definition, name: str) -> bool:
        """Whether a module, class or object has an attribute."""
        try:
            self.member(owner, name)
        except MissingError:
            return False
        return True

    def ancestry(self, cls: Definition) -> list[Definition]:
        """Return a class and its base classes in vLLM, the nearest first."""
        found = [cls]
        for base in cls.node.bases:
            try:
                found += self.ancestry(self._class_of(self._named(cls.module, base)))
            except MissingError:
                continue
        nodes = [entry.node for entry in found]  # a shared base comes last
        return [entry for i, entry in enumerate(found) if entry.node not in nodes[i + 1 :]]

    def parameters(self, path: str) -> list[str]:
        """Return a callable's parameters in order, without `self`.

        Raises:
            MissingError: The path names nothing that can be called.
        """
        found = self.find(path)
        if isinstance(found.node, FUNCTIONS):
            return _parameters(found.node)
        classes = self.ancestry(self._class_of(found))
        for cls in classes:
            if constructor := _bindings(cls.node).get("__init__"):
                return _parameters(constructor[-1])
            if _has_generated_constructor(cls.node):
                break
        fields = {name: None for cls in reversed(classes) for name in _fields(cls.node)}
        return list(fields)

    def literals(self, path: str) -> list[object]:
        """Return the values of a `Literal`, and of the literals inside it."""
        found = self.find(path)
        return list(self._literals(found.module, found.node.value))

    def _literals(self, module: str, node: ast.expr) -> Iterator[object]:
        if isinstance(node, ast.Constant):
            yield node.value
        elif isinstance(node, ast.Name):
            named = self._global(module, node.id)
            yield from self._literals(named.module, named.node.value)
        elif isinstance(node, ast.Subscript):
            entries = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            for entry in entries:
                yield from self._literals(module, entry)

    def _class_of(self, found: Definition) -> Definition:
        """Return a class, or the class of the object that an assignment makes."""
        if isinstance(found.node, ast.ClassDef):
            return found
        value = getattr(found.node, "value", None)
        if value is None:
            raise MissingError(f"{ast.unparse(found.node)[:60]} is neither class nor object")
        named = value.func if isinstance(value, ast.Call) else value
        return self._class_of(self._named(found.module, named))

    def _named(self, module: str, expression: ast.expr) -> Definition:
        """Return what an expression such as `module.Class` or `Class[T]` names."""
        if isinstance(expression, ast.Subscript):
            return self._named(module, expression.value)
        if isinstance(expression, ast.Attribute):
            return self.member(self._named(module, expression.value), expression.attr)
        if isinstance(expression, ast.Name):
            return self._global(module, expression.id)
        raise MissingError(ast.unparse(expression))

    def _global(self, module: str, name: str) -> Definition:
        tree = self._parsed(module)
        nodes = _bindings(tree).get(name) or _lazy_bindings(tree, name)
        if not nodes:
            return self._submodule_or_starred(module, name)
        node = nodes[-1]
        if isinstance(node, ast.ImportFrom):
            origin = next(a.name for a in node.names if (a.asname or a.name) == name)
            return self._global(self._imported_module(module, node), origin)
        if isinstance(node, ast.Import):
            origin = next(a.name for a in node.names if name in (a.asname, a.name.split(".")[0]))
            return Definition(origin, self._parsed(origin))
        return Definition(module, node)

    def _submodule_or_starred(self, module: str, name: str) -> Definition:
        if self._file(f"{module}.{name}"):
            return Definition(f"{module}.{name}", self._parsed(f"{module}.{name}"))
        for node in _bindings(self._parsed(module)).get("*", ()):
            try:
                return self._global(self._imported_module(module, node), name)
            except MissingError:
                continue
        raise MissingError(f"{module} does not define {name}")

    def _imported_module(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module
        is_package = self._file(module).name == "__init__.py"
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + is_package]
        return ".".join([*parts, *filter(None, [node.module])])

    def _file(self, module: str) -> Path | None:
        """A module's file; None outside vLLM, because base classes there do not matter."""
        if module.partition(".")[0] != "vllm":
            return None
        path = self.root.joinpath(*module.split("."))
        files = (path.with_suffix(".py"), path / "__init__.py")
        return next((file for file in files if file.is_file()), None)

    def _parsed(self, module: str) -> ast.Module:
        file = self._file(module)
        if file is None:
            raise MissingError(f"there is no module {module}")
        return _parsed(file)


@functools.cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@functools.cache
def _bindings(owner: ast.AST) -> dict[str, list[ast.AST]]:
    """The names that a module or class binds at run time, each with its definitions in order."""
    found: dict[str, list[ast.AST]] = {}
    for node in _statements(owner.body):
        for name in _bound_names(node):
            found.setdefault(name, []).append(node)
    return found


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a block and its branches, except those only for type checkers."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _statements(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For):
            for block in ("orelse", "handlers", "body"):
                yield from _statements(getattr(node, block, []))
        elif isinstance(node, ast.ExceptHandler):
            yield from _statements(node.body)


def _bound_names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ASSIGNMENTS):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [target.id for target in targets if isinstance(target, ast.Name)]
    return []


def _lazy_bindings(tree: ast.Module, name: str) -> list[ast.AST]:
    """Definitions, for type checkers, of a name that a module's `__getattr__` makes."""
    if "__getattr__" not in _bindings(tree):
        return []
    texts = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.value == name]
    blocks = [n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n)]
    declared = [n for b in blocks for n in _statements(b.body) if name in _bound_names(n)]
    return declared if texts else []


def _has_generated_constructor(cls: ast.ClassDef) -> bool:
    marks = map(ast.unparse, (*cls.decorator_list, *cls.bases))
    return any(generator in mark for mark in marks for generator in GENERATED_CONSTRUCTORS)


def _fields(cls: ast.ClassDef) -> list[str]:
    """The fields of a class that its generated constructor takes."""
    return [
        node.target.id
        for node in _statements(cls.body)
        if isinstance(node, ast.AnnAssign)
        and not ast.unparse(node.annotation).startswith(("ClassVar", "typing.ClassVar"))
        and "init=False" not in ast.unparse(node)
    ]


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    given = function.args
    in_order = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    if "classmethod" in map(ast.unparse, function.decorator_list):
        in_order = in_order[1:]
    return [argument.arg for argument in in_order if argument and argument.arg != "self"]
