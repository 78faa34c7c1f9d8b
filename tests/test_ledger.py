"""The ledger of the million sessions: silent on a run that is right, and sure of what each other one breaks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.ledger import LAG_MS, End, Ledger, Verdict

SHARDS = 4


def id_in(shard: int, number: int) -> str:
    return f"0199b1f2-6c1e-7{shard:03x}-8000-{number:012x}"


LASTING, SILENT, DELETED, REPLACED, SUCCESSOR, UNHEARD = (id_in(1, number) for number in range(6))
TTL = 10_000.0


class Run:
    """Of 60 s. ``UNHEARD``: of a create without an answer."""

    def __init__(self) -> None:
        self.ledger = Ledger(SHARDS)
        for number, name in enumerate((LASTING, SILENT, DELETED, REPLACED)):
            self.ledger.created(name, TTL, number, number + 5)
        self.ledger.renewed(LASTING, 9000, 9005)
        self.ledger.renewed(SILENT, 8000, 8005)
        self.ledger.may_end(DELETED, "deleted")
        self.ledger.must_end(DELETED, 7005)
        self.ledger.missed(DELETED, 7100, 7105)
        self.ledger.may_end(REPLACED, "replaced")
        self.ledger.created(SUCCESSOR, 60_000, 7000, 7010)
        self.ledger.must_end(REPLACED, 7010)
        self.ledger.unsure("t-unsure")
        for number in range(1, 6):
            self.ledger.renewed(LASTING, 9000 * number, 9000 * number + 5)
        self.created = [(SUCCESSOR, "t3"), (UNHEARD, "t-unsure")]
        self.ends = [End(DELETED, 7002, "deleted"), End(REPLACED, 7005, "replaced"), End(SILENT, 18_500, "expired")]
        self.living = {LASTING, SUCCESSOR, UNHEARD}

    def lose(self, killed: float, shard: int = 1) -> Run:
        self.ledger.losses.append(({shard}, killed))
        return self

    def judge(self) -> Verdict:
        return self.ledger.judge(self.created, self.ends, self.living, 50_000)

    def kinds(self) -> set[str]:
        return {fault.partition(":")[0] for fault in self.judge().faults}


def test_a_run_that_is_right_has_no_fault() -> None:
    assert Run().judge() == Verdict([], 0, {"deleted": 1, "expired": 1, "replaced": 1})


def end(run: Run, name: str, at: int, reason: str) -> None:
    run.ends.append(End(name, at, reason))
    run.living.discard(name)


def revive(run: Run, name: str) -> None:
    run.ends = [one for one in run.ends if one.id != name]
    run.living.add(name)


WRONG: dict[str, tuple[str, Callable[[Run], object]]] = {
    "a session expires before its deadline": ("false expiry", lambda run: end(run, LASTING, 54_900, "expired")),
    "an end is told twice": ("not one end", lambda run: end(run, SILENT, 19_000, "expired")),
    "an end is not told": ("not one end", lambda run: run.living.discard(LASTING)),
    "one ends and lives": ("not one end", lambda run: run.ends.append(End(SUCCESSOR, 49_000, "replaced"))),
    "nobody asked for an end": ("wrong end", lambda run: end(run, SUCCESSOR, 20_000, "deleted")),
    "an acknowledged delete did nothing": ("no end", lambda run: revive(run, DELETED)),
    "one stays after its deadline": ("no expiry", lambda run: revive(run, SILENT)),
    "one lives that nobody created": ("unknown session", lambda run: run.living.add(id_in(2, 9))),
    "one ends that nobody created": ("unknown end", lambda run: run.ends.append(End(id_in(2, 9), 1, "expired"))),
    "a live one is not found": ("not found", lambda run: run.ledger.missed(LASTING, 20_000, 20_005)),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_run_in_which(what: str) -> None:
    kind, change = WRONG[what]
    run = Run()
    change(run)
    assert kind in run.kinds()


def create_in_vain(run: Run) -> None:
    run.ledger.created(id_in(1, 9), TTL, 20_000, 20_005)


def delete_in_vain(run: Run) -> None:
    """The session is back, and ends at its deadline."""
    run.ledger.created(id_in(1, 9), TTL, 12_000, 12_005)
    run.ledger.may_end(id_in(1, 9), "deleted")
    run.ledger.renewed(id_in(1, 9), 18_000, 18_005)
    run.ledger.must_end(id_in(1, 9), 20_005)
    run.ledger.renewed(id_in(1, 9), 45_000, 45_005)
    run.living.add(id_in(1, 9))


def renew_in_vain(run: Run) -> None:
    """It ends at the deadline before."""
    run.ledger.created(id_in(1, 9), TTL, 12_000, 12_005)
    run.ledger.renewed(id_in(1, 9), 20_000, 20_005)
    run.ends.append(End(id_in(1, 9), 22_500, "expired"))


@pytest.mark.parametrize("change", [create_in_vain, delete_in_vain, renew_in_vain])
def test_what_a_master_acknowledged_in_its_last_second_may_be_lost(change: Callable[[Run], None]) -> None:
    """Nothing earlier, nothing later, and no other master's."""
    run = Run()
    change(run)
    assert run.kinds()
    run = Run().lose(20_500)
    change(run)
    assert run.judge().faults == []
    for killed, shard in [(20_010 + LAG_MS, 1), (19_900, 1), (20_500, 2)]:
        run = Run().lose(killed, shard)
        change(run)
        assert run.kinds(), (killed, shard)


def test_few_of_many_faults_are_told() -> None:
    run = Run()
    run.living |= {id_in(2, number) for number in range(100)}
    assert len(run.judge().faults) == 6
    assert run.judge().faults[-1] == "unknown session: 100 in all"
