"""Modules as text: what is defined at the top of each, what it imports, what runs when it is imported.

    parse("genloss.curate").definitions["curate"]         its statements; `spelled` makes them text that can be hashed

genloss.core.code follows the names from one to the next. Nothing is imported here but the packages that a module lies
in, since only their paths say where it is."""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

Place = tuple[str, str]  # module, name in it: "*" for the module as a whole, "" for what runs when it is imported


@dataclass(frozen=True)
class Module:
    """The top of a module, as text says it."""

    name: str
    package: bool
    file: Path
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, set[Place]] = field(default_factory=dict)  # all that a name may be; "*": where any may be from
    runs: set[Place] = field(default_factory=set)  # what is imported with it
    loose: list[ast.stmt] = field(default_factory=list)  # what runs when it is imported

    @property
    def own(self) -> bool:
        return is_own(self.name)


def is_own(module: str) -> bool:
    """Whether a module is genloss's. There a name that leads nowhere is an error, and what runs at an import are loose
    statements; the code of others may do all that Python allows, and makes the key wider where it cannot be followed
    exactly (tests/test_keys.py has the patterns)."""
    return module.partition(".")[0] == "genloss"


def imports_of(
    statement: ast.Import | ast.ImportFrom, module: str, package: bool
) -> Iterator[tuple[str, Place, Place]]:
    """(local name, what it means, what is imported)."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            # `import a.b` binds a
            bound = alias.name if alias.asname else alias.name.partition(".")[0]
            yield alias.asname or bound, (bound, "*"), (alias.name, "*")
        return
    origin = statement.module or ""
    if statement.level:
        if module == "__main__":
            module = f"{sys.modules[module].__package__}.{module}"
        parents = module.split(".")
        parents = parents[: len(parents) - statement.level + package]
        origin = ".".join([*parents, *([origin] if origin else [])])
    for alias in statement.names:
        yield alias.asname or alias.name, (origin, alias.name), (origin, alias.name)


def _is_typing(test: ast.expr) -> bool:
    return isinstance(test, (ast.Name, ast.Attribute)) and ast.unparse(test).endswith("TYPE_CHECKING")


def _is_main(test: ast.expr) -> bool:
    return ast.unparse(test) == "__name__ == '__main__'"


@cache
def _file(name: str) -> tuple[str, bool] | None:
    """A module's file ('' if it has none), and whether it is a package; None if there is no such module."""
    if name == "__main__":  # a script has no spec
        file = getattr(sys.modules[name], "__file__", None) or ""
        return (file, False) if Path(file).is_file() else None
    try:
        spec = importlib.util.find_spec(name)
    except Exception:  # its package runs, and may raise anything
        return None
    return (spec.origin or "", spec.submodule_search_locations is not None) if spec else None


@cache
def parse(name: str) -> Module | None:
    """A module's definitions; None if it has no file. LookupError if there is no such module."""
    found = _file(name)
    if found is None:
        raise LookupError(f"no module {name}")
    made = Module(name, found[1], Path(found[0]))
    if not made.file.is_file():
        return None
    content = made.file.read_bytes()
    try:
        _read(ast.parse(content).body, made)
    except (SyntaxError, ValueError):  # no Python source: its bytes count
        made.loose.append(ast.Expr(ast.Constant(hashlib.sha256(content).digest())))
    if not made.own:
        made.loose.extend(s for each in made.definitions.values() for s in each if _acts(s, made))
    return made


