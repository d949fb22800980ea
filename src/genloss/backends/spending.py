"""What requests to a server may cost, and what they have cost (genloss.backends.endpoint).

    ledger = Ledger(Path("spent.json"), Limits(requests=100), Budget(), "round")
    ask([ledger])                       # before a request; UserError once the limit is reached
    ledger.pay(sent=120, written=80)    # tokens, when its reply is there

A ledger is a file: it outlives a kill, and the processes of a sweep share one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from genloss.core.errors import UserError, require
from genloss.core.files import locked, write_atomic

MOST = 10**15  # of anything: a file that says more is damaged
LAST = 100  # problems of which the share that is refused is taken


@dataclass
class Limits:
    """null: no limit. Requests are never exceeded; tokens and money by the replies that are on their way, at most.
    Without the server's count, as where a reply is cut off, tokens are estimated by the length of what was received."""

    requests: int | None = None  # that are sent, those that fail included
    tokens: int | None = None  # sent and written
    money: float | None = None  # by the prices

    def __post_init__(self) -> None:
        for key in ("requests", "tokens", "money"):
            value = getattr(self, key)
            require(value is None or value > 0, key, value, "more than 0, or null: no limit")


@dataclass
class Budget:
    """What may be spent: in a round, and in all arms of a sweep together (of a run without a sweep: in all of its
    rounds). Prices are money for a million tokens."""

    round: Limits = field(default_factory=Limits)
    sweep: Limits = field(default_factory=Limits)
    price_sent: float = 0.0
    price_written: float = 0.0
    refused: float = 0.95  # share of the last LAST problems; if more cannot be used, the round ends; 1: never

    def __post_init__(self) -> None:
        for key in ("price_sent", "price_written"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "at least 0")
        require(0 <= self.refused <= 1, "refused", self.refused, "a share in [0, 1]")
        for name, limits in (("round", self.round), ("sweep", self.sweep)):
            priced = limits.money is None or self.price_sent + self.price_written > 0
            require(priced, f"{name}.money", limits.money, "null as long as price_sent and price_written are 0")


class Ledger:
    """What was spent, in a file; `limits` are those of the budget's node `name`."""

    def __init__(self, path: Path, limits: Limits, budget: Budget, name: str):
        self.path, self.limits, self.budget, self.name = path, limits, budget, name

    def spent(self) -> dict[str, float]:
        """requests, sent, written (tokens) and money so far."""
        try:
            known = json.loads(self.path.read_text())
            counts = {key: int(known[key]) for key in ("requests", "sent", "written")}
            if not all(0 <= count <= MOST for count in counts.values()):
                raise ValueError
        except FileNotFoundError:
            counts = dict.fromkeys(("requests", "sent", "written"), 0)
        except (ValueError, KeyError, TypeError):
            raise UserError(str(self.path), None, "is damaged; delete it, and what was spent counts anew") from None
        money = counts["sent"] * self.budget.price_sent + counts["written"] * self.budget.price_written
        return {**counts, "money": money / 1e6}

    def pay(self, sent: int, written: int) -> None:
        """Count the tokens of a reply."""
        with self.held():
            self.add(sent=sent, written=written)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else counts meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_name(f".{self.path.name}.lock")):
            yield

    def add(self, requests: int = 0, sent: int = 0, written: int = 0) -> None:
        """Count, while it is held."""
        spent = self.spent()
        more = {"requests": requests, "sent": sent, "written": written}
        write_atomic(self.path, json.dumps({key: spent[key] + n for key, n in more.items()}), durable=False)

    def check(self) -> None:
        """UserError, whose key is relative to the budget, if nothing is left."""
        spent = self.spent()
        there = {"requests": spent["requests"], "tokens": spent["sent"] + spent["written"], "money": spent["money"]}
        for key, amount in there.items():
            limit = getattr(self.limits, key)
            if limit is not None and amount >= limit:
                why = f"is spent ({amount:g}); what was received is kept: raise it, and the same command goes on"
                raise UserError(f"{self.name}.{key}", limit, why)


def ask(ledgers: Sequence[Ledger]) -> None:
    """Count a request that is to be sent in all of these ledgers, or in none: UserError, whose key is relative to the
    budget, if one of them is spent."""
    with contextlib.ExitStack() as held:
        for ledger in ledgers:
            held.enter_context(ledger.held())
        for ledger in ledgers:
            ledger.check()
        for ledger in ledgers:
            ledger.add(requests=1)
