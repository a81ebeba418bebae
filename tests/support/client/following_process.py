"""A process of a client that follows a job until it is told to stop, or killed.

    python -P -m tests.support.client.following_process DATABASE

It prints the job's id when it follows it, and leaves when its standard input ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

from piecework.client.journal.store import Store
from tests.support.chain.fake_chain import DOMAIN
from tests.support.client.client_side import PAYER
from tests.unit.client.test_store import UNTIL, exactly, job_row, terms

if __name__ == "__main__":
    store = Store(Path(sys.argv[1]), DOMAIN, PAYER.address)
    store.open_channel(terms())
    job = job_row(1, 100, owner=store.owner)
    store.admit(job, None, exactly, UNTIL)
    print(job.id.hex(), flush=True)
    sys.stdin.read()
    store.close()
