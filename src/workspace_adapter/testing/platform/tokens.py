"""What proves who somebody is: the workspace's token, of which the platform knows the hash alone."""

from __future__ import annotations

import secrets
from hashlib import sha256
from pathlib import Path


class Tokens:
    """One live instance token at most, and the secret for calls the other way.

    Args:
        configs_dir: the workspace's ``CONFIGS_DIR``; ``None`` when it cannot be written, as
            where the workspace runs on another machine.
    """

    def __init__(self, configs_dir: Path | None) -> None:
        self._configs_dir = configs_dir
        self._live: str | None = None
        self.inbound_secret = _mint()
        self.delivered = False
        """Whether the workspace has been given the live token."""

    @property
    def any_live(self) -> bool:
        """Whether a bearer is needed."""
        return self._live is not None

    def fits(self, bearer: str | None) -> bool:
        """Whether this is the live token."""
        return bearer is not None and self._live == sha256(bearer.encode()).hexdigest()

    def mint(self) -> str:
        """Make a token and forget the one before; only the hash stays here."""
        token = _mint()
        self._live = sha256(token.encode()).hexdigest()
        self.delivered = False
        return token

    def revoke(self) -> None:
        """Have no live token: the next registration needs none and is given one."""
        self._live = None
        self.delivered = False

    def provision(self) -> None:
        """Make new ones for a container that will start: the token is in its volume before it does."""
        self.inbound_secret = _mint()
        if self._configs_dir is None:
            self.revoke()
            return
        self._configs_dir.mkdir(parents=True, exist_ok=True)
        path = self._configs_dir / ".auth_token"
        new = path.with_name(".auth_token.provision")
        new.touch(mode=0o600)
        new.write_text(self.mint() + "\n")
        new.replace(path)
        self.delivered = True


def _mint() -> str:
    return secrets.token_urlsafe(32)
