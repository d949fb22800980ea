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
import hashlib
import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter

from genloss.core.errors import UserError
from genloss.core.hashes import version
from genloss.core.source import Module, Place, imports_of, is_module, is_own, is_project, parse, spelled, statements_of

PLUMBING_VERSION = 1
PLUMBING = (
    "genloss",
    "genloss.core",
    "genloss.core.code",
    "genloss.core.errors",
    "genloss.core.files",
    "genloss.core.hashes",
    "genloss.core.limits",
    "genloss.core.machine",
    "genloss.core.places",
    "genloss.core.schedule",
    "genloss.core.plugin",
    "genloss.core.progress",
    "genloss.core.retention",
    "genloss.core.rundir",
    "genloss.core.signals",
    "genloss.core.source",
    "genloss.core.store",
    "genloss.experiment",
    "genloss.language.saved",
)


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
            text = spelled(module, name, self.without.get((module, name), frozenset()))
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
    statements = statements_of(module, name, without)
    return frozenset(place for s in statements for place in _names(s, known)) if known else frozenset()


def _names(statement: ast.stmt, module: Module) -> Iterator[Place]:
    """What the names in a statement may mean. Scopes are not told apart: a name is all that it is anywhere in it."""
    local: dict[str, set[Place]] = {}
    for node in ast.walk(statement):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name, place, run in imports_of(node, module.name, module.package):
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
