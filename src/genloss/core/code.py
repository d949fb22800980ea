"""Which code a stage can execute, found by following names from its plug-ins, and its hash.

    reach([Solve, Reasoning]).modules()     # {"genloss.domains.reasoning.solve": "3f0c...", ...}
    reach([Solve, Reasoning]).libraries     # {"numpy", "pyarrow", ...}

The unit is a definition: a function, class or constant at the top of a module. From the classes of a stage's plug-ins
every name is followed to the definition that it may mean, also through imports inside of functions; what runs when a
module is imported counts too. A curator that is edited makes the stages that can call it new, and no others. Comments,
docstrings and layout are not code. What cannot be followed by name, `getattr` on a module or a class named by a text,
must come in as a plug-in (`Plugin.parts`).

`PLUMBING` is left out: it moves files and messages and cannot change a result. Whoever changes it so that it does
raises its version."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from genloss.core.hashes import version

PLUMBING_VERSION = 1
PLUMBING = (
    "genloss",
    "genloss.core",
    "genloss.core.code",
    "genloss.core.errors",
    "genloss.core.files",
    "genloss.core.hashes",
    "genloss.core.machine",
    "genloss.core.places",
    "genloss.core.plugin",
    "genloss.core.progress",
    "genloss.core.rundir",
    "genloss.core.store",
    "genloss.experiment",
)


@dataclass(frozen=True)
class Module:
    """The top of a module, as text says it."""

    name: str
    package: bool
    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, tuple[str, str]]  # local name: (module, name in it; '' if it is the module)
    loose: list[ast.stmt]  # what runs when it is imported


def _imports(
    statement: ast.Import | ast.ImportFrom, module: str, package: bool
) -> Iterator[tuple[str, tuple[str, str]]]:
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            # `import a.b` binds a, and what is used of it is anything below a.b
            yield (alias.asname or alias.name.partition(".")[0], (alias.name, ""))
        return
    origin = statement.module or ""
    if statement.level:
        parents = module.split(".")
        parents = parents[: len(parents) - statement.level + package]
        origin = ".".join([*parents, *([origin] if origin else [])])
    for alias in statement.names:
        yield alias.asname or alias.name, (origin, alias.name)


def _is_typing(test: ast.expr) -> bool:
    return any(isinstance(n, (ast.Name, ast.Attribute)) and "TYPE_CHECKING" in ast.unparse(n) for n in ast.walk(test))


def _is_main(test: ast.expr) -> bool:
    return isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and test.left.id == "__name__"


@cache
def parse(name: str) -> Module | None:
    """A module's definitions; None if it is no Python source. LookupError if there is no such module."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise LookupError(f"no module {name}")
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    package = spec.submodule_search_locations is not None
    made = Module(name, package, {}, {}, [])
    _read(ast.parse(Path(spec.origin).read_bytes()).body, made)
    return made


def _read(body: Iterable[ast.stmt], module: Module) -> None:
    for statement in body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            module.imports.update(_imports(statement, module.name, module.package))
            continue
        if isinstance(statement, ast.If):
            if _is_typing(statement.test) or _is_main(statement.test):
                _read(statement.orelse, module)
                continue
            module.loose.append(ast.Expr(statement.test))
            _read([*statement.body, *statement.orelse], module)
            continue
        if isinstance(statement, ast.Try):
            _read(
                [
                    *statement.body,
                    *(s for h in statement.handlers for s in h.body),
                    *statement.orelse,
                    *statement.finalbody,
                ],
                module,
            )
            continue
        names = _defines(statement)
        if not names:  # what a loop leaves at the top of a module is there too
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    module.definitions.setdefault(node.id, []).append(statement)
        for name in names:
            module.definitions.setdefault(name, []).append(statement)
        docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not names and not docstring:
            module.loose.append(statement)


