"""Which code a stage can execute, found by following names from its plug-ins, and its hash.

    reach([Solve, Reasoning]).modules()     # {"genloss.domains.reasoning.solve": "3f0c...", ...}
    reach([Solve, Reasoning]).libraries     # {"numpy", "pyarrow", ...}

The unit is a definition: a function, class or constant at the top of a module. From the classes of a stage's plug-ins
every name is followed to the definition that it may mean, also through imports inside of functions; what runs when a
module is imported counts too. A curator that is edited makes the stages that can call it new, and no others. Comments,
docstrings and layout are not code. Where a name of the user's code may be several things it is all of them, and where
nobody can tell, the whole module: a key that is too wide costs time, one that is too narrow a result. What is named by
a text, as with `getattr` or `import_module`, must come in as a plug-in (`Plugin.parts`).

`PLUMBING` is left out: it moves files and messages and cannot change a result. Whoever changes it so that it does
raises its version."""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter
from pathlib import Path

from genloss.core.errors import UserError
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


def _imports(statement: ast.Import | ast.ImportFrom, module: str, package: bool) -> Iterator[tuple[str, Place, Place]]:
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
                for name, place, run in _imports(node, module.name, module.package):
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
    used, which only genloss promises: nothing is left out where one of the classes is of others."""
    roots = {place for c in classes for place in _places(c)}
    skipped: dict[Place, frozenset[str]] = {}
    if all(is_own(module) or not is_project(module) for module, _ in roots):
        for cls, names in (without or {}).items():
            for base in cls.__mro__:
                place = (base.__module__, base.__qualname__)
                skipped[place] = skipped[place] & names if place in skipped else names
    return _reach(tuple(sorted(roots)), tuple(sorted((k, tuple(sorted(v))) for k, v in skipped.items())))


def _places(cls: type) -> set[Place]:
    """Where a class and its bases are defined; of one that was made by a call, also where it is kept."""
    found: set[Place] = set()
    for each in cls.__mro__[:-1]:
        module, name = each.__module__, each.__qualname__
        held: object = sys.modules.get(module)
        for part in name.split("."):
            held = getattr(held, part, None)
        there = held is not None and (held is each or not isinstance(held, type))  # no type: see `standing_for`
        places = {(module, name.partition(".")[0])} if (there or is_project(module)) and is_module(module) else set()
        if not there:
            known = [(m, vars(made)) for m, made in [*sys.modules.items()] if hasattr(made, "__dict__")]
            held_by = [(m, n) for m, names in known for n, v in [*names.items()] if v is each]
            places |= {(m, n) for m, n in held_by if is_project(m) and is_module(m)}
        if not places:
            raise UserError(f"{module}.{name}", None, "has no source, which its results depend on; define it in a file")
        found |= places
    return found


def standing_for(target: str) -> type:
    """What `reach` takes for a dotted path: the class, or a class in the place of a function."""
    module, name = target, ""
    while module and not is_module(module):
        module, _, last = module.rpartition(".")
        name = f"{last}.{name}".rstrip(".")
    try:
        held = attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError("_target_", target, f"cannot be imported ({error})") from None
    return held if isinstance(held, type) else type(name, (), {"__module__": module})


@cache
def _reach(roots: tuple[Place, ...], without: tuple[tuple[Place, tuple[str, ...]], ...]) -> Reach:
    result = Reach(without={place: frozenset(names) for place, names in without})
    queue: list[Place] = []
    expanded: set[str] = set()

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
        if not is_project(module):
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names:
                result.libraries.add(top)
            return
        if module in PLUMBING or not is_module(module):
            return
        touch(module)
        if name == "*":
            expand(module)
        elif name:
            add(module, name)

    def expand(module: str) -> None:
        """All that a module has."""
        known = parse(module)
        if known is None or module in expanded:
            return
        expanded.add(module)
        for name in known.definitions:
            add(module, name)
        if not known.own:
            for places in known.imports.values():
                for place in places:
                    for found in _follow(module, *place):
                        want(*found)
            for each in pkgutil.iter_modules([str(known.file.parent)] if known.package else []):
                want(f"{module}.{each.name}", "*")

    for module, name in roots:
        if is_project(module):
            touch(module)
        for place in _follow(module, module, name):
            want(*place)
    while queue:
        module, name = queue.pop()
        known = parse(module) if is_own(module) or is_module(module) else None
        if known is not None:
            for place in () if name else known.runs:
                for origin in _run_by(place):
                    want(origin, "")
            for target in _used(module, name, result.without.get((module, name), frozenset())):
                want(*target)
    return result


def _run_by(place: Place) -> Iterator[str]:
    """The modules of the project that run when something is imported."""
    origin, name = place
    if is_project(origin) and is_module(origin):
        yield origin
        if not is_own(origin) and is_module(f"{origin}.{name}"):
            yield f"{origin}.{name}"


@cache
def _meanings(module: str, name: str, seen: frozenset[Place] = frozenset()) -> frozenset[Place]:
    """All that a name of a module may be: definitions and modules, through imports of it."""
    place = (module, name)
    if name == "*" or not is_project(module):
        return frozenset({place})
    if place in seen or not is_module(module):
        return frozenset()
    known = parse(module)
    if known is None:
        return (
            frozenset({(module, "*")}) if not is_module(f"{module}.{name}") else frozenset({(f"{module}.{name}", "*")})
        )
    seen |= {place}
    found = {place} if name in known.definitions else set()
    for origin in known.imports.get(name, set()) - seen:
        found |= _follow(module, *origin, seen)
    for star, _ in known.imports.get("*", ()):
        if is_project(star):
            found |= _meanings(star, name, seen)
    # a package that imports a name of a module of the same name has one or the other
    if known.package and not (found and known.own) and is_module(f"{module}.{name}"):
        found.add((f"{module}.{name}", "*"))
    return frozenset(found)


def _follow(asks: str, module: str, name: str, seen: frozenset[Place] = frozenset()) -> frozenset[Place]:
    """What a name of a module may be, for a module that uses it: all of that module if nobody can tell."""
    found = _meanings(module, name, seen)
    if found or (name.startswith("__") and name.endswith("__")):
        return found
    if is_own(asks):
        raise LookupError(f"{module} has no {name}")
    return frozenset({(module, "*")})


@cache
def _used(module: str, name: str, without: frozenset[str]) -> frozenset[Place]:
    """What the names in a definition may mean."""
    known = parse(module)
    statements = _statements(module, name, without)
    return frozenset(place for s in statements for place in _names(s, known)) if known else frozenset()


def _names(statement: ast.stmt, module: Module) -> Iterator[Place]:
    """What the names in a statement may mean. Scopes are not told apart: a name is all that it is anywhere in it."""
    local: dict[str, set[Place]] = {}
    for node in ast.walk(statement):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name, place, run in _imports(node, module.name, module.package):
                local.setdefault(name, set()).add(place)
                # an import runs even if nothing of it is named: a registry is filled by it
                yield from ((origin, "") for origin in _run_by(run))

    def meanings(name: str) -> set[Place]:
        found = {each for place in local.get(name, ()) for each in _follow(module.name, *place)}
        if not module.own or name in module.definitions or name in module.imports:
            found |= _meanings(module.name, name)
        return found

    todo: list[ast.AST] = [statement]
    while todo:
        node = todo.pop()
        attributes: list[str] = []
        base = node
        while isinstance(base, ast.Attribute):
            attributes.append(base.attr)
            base = base.value
        if not isinstance(base, ast.Name):
            todo += ast.iter_child_nodes(node)
            continue
        places = meanings(base.id)
        for attribute in reversed(attributes):
            inner: set[Place] = set()
            for place in places:
                if place[1] != "*" or not is_project(place[0]):
                    yield place
                elif found := _meanings(place[0], attribute):
                    inner |= found
                else:
                    yield from _follow(module.name, place[0], attribute)
            places = inner
        yield from places


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
