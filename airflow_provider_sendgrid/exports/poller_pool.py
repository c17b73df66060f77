"""One poller for all waits on the same account and event loop, closed after the last wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from airflow_provider_sendgrid.exports.client import AsyncSendGridClient
from airflow_provider_sendgrid.exports.export import ExportFamily
from airflow_provider_sendgrid.exports.request_slots import RequestSlots
from airflow_provider_sendgrid.exports.shared_poller import SharedPoller


@dataclass(slots=True)
class _Shared:
    poller: SharedPoller
    client: AsyncSendGridClient
    users: int = 0

    async def aclose(self) -> None:
        await self.poller.aclose()
        await self.client.aclose()


@dataclass(slots=True)
class _Loop:
    """The pollers of one event loop, and the slots of its accounts, which outlive the pollers."""

    shared: dict[Hashable, _Shared] = field(default_factory=dict)
    slots: dict[Hashable, RequestSlots] = field(default_factory=dict)


_LOOPS: WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = WeakKeyDictionary()


@asynccontextmanager
async def acquire_poller(
    key: Hashable, family: ExportFamily, connect: Callable[[], AsyncSendGridClient]
) -> AsyncIterator[SharedPoller]:
    """The poller that all users with the same `key` on this event loop share; closed when the last one leaves.

    The account's slots and rate limit outlive it and hold for both families: after a restart of a triggerer most
    exports may be ready at the first poll, so that one poller follows another.

    Args:
        key: identifies the connection, by its name and all its settings.
        family: of the exports.
        connect: makes the client, if there is none yet.
    """
    loop = _LOOPS.setdefault(asyncio.get_running_loop(), _Loop())
    shared = loop.shared.get((key, family))
    if shared is None:
        client = connect()
        slots = loop.slots.setdefault(key, RequestSlots(client.rate_limit))
        client.rate_limit = slots.rate_limit
        shared = loop.shared[key, family] = _Shared(SharedPoller(client, family, slots=slots), client)
    shared.users += 1
    try:
        yield shared.poller
    finally:
        shared.users -= 1
        if not shared.users:
            del loop.shared[key, family]
            await asyncio.shield(shared.aclose())
