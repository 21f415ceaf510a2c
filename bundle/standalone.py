"""One Python file of several: what a source takes from the modules of this repository is written into it.

Only the functions, classes and constants that are used come along, with what they use themselves. So a bundle has the
reader of pictures, which is written only once.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
OWN = ("faces", "model")  # packages of this repository
Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
Imported = tuple[str, str, str]  # a module, a name in it ("" for the module itself), and what it is called here


class Module:
    """The top level of a module: its definitions and imports by name."""

    def __init__(self, name: str, source: str) -> None:
        self.lines = source.splitlines(keepends=True)
        self.definitions: dict[str, Definition] = {}
        self.imports: dict[str, Imported] = {}
        for node in ast.parse(source).body:
            if isinstance(node, Definition):
                self.definitions |= dict.fromkeys(defined(node), node)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                self.imports |= {found[2]: found for found in imported(node, name.rpartition(".")[0])}
            elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):  # a docstring
                raise ValueError(f"{name}, line {node.lineno}: only definitions and imports can be written elsewhere")
        self.used: set[str] = set()  # of the names above

    def use(self, name: str) -> None:
        """Mark a name as used, and all names of this module that its definition uses."""
        if name in self.used:
            return
        self.used.add(name)
        if name in self.definitions:
            for inner in ast.walk(self.definitions[name]):
                if isinstance(inner, ast.Name) and (inner.id in self.definitions or inner.id in self.imports):
                    self.use(inner.id)

    def text(self) -> str:
        """The definitions that are used, in their order, with their decorators and the comments above them."""
        parts = []
        for node in dict.fromkeys(node for name, node in self.definitions.items() if name in self.used):
            first = min([node.lineno, *(item.lineno for item in getattr(node, "decorator_list", []))]) - 1
            while self.lines[first - 1].startswith("#"):
                first -= 1
            parts.append("".join(self.lines[first : node.end_lineno]))
        return "\n\n".join(parts)


def standalone(source: str) -> str:
    """A source with imports from `OWN` -> the same without them. Raises ValueError when two modules define one name."""
    nodes = ast.parse(source).body
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    wanted = [found for node in imports for found in imported(node, "") if found[0] != "__future__"]
    modules: dict[str, Module] = {}
    for module, name, _ in filter(is_own, wanted):
        collect(modules, module, name)
    foreign = {found for found in wanted if not is_own(found)}
    foreign |= {module.imports[name] for module in modules.values() for name in module.used & module.imports.keys()
                if not is_own(module.imports[name])}
    names = [name for module in modules.values() for name in sorted(module.used & module.definitions.keys())]
    names += [name for node in nodes if isinstance(node, Definition) for name in defined(node)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two modules define {', '.join(twice)}: rename one")
    lines = source.splitlines(keepends=True)
    head, rest = "".join(lines[: imports[0].lineno]), "".join(lines[imports[-1].end_lineno :])
    texts = [module.text() for module in reversed(modules.values())]  # what is imported comes first
    return "\n\n".join([f"{head}\n{import_lines(foreign)}", *filter(None, texts)]) + rest


def collect(modules: dict[str, Module], name: str, wanted: str) -> None:
    """Mark a name of a module as used, and what it uses of other modules; these are moved behind it in `modules`."""
    module = modules.pop(name, None)
    if module is None:
        path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        module = Module(name, path.read_text(encoding="utf-8"))
    module.use(wanted)
    modules[name] = module
    for found in [module.imports[used] for used in sorted(module.used & module.imports.keys())]:
        if is_own(found):
            source, original, called = found
            if called != original:
                raise ValueError(f"{name}: {original} is imported as {called}; a name must be the same everywhere")
            collect(modules, source, original)


def imported(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[Imported]:
    """What a statement imports; `package` is that of its module."""
    for alias in node.names:
        if isinstance(node, ast.Import):
            yield alias.name, "", alias.asname or alias.name
        else:
            source = f"{package}.{node.module}" if node.level else str(node.module)
            yield source, alias.name, alias.asname or alias.name


def is_own(found: Imported) -> bool:
    return found[0].split(".")[0] in OWN


def import_lines(found: Iterable[Imported]) -> str:
    """The imports of other packages, sorted, the standard library first."""
    lines = []
    for module, original, name in sorted(found):
        called = "" if name == (original or module) else f" as {name}"
        line = f"from {module} import {original}{called}" if original else f"import {module}{called}"
        lines.append((module.split(".")[0] not in sys.stdlib_module_names, line))
    return "".join(f"{line}\n" for _, line in sorted(lines))


def defined(node: Definition) -> list[str]:
    """The names that a statement defines. Raises ValueError for one that changes something else, as `a.b = c` does."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    parts = [part for target in targets for part in ast.walk(target)]
    if any(isinstance(part, ast.Attribute | ast.Subscript) for part in parts):
        raise ValueError(f"line {node.lineno}: only names can be assigned to where a module is written elsewhere")
    return [part.id for part in parts if isinstance(part, ast.Name)]
