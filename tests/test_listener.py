"""The port of a server."""

import asyncio
import socket

import pytest

from relic.serve.listener import address, bind


def test_what_is_written_leaves_at_once() -> None:
    async def no_delay() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken = writer.get_extra_info("socket")
            found.set_result(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with bind("127.0.0.1", 0) as listener:
            async with await asyncio.start_server(met, sock=listener):
                _, writer = await asyncio.open_connection(*listener.getsockname())
                answer = await found
                writer.close()
                return answer

    assert asyncio.run(no_delay())


def test_an_address_is_one_that_a_browser_takes() -> None:
    with bind("0.0.0.0", 0) as everywhere:
        assert address(everywhere) == f"http://127.0.0.1:{everywhere.getsockname()[1]}"


def test_a_host_without_an_address_is_said() -> None:
    with pytest.raises(ValueError, match="host is 'no such host', which has no address"):
        bind("no such host", 0)