def _defines(statement: ast.stmt) -> list[str]:
    """The names that a statement gives a meaning."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    return []


# -- the hash of a definition ------------------------------------------------------------------------------------------


def _spell(node: object, out: list[str]) -> None:
    """A syntax tree as text, the same in every version of Python: without positions, docstrings, and fields that are
    empty."""
    if isinstance(node, ast.AST):
        out.append(type(node).__name__)
        out.append("(")
        for key, value in ast.iter_fields(node):
            if key in ("ctx", "type_comment", "kind") or value is None or value == []:
                continue
            if key == "body" and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                value = [s for i, s in enumerate(value) if i or not _is_docstring(s)]
            out.append(f"{key}=")
            _spell(value, out)
        out.append(")")
    elif isinstance(node, list):
        out.append("[")
        for item in node:
            _spell(item, out)
            out.append(",")
        out.append("]")
    else:
        out.append(repr(node))


def _is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


@cache
def _statements(module: str, name: str, without: frozenset[str] = frozenset()) -> list[ast.stmt]:
    """A definition; what runs when the module is imported where name is ''. without: members of a class that are left
    out."""
    known = parse(module)
    if known is None:
        return []
    found = known.definitions[name] if name else known.loose
    return [_pruned(s, without) if isinstance(s, ast.ClassDef) and without else s for s in found]


def _pruned(made: ast.ClassDef, without: frozenset[str]) -> ast.ClassDef:
    body = [s for s in made.body if not without.intersection(_defines(s))]
    return ast.ClassDef(made.name, made.bases, made.keywords, body, made.decorator_list)


@cache
def _text(module: str, name: str, without: frozenset[str] = frozenset()) -> str:
    out: list[str] = []
    _spell(_statements(module, name, without), out)
    return "".join(out)


# -- following names ---------------------------------------------------------------------------------------------------


@dataclass
class Reach:
    """What can be executed: definitions (module, name), and the libraries that they use."""

    found: set[tuple[str, str]] = field(default_factory=set)
    without: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)  # members of classes that are not used
    libraries: set[str] = field(default_factory=set)

    def modules(self) -> dict[str, str]:
        """sha256 of what is reached of each module."""
        by: dict[str, list[str]] = {}
        for module, name in sorted(self.found):
            text = _text(module, name, self.without.get((module, name), frozenset()))
            if text != "[]":  # nothing runs when it is imported
                by.setdefault(module, []).append(f"{name} {text}")
        return {module: hashlib.sha256("\n".join(texts).encode()).hexdigest() for module, texts in by.items()}

    def versions(self) -> dict[str, str]:
        """The installed versions of the libraries."""
        return {name: version(name) for name in sorted(self.libraries)}


def reach(classes: Iterable[type], without: Mapping[type, frozenset[str]] | None = None) -> Reach:
    """All code that objects of these classes can execute. without: of a class and its bases, members that are not
    used."""
    skipped: dict[tuple[str, str], frozenset[str]] = {}
    for cls, names in (without or {}).items():
        for base in cls.__mro__:
            place = (base.__module__, base.__qualname__)
            skipped[place] = skipped[place] & names if place in skipped else names
    roots = {(c.__module__, c.__qualname__) for c in classes}
    return _reach(tuple(sorted(roots)), tuple(sorted((k, tuple(sorted(v))) for k, v in skipped.items())))


@cache
def _reach(roots: tuple[tuple[str, str], ...], without: tuple[tuple[tuple[str, str], tuple[str, ...]], ...]) -> Reach:
    result = Reach(without={place: frozenset(names) for place, names in without})
    queue: list[tuple[str, str]] = []

    def touch(module: str) -> None:
        """What runs when a module is imported, and the packages that it is in."""
        parts = module.split(".")
        for i in range(1, len(parts) + 1):
            add(".".join(parts[:i]), "")

    def add(module: str, name: str) -> None:
        if module not in PLUMBING and (module, name) not in result.found:
            result.found.add((module, name))
            queue.append((module, name))

    def want(module: str, name: str) -> None:
        """A name of a module: its definition there, or where it imports it from; '*': all that it has."""
        if not is_project(module):
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names:
                result.libraries.add(top)
            return
        known = parse(module)
        if known is None or module in PLUMBING:
            return
        touch(module)
        if name == "*":
            for each in known.definitions:
                add(module, each)
        elif name in known.definitions:
            add(module, name)
        elif name in known.imports:
            want(*_place(*known.imports[name]))
        elif name and known.package and is_module(f"{module}.{name}"):
            want(f"{module}.{name}", "*")
        elif name and not name.startswith("__"):
            raise LookupError(f"{module} has no {name}")

    for module, name in roots:
        want(module, name.partition(".")[0])
    while queue:
        module, name = queue.pop()
        known = parse(module)
        if known is not None:
            for origin, _ in () if name else known.imports.values():
                if is_project(origin):
                    touch(origin)
            for statement in _statements(module, name, result.without.get((module, name), frozenset())):
                for target in _names(statement, known):
                    want(*target)
    return result


def _place(origin: str, name: str) -> tuple[str, str]:
    """(module, name in it) of an imported name; '*' where it is a module that is used as a whole."""
    if not name:
        return origin, "*"
    known = parse(origin) if is_project(origin) else None
    its_own = known is None or name in known.definitions or name in known.imports
    if known is not None and known.package and not its_own and is_module(f"{origin}.{name}"):
        return f"{origin}.{name}", "*"
    return origin, name


def _names(statement: ast.stmt, module: Module) -> Iterator[tuple[str, str]]:
    """What the names in a statement may mean, as (module, name)."""
    local: dict[str, tuple[str, str]] = {}
    for node in ast.walk(statement):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            local.update(_imports(node, module.name, module.package))

    def meaning(name: str) -> tuple[str, str] | None:
        if name in local:
            return _place(*local[name])
        if name in module.definitions:
            return module.name, name
        return _place(*module.imports[name]) if name in module.imports else None

    todo: list[ast.AST] = [statement]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Name):
            found = meaning(node.id)
            if found is not None:
                yield found
            continue
        if isinstance(node, ast.Attribute):
            attributes, base = [node.attr], node.value
            while isinstance(base, ast.Attribute):
                attributes.append(base.attr)
                base = base.value
            found = meaning(base.id) if isinstance(base, ast.Name) else None
            if found is not None and found[1] == "*" and is_project(found[0]):
                origin = found[0]
                while attributes:
                    place = _place(origin, attributes.pop())
                    if place[1] != "*":
                        yield place
                        break
                    origin = place[0]
                else:
                    yield origin, "*"
                continue
        todo += ast.iter_child_nodes(node)
    # an import runs even if nothing of it is named: a registry is filled by it
    yield from ((origin, "") for origin, _ in local.values() if is_project(origin))


@cache
def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


@cache
def is_project(module: str) -> bool:
    """Whether a module counts by its code: genloss, and what is not installed. An installed package counts by its
    version."""
    top = module.partition(".")[0]
    if top == "genloss":
        return True
    if top in sys.stdlib_module_names:
        return False
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    places = [spec.origin] if spec and spec.origin else list(spec.submodule_search_locations or []) if spec else []
    return bool(places) and not any({"site-packages", "dist-packages"} & set(Path(p).parts) for p in places)