def _read(body: Iterable[ast.stmt], module: Module) -> None:
    for statement in body:
        if isinstance(statement, ast.If):
            if _is_typing(statement.test) or (_is_main(statement.test) and module.name != "__main__"):
                _read(statement.orelse, module)
                continue
            module.loose.append(ast.Expr(statement.test))
            _read([*statement.body, *statement.orelse], module)
            continue
        if isinstance(statement, (ast.Try, ast.TryStar)):
            module.loose.extend(ast.Expr(h.type) for h in statement.handlers if h.type)
            handled = [s for h in statement.handlers for s in h.body]
            _read([*statement.body, *handled, *statement.orelse, *statement.finalbody], module)
            continue
        names = _defines(statement)
        for node in () if names else ast.walk(statement):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for name, place, run in imports_of(node, module.name, module.package):
                    module.imports.setdefault(name, set()).add(place)
                    module.runs.add(run)
        if not names:  # what a loop leaves at the top of a module is there too
            names = _leaves(statement)
            if not isinstance(statement, (ast.Import, ast.ImportFrom)) and not _is_docstring(statement):
                module.loose.append(statement)
        if not module.own:
            names += [name for node in ast.walk(statement) if isinstance(node, ast.Global) for name in node.names]
        for name in names:
            module.definitions.setdefault(name, []).append(statement)


def _defines(statement: ast.stmt) -> list[str]:
    """The names that a simple statement gives a meaning."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        walrus = [n.target for n in ast.walk(statement) if isinstance(n, ast.NamedExpr)]
        nodes = [n for t in (*targets, *walrus) for n in ast.walk(t)]
        return [n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return []


def _leaves(statement: ast.stmt) -> list[str]:
    """The names that a compound statement, or an expression, may give a meaning."""
    names: list[str | None] = []
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.MatchAs, ast.MatchStar)):
            names.append(node.name)
        elif isinstance(node, ast.MatchMapping):
            names.append(node.rest)
    return [name for name in names if name]


def _acts(statement: ast.stmt, module: Module) -> bool:
    """Whether a definition may do more, when its module is imported, than to define its names: fill a registry, say."""

    def unknown(node: ast.AST) -> bool:
        """Whether it names what is neither built in, nor of the standard library, nor of genloss."""
        if isinstance(node, ast.Attribute) and node.attr in ("setter", "getter", "deleter"):
            return False
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        tops = {p.partition(".")[0] for n in names for p, _ in module.imports.get(n, ())}
        defined = {n for n in names if n in module.definitions or not (n in module.imports or hasattr(builtins, n))}
        return bool(defined or tops - sys.stdlib_module_names - {"genloss"})

    def calls(nodes: Iterable[ast.AST | None]) -> bool:
        return any(isinstance(n, ast.Call) and unknown(n) for node in nodes if node for n in ast.walk(node))

    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
        defaults = (*statement.args.defaults, *statement.args.kw_defaults)
        return any(map(unknown, statement.decorator_list)) or calls(defaults)
    if isinstance(statement, ast.ClassDef):
        bases = [b.value if isinstance(b, ast.Subscript) else b for b in statement.bases]
        made_by = [*statement.decorator_list, *bases, *(k.value for k in statement.keywords)]
        return any(map(unknown, made_by)) or any(_acts(s, module) for s in statement.body)
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        stored = (n for n in ast.walk(statement) if isinstance(n, (ast.Attribute, ast.Subscript)))
        return calls([statement]) or any(isinstance(n.ctx, ast.Store) for n in stored)
    return not (isinstance(statement, (ast.Import, ast.ImportFrom, ast.Pass)) or _is_docstring(statement))


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
            if isinstance(value, list):
                value = [s for s in value if not _is_docstring(s)]
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


def _is_docstring(statement: object) -> bool:
    """Whether it is text that stands alone, also below a field."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


@cache
def statements_of(module: str, name: str, without: frozenset[str] = frozenset()) -> list[ast.stmt]:
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
def spelled(module: str, name: str, without: frozenset[str] = frozenset()) -> str:
    out: list[str] = []
    _spell(statements_of(module, name, without), out)
    return "".join(out)


@cache
def is_module(name: str) -> bool:
    return _file(name) is not None


@cache
def is_project(module: str) -> bool:
    """Whether a module counts by its code: genloss, and what is not installed. An installed package counts by its
    version."""
    top = module.partition(".")[0]
    if top in ("genloss", "__main__"):
        return True
    if top in sys.stdlib_module_names:
        return False
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    places = [spec.origin] if spec and spec.origin else list(spec.submodule_search_locations or []) if spec else []
    return bool(places) and not any({"site-packages", "dist-packages"} & set(Path(p).parts) for p in places)
