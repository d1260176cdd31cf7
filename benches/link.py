"""A long link: a proxy on loopback that delays what passes by half a round trip, and throttles each connection."""

import asyncio
import threading
from contextlib import suppress

ROUND_TRIP = 0.050  # seconds
RATE = 20e6  # bytes a second and connection, in each direction
PIECE = 64 << 10


class Link:
    """Stands in front of `target`, a host:port, while the block lasts."""

    def __init__(self, target, port):
        self.target, self.host, self.port = target, f"127.0.0.1:{port}", port

    def __enter__(self):
        self.loop, started = asyncio.new_event_loop(), threading.Event()
        self.thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self.thread.start()
        started.wait()
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    def _serve(self, started):
        asyncio.set_event_loop(self.loop)
        serving = asyncio.start_server(self._connected, "127.0.0.1", self.port, limit=4 * PIECE)
        server = self.loop.run_until_complete(serving)
        started.set()
        self.loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, server.wait_closed(), return_exceptions=True))
        self.loop.close()

    async def _connected(self, reader, writer):
        # A connection takes a round trip to be made.
        await asyncio.sleep(ROUND_TRIP)
        host, port = self.target.split(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port), limit=4 * PIECE)
        # Cancelled is how a connection ends that is open when the link does.
        with suppress(asyncio.CancelledError):
            await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))

    async def _carry(self, reader, writer):
        """Bytes enter the link as fast as it takes them, and leave it half a round trip later."""
        under_way = asyncio.Queue(maxsize=int(RATE * ROUND_TRIP / PIECE) + 1)

        async def arrive():
            while (item := await under_way.get()) is not None:
                due, piece = item
                await asyncio.sleep(due - self.loop.time())
                writer.write(piece)
                await writer.drain()

        arriving = asyncio.ensure_future(arrive())
        free = self.loop.time()
        try:
            while piece := await reader.read(PIECE):
                free = max(free, self.loop.time()) + len(piece) / RATE
                await under_way.put((free + ROUND_TRIP / 2, piece))
                await asyncio.sleep(free - self.loop.time())
        except ConnectionError:
            pass
        await under_way.put(None)
        try:
            await arriving
            writer.close()
        except ConnectionError:
            pass
