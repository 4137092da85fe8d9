"""Names of the keys in Redis. Nothing else makes a key.

All keys of a shard carry its hash tag, so one script may touch them on Redis Cluster too. `N` is
the namespace, `K` the shard; ids and tags come last, so nothing in them is ambiguous. "Stays"
means: by design for as long as what it describes exists.

    key                       type    what                                        lives
    N:{sK}:fence              STRING  fencing counter                             stays
    N:{sK}:lease              STRING  `<fence> <owner>`                           TTL
    N:{sK}:format             STRING  newest schema version of an owner, its release
                                                                                  stays
    N:{sK}:active             ZSET    sort key of each active run, by due time    stays
    N:{sK}:expire             ZSET    sort key of each removable finished run,
                                      by the time from which it may go            stays
    N:{sK}:run:<run>          HASH    active run: `q` sequence, fence and status,
                                      `r` head, `h` vitals, `s<i>` steps          stays
                              STRING  finished run: one line `sequence fence status
                                      length-of-vitals`, vitals, blob             retention
    N:{sK}:out:<run>          HASH    outbox: message id -> message               acknowledgement
    N:{sK}:hist:<run>         LIST    history; item n is at position n - 1        with the run
    N:{sK}:jobs:<run>         HASH    `step:attempt` -> record, newest 100 of
                                      a step; `m<step>` lowest kept, if not 1     with the run
    N:{sK}:ix:<project>       ZSET    `<status letter><sort key>` and `*<sort key>` of
                                      each run, scores 0: pages go by members     with the runs
    N:{sK}:ixw:<project>:<wf> ZSET    the same of one workflow                    with the runs
    N:{sK}:ixt:<project>:<t>  ZSET    `*<sort key>` of the runs with one tag      with the runs
    N:{sK}:busy:<wf>          SET     active runs of a workflow                   with the runs
    N:{sK}:idem:<project>:<h> STRING  remembered answer; h: digest of the key     TTL
    N:{sK}:idemx:<project>    ZSET    digests by expiry: bounds the above         TTL
    N:{sK}:rec:<kind>:<id>    HASH    definition: `p` project, `v` value, `n` revision,
                                      `g` slug, `c` creation                      until deleted
    N:{sK}:slug:<kind>:<p>    HASH    slug -> id                                  with the records
    N:{sK}:recs:<kind>        ZSET    sort keys of all records of a kind          with the records
    N:{sK}:recs:<kind>:<p>    ZSET    the same of one project                     with the records
    N:{sK}:ev:<project>       HASH    kept events: `e<m>` data, `i<key><event id>` m,
                                      `c<key><taker>` m                           TTL
    N:{sK}:evq:<project>      ZSET    m of the waiting events, scores 0           TTL
    N:{sK}:evx:<project>      ZSET    m of all kept events, by expiry             TTL
    N:{sK}:evc:<project>      ZSET    claims by expiry: bounds them               TTL
    N:{sK}:secret:<name>      STRING  32 random bytes                             stays

A sort key is the creation time in milliseconds as 12 hexadecimal digits, then the id: the order
of sort keys is the order of lists, exact also within a millisecond.
"""

from __future__ import annotations

import hashlib
from typing import Final

from pilotage.runtime.status import RunStatus

STATUS_LETTER: Final = {
    RunStatus.PENDING: "p",
    RunStatus.RUNNING: "r",
    RunStatus.PAUSED: "h",
    RunStatus.COMPLETED: "c",
    RunStatus.FAILED: "f",
    RunStatus.TIMED_OUT: "t",
    RunStatus.CANCELED: "x",
}
ALL_LETTER: Final = "*"
TIME_DIGITS: Final = 12


def sort_key(created_at_ms: int, any_id: str) -> str:
    return f"{created_at_ms:012x}{any_id}"


def position(key: str) -> tuple[int, str]:
    """(created_at_ms, id) of a sort key."""
    return int(key[:TIME_DIGITS], 16), key[TIME_DIGITS:]


def digest(text: str) -> str:
    """A fixed length stand-in for a key that a caller chose: 32 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Keys:
    """The keys of one shard of a namespace."""

    def __init__(self, namespace: str, shard: int = 0) -> None:
        if not namespace or not set("{}* \n").isdisjoint(namespace):
            raise ValueError(
                f"namespace {namespace!r}: it must not be empty or have braces, blanks or a star"
            )
        prefix = f"{namespace}:{{s{shard}}}:"
        self.prefix: Final = prefix
        self.fence: Final = prefix + "fence"
        self.lease: Final = prefix + "lease"
        self.format: Final = prefix + "format"
        self.active: Final = prefix + "active"
        self.expire: Final = prefix + "expire"
        self._run: Final = prefix + "run:"
        self._out: Final = prefix + "out:"
        self._hist: Final = prefix + "hist:"
        self._jobs: Final = prefix + "jobs:"

    def run(self, run_id: str) -> str:
        return self._run + run_id

    def outbox(self, run_id: str) -> str:
        return self._out + run_id

    def history(self, run_id: str) -> str:
        return self._hist + run_id

    def job_runs(self, run_id: str) -> str:
        return self._jobs + run_id

    def index(self, project_id: str) -> str:
        return f"{self.prefix}ix:{project_id}"

    def workflow_index(self, project_id: str, workflow_id: str) -> str:
        return f"{self.prefix}ixw:{project_id}:{workflow_id}"

    def tag_index(self, project_id: str, tag: str) -> str:
        return f"{self.prefix}ixt:{project_id}:{tag}"

    def busy(self, workflow_id: str) -> str:
        return f"{self.prefix}busy:{workflow_id}"

    def answer(self, project_id: str, key: str) -> str:
        return f"{self.prefix}idem:{project_id}:{digest(key)}"

    def answers(self, project_id: str) -> str:
        return f"{self.prefix}idemx:{project_id}"

    def record(self, kind: str, record_id: str) -> str:
        return f"{self.prefix}rec:{kind}:{record_id}"

    def slugs(self, kind: str, project_id: str) -> str:
        return f"{self.prefix}slug:{kind}:{project_id}"

    def records(self, kind: str, project_id: str | None) -> str:
        where = f"{self.prefix}recs:{kind}"
        return where if project_id is None else f"{where}:{project_id}"

    def events(self, project_id: str) -> list[str]:
        """Contents, waiting, expiry, claims: in the order that the event scripts expect."""
        return [f"{self.prefix}{name}:{project_id}" for name in ("ev", "evq", "evx", "evc")]

    def secret(self, name: str) -> str:
        return f"{self.prefix}secret:{name}"
