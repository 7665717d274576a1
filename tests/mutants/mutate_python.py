"""Makes mutants of Python files. Runs where mutmut is installed, and imports nothing of ours.

    mutate_python.py FILE...              prints how many there are of each file
    mutate_python.py --make < numbers     prints those: {"FILE": [number, ...]} on standard input

Making one takes longer than counting all.
"""

import difflib
import json
import sys
from pathlib import Path

from mutmut.mutation.file_mutation import create_mutations  # type: ignore[import-not-found]


def main() -> None:
    """Print JSON: an object of counts, or a mutant a line."""
    if sys.argv[1] != "--make":
        _print({name: len(create_mutations(name, _code(name))[1]) for name in sys.argv[1:]})
        return
    for name, numbers in json.load(sys.stdin).items():
        code = _code(name)
        module, mutations, *_ = create_mutations(name, code)
        for number in numbers:
            mutation = mutations[number]
            mutant = module.deep_replace(mutation.original_node, mutation.mutated_node).code
            _print({"file": name, "line": _line(code, mutant), "code": mutant})


def _code(name: str) -> str:
    return Path(name).read_text()


def _line(code: str, mutant: str) -> int:
    """Return the number of the first line that differs."""
    matcher = difflib.SequenceMatcher(None, code.splitlines(), mutant.splitlines(), autojunk=False)
    return next(start for tag, start, *_ in matcher.get_opcodes() if tag != "equal") + 1


def _print(found: object) -> None:
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
