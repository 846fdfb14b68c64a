"""A machine without network."""

import socket


def refuse_network(monkeypatch):
    """Every connection, and every look-up of a name, fails at once."""

    def refused(*arguments, **options):
        raise OSError("a test reached for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
