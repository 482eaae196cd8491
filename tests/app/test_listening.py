"""The address the page is served at."""

from __future__ import annotations

import socket

import pytest

from dsno.app.listening import listen, url
from dsno.support.errors import InputError


def test_a_free_port_is_found_and_named() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url(listener) == f"http://127.0.0.1:{port}"
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass


def test_a_port_in_use_is_said() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(InputError) as error:
            listen("127.0.0.1", port)
    assert str(error.value) == (
        f"Port {port} of 127.0.0.1 is in use; give another to --port, or 0 for any free one."
    )


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(InputError, match=f"from 0 to 65535, not {port}"):
        listen("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(InputError, match="Port 0 of 192.0.2.1 cannot be opened"):
        listen("192.0.2.1", 0)  # reserved for documentation: RFC 5737


def test_a_host_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="There is no host not a name"):
        listen("not a name", 0)


def test_every_interface_is_named_by_the_loopback() -> None:
    with listen("0.0.0.0", 0) as listener:
        assert url(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
