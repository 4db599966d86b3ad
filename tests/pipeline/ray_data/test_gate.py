"""An image that is labelled alone has the device to itself."""

import asyncio
from contextlib import suppress

from da2ray.pipeline.ray_data.gate import Gate


def test_one_alone_never_meets_another() -> None:
    inside: set[str] = set()
    together_seen = 0

    async def together(gate: Gate, name: str) -> None:
        nonlocal together_seen
        async with gate.together():
            inside.add(name)
            await asyncio.sleep(0.001)
            assert not any(other.startswith("alone") for other in inside)
            together_seen = max(together_seen, len(inside))
            inside.discard(name)

    async def alone(gate: Gate, name: str) -> None:
        async with gate.alone():
            assert not inside
            inside.add(name)
            await asyncio.sleep(0.001)
            assert inside == {name}
            inside.discard(name)

    async def mix() -> None:
        gate = Gate()
        await asyncio.gather(
            *(alone(gate, f"alone-{n}") if n % 5 == 0 else together(gate, f"together-{n}") for n in range(50))
        )

    asyncio.run(mix())
    assert together_seen > 1


def test_a_failure_inside_leaves_the_gate_open() -> None:
    async def fail(gate: Gate) -> None:
        for way in (gate.together, gate.alone, gate.together):
            with suppress(ZeroDivisionError):
                async with way():
                    _ = 1 / 0

    asyncio.run(asyncio.wait_for(fail(Gate()), 5))
