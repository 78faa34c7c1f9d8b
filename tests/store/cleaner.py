"""A process that cleans up once when it is told to, and prints how many it ended. Takes URL, namespace and shards."""

from __future__ import annotations

import asyncio
import sys

from tests.store.wire import a_cleanup
from tracker.settings import Settings
from tracker.store.store import open_store


async def main(url: str, namespace: str, shards: str) -> None:
    settings = Settings(store_url=url, namespace=namespace, shards=int(shards), store_timeout_seconds=10)
    async with open_store(settings) as store:
        await store.inspect()
        say("ready")
        sys.stdin.readline()
        say(str(await store.sweeper.cleanup(a_cleanup())))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
