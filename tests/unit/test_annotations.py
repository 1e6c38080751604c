"""Public attributes have annotations, so that all type checkers see the same types; pyright's own check is in CI."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import aiolibkv

SOURCE = Path(aiolibkv.__file__).parent
OF_SELF = re.compile(r"self\.([a-z]\w*)")


def declared(node: ast.ClassDef) -> set[str]:
    """Return the names that a class annotates, or defines as a method or property."""
    names = {each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
    annotated = (each for each in ast.walk(node) if isinstance(each, ast.AnnAssign))
    return names | {ast.unparse(each.target).removeprefix("self.") for each in annotated}


def assigned(node: ast.ClassDef) -> Iterator[str]:
    """Give the names that a class assigns, but for the arguments of its methods, which have annotations."""
    for part in node.body:
        if isinstance(part, ast.Assign):
            yield from (target.id for target in part.targets if isinstance(target, ast.Name) and target.id.islower())
        elif isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = {argument.arg for argument in (*part.args.args, *part.args.kwonlyargs)}
            for each in ast.walk(part):
                if isinstance(each, ast.Assign) and ast.unparse(each.value) not in arguments:
                    for target in each.targets:
                        parts = target.elts if isinstance(target, ast.Tuple) else [target]
                        found = (OF_SELF.fullmatch(ast.unparse(name)) for name in parts)
                        yield from (name[1] for name in found if name)


def test_public_attributes_have_annotations() -> None:
    found = [
        (path, node)
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    by_name = {node.name: node for _, node in found}

    def known(node: ast.ClassDef) -> set[str]:
        bases = (by_name.get(ast.unparse(base).partition("[")[0]) for base in node.bases)
        return declared(node).union(*(known(base) for base in bases if base is not None and base is not node))

    missing = [
        f"{path.relative_to(SOURCE)}: {node.name}.{name}"
        for path, node in found
        if not node.name.startswith("_")
        for name in assigned(node)
        if not name.startswith("_") and name not in known(node)
    ]
    assert not missing, "\n".join(missing)
