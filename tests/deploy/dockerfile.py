"""A Dockerfile as stages of instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass
class Stage:
    """One `FROM base AS name` and what follows it: (instruction, rest of the line)."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def last(self, word: str) -> str | None:
        """Return the rest of the last instruction of a kind."""
        return next((rest for kind, rest in reversed(self.instructions) if kind == word), None)

    def sources(self) -> list[str]:
        """Return what `COPY` takes from the build context, not from other stages."""
        copies = [rest.split() for kind, rest in self.instructions if kind == "COPY"]
        return [
            word for words in copies if not words[0].startswith("--from=") for word in words[:-1]
        ]


def parse_dockerfile(text: str) -> dict[str, Stage]:
    """Return the stages by name, in their order."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    stages: dict[str, Stage] = {}
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages[name] = Stage(name, base)
        elif stages:
            list(stages.values())[-1].instructions.append((word, rest.strip()))
    return stages
