"""A server that only writes: the events per second that asyncio's transports carry when nothing is computed for them.

In: connections that send requests of any kind. Out: to each request the same answer, event after event in turns with the
other connections, as a router delivers one step's tokens. Knows nothing of HTTP but what it looks like.
"""

import argparse
import asyncio

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = (
    b'data: {"index":100,"token":{"id":1000,"text":" the","logprob":-1.2345678,"special":false},'
    b'"generated_text":null,"details":null}\n\n'
)
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
END = b"0\r\n\r\n"


class Connection(asyncio.Protocol):
    def __init__(self, writing: "dict[Connection, int]", num_events: int) -> None:
        self._writing = writing
        self._num_events = num_events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._writing.pop(self, None)

    def data_received(self, data: bytes) -> None:
        """Requests are short: each comes in one piece."""
        self.transport.write(HEAD)
        self._writing[self] = self._num_events


async def serve(port: int, num_events: int) -> None:
    writing: dict[Connection, int] = {}  # events to come
    await asyncio.get_running_loop().create_server(lambda: Connection(writing, num_events), "127.0.0.1", port)
    while True:
        for connection in list(writing):
            connection.transport.write(CHUNK)
            writing[connection] -= 1
            if not writing[connection]:
                connection.transport.write(END)
                del writing[connection]
        await asyncio.sleep(0 if writing else 0.001)


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer every request with the same events, as fast as asyncio writes them.")
    parser.add_argument("--port", type=int, required=True, help="TCP port to listen on")
    parser.add_argument("--num-events", type=int, required=True, help="events in one answer")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.port, arguments.num_events))


if __name__ == "__main__":
    main()
