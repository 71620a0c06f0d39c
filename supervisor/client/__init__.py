"""The HTTP API of a supervisor for programs: `AsyncClient` for trio, `Client` without a loop.

The command uses it. docs/how-to/write-a-client.md shows it at work.
"""

from supervisor.client.aio import AsyncClient
from supervisor.client.problems import ClientError, Refused, Unreachable
from supervisor.client.sync import Client

__all__ = ["AsyncClient", "Client", "ClientError", "Refused", "Unreachable"]
