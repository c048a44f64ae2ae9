"""A page in the browser around ``pixeldance.load`` and ``Model.generate``."""

from pixeldance.server.launch import serve
from pixeldance.server.page import build_app

__all__ = ["build_app", "serve"]
