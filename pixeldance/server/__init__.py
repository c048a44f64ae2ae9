"""The page and the HTTP API, for whoever may use this machine's jobs."""

from pixeldance.server.settings import ServerSettings

__all__ = ["ServerSettings"]
