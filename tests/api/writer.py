"""A client in a process of its own, for tests/api/test_pods.py: makes sessions and ends them at random, on any pod.

Arguments: a seed, how many sessions, the pods' addresses. Writes how many it made to standard output.
"""

from __future__ import annotations

import asyncio
import random
import sys

import httpx

from tests.api.conftest import BASE

LANES = 12


async def main(seed: int, count: int, urls: list[str]) -> None:
    chance = random.Random(seed)
    numbers = iter(range(count))
    async with httpx.AsyncClient(timeout=60) as client:

        async def call(method: str, path: str, json: object = None) -> httpx.Response:
            answer = await client.request(method, chance.choice(urls) + BASE + path, json=json)
            assert answer.is_success, answer.text
            return answer

        async def lane(name: str) -> None:
            for number in numbers:
                # With the same task the one before, if it still lives, is replaced.
                task = f"{name}-{number if chance.random() < 0.8 else 'again'}"
                ttl = 1 if chance.random() < 0.05 else 1800
                fields = {"agentId": name, "triggerType": "t", "taskId": task, "ttlSeconds": ttl}
                session = (await call("POST", "", fields)).json()["session"]
                if chance.random() < 0.3:
                    await call("PUT", f"/provider-session/{task}", {"providerSessionId": "p"})
                fate = chance.random()
                if fate < 0.4:
                    await call("DELETE", f"/{session['id']}")
                elif fate < 0.8:
                    await call("DELETE", f"/by-task/{task}")
                elif fate < 0.82:
                    await call("POST", "/cleanup", {"agentId": name})

        await asyncio.gather(*(lane(f"{seed}-{lane_number}") for lane_number in range(LANES)))
    sys.stdout.write(f"{count}\n")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
