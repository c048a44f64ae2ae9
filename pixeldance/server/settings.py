"""How a server is run: its address, who may use it and how much it takes."""

import ipaddress
from dataclasses import dataclass, field

from pixeldance.backbones.options import ModelOptions
from pixeldance.errors import InputError
from pixeldance.request import GenerationRequest

__all__ = ["LOOPBACK", "MIN_TOKEN_LENGTH", "ServerSettings"]

LOOPBACK = "127.0.0.1"

MIN_TOKEN_LENGTH = 16
"""Fewest characters of a token: what is shorter can be guessed over a network."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of a server; the defaults are safe for one person on one machine.

    Attributes:
        host: Address to listen at. Anything but this machine's loopback address needs a token.
        token: Whoever has it may use the server; None lets everybody in who can reach it.
        allowed_hosts: Further names by which the server may be addressed, such as that of a proxy.
        model: Name or folder of the model of requests that name none.
        model_options: How models are loaded; its LoRAs are for that one.
        max_upload_bytes: Most bytes of a form or a file that is uploaded.
        max_json_bytes: Most bytes of any other body.
        max_pixels: Most pixels of all pictures of a request together.
        max_queued: Most jobs that may wait; further ones are refused for the time being.
        max_event_streams: Most event streams that are open at a time.
        heartbeat_s: Seconds of silence after which an event stream shows that it is alive.

    Raises:
        InputError: If one of them is wrong, or others can reach the server without a token.
    """

    host: str = LOOPBACK
    token: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    model: str = GenerationRequest.model_fields["model"].default
    model_options: ModelOptions = field(default_factory=ModelOptions)
    max_upload_bytes: int = 30 * 1024**2
    max_json_bytes: int = 8 * 1024**2
    max_pixels: int = 64_000_000
    max_queued: int = 1000
    max_event_streams: int = 64
    heartbeat_s: float = 15.0

    def __post_init__(self) -> None:
        for name in ("max_upload_bytes", "max_json_bytes", "max_pixels", "max_queued"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.token is None and not self.is_local:
            raise InputError(
                f"The server would listen at {self.host}, where others can reach it, without a "
                "token. Give a token, or listen at 127.0.0.1."
            )
        if self.token is not None and not self._is_fit(self.token):
            raise InputError(
                f"A token must have at least {MIN_TOKEN_LENGTH} characters, and only letters, "
                "digits and -._~. Leave it out to have one made."
            )

    def loras_of(self, model: str) -> tuple[str, ...]:
        """The LoRAs that are added to a model.

        Args:
            model: As requests name it.

        Returns:
            LoRAs; none for another model than the server's own.
        """
        return self.model_options.loras if model == self.model else ()

    @staticmethod
    def _is_fit(token: str) -> bool:
        characters = token.translate(str.maketrans("", "", "-._~"))
        return len(token) >= MIN_TOKEN_LENGTH and characters.isascii() and characters.isalnum()

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
