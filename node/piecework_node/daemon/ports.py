"""The ports of one life of the daemon."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from piecework.base.listener import CannotListen, bind
from piecework_node.config import WorkerConfig
from piecework_node.endpoints import split_endpoint
from piecework_node.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Ports:
    """The sockets that the daemon listens on, bound before anything that takes long."""

    jobs: Sequence[socket.socket]
    admin: Sequence[socket.socket]

    @classmethod
    def bind(cls, config: WorkerConfig) -> Self:
        """Bind both ports.

        Raises:
            ConfigError: a port is taken, or its address is not ours. The text is one line.
        """
        jobs: Sequence[socket.socket] = ()
        try:
            jobs = bind(*split_endpoint(config.bind)) if config.listens else ()
            return cls(jobs, bind(config.admin_host, config.admin_port))
        except CannotListen as error:
            for sock in jobs:
                sock.close()
            raise ConfigError(f"{error}. Is another worker running?") from None

    def close(self) -> None:
        """Let go of both ports. It may be called after servers have closed them."""
        for sock in (*self.jobs, *self.admin):
            sock.close()
