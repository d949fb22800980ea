"""Which comparison fits which family of reasoning-gym: writes docs/families.md.

python benchmarks/families.py               # minutes: TRIED problems of each of a hundred families
"""

from __future__ import annotations

from pathlib import Path

from genloss.core.errors import UserError
from genloss.core.hashes import version
from genloss.domains.reasoning.tasks import COMPARE, TRIED, Gym

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"
HEAD = """# Families of problems and how their answers are compared

`domain/tasks` takes any family of reasoning-gym ({version}) with a comparison, for example

```yaml
mine:
  _target_: genloss.domains.reasoning.tasks.Gym
  family: coin_flip
  compare: text
```

A comparison fits if it finds the exact answers right: here, of {tried} problems with the family's own
parameters, how many. What does not find all of them is refused before any work, with the count.
`integer` compares whole numbers, `text` texts without runs of white space, `expression` LaTeX by
math-verify; `scorer` is the family's own, where it does not evaluate what a model wrote. Where it is not
safe (no), several answers may be right, and `text` accepts the one that is given alone.
`python benchmarks/families.py` writes this page.

| family | integer | text | expression | scorer |
| --- | ---: | ---: | ---: | --- |
"""


def page(rows: dict[str, dict[str, int | bool]]) -> str:
    """rows: {family: {integer, text, expression: problems that are found right; scorer: whether it may be used}}."""
    lines = [
        f"| {name} | {row['integer']} | {row['text']} | {row['expression']} | {'yes' if row['scorer'] else 'no'} |"
        for name, row in sorted(rows.items())
    ]
    return HEAD.format(version=version("reasoning-gym"), tried=TRIED) + "\n".join(lines) + "\n"


def main() -> None:
    from reasoning_gym.factory import DATASETS

    rows: dict[str, dict[str, int | bool]] = {}
    for name in sorted(DATASETS):
        family = Gym(name)
        try:
            found: dict[str, int | bool] = {c: TRIED - len(family.unfit(c)) for c in COMPARE if c != "scorer"}
            rows[name] = found | {"scorer": family.has_safe_scorer() and not family.unfit("scorer")}
        except UserError as error:
            print(f"{name}: {error}")
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
