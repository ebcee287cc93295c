"""Who may come in: API keys for callers, short-lived signed tokens for sessions, and the refusal that says why not."""

import base64
import hashlib
import hmac
import json
import secrets
import time
from pathlib import Path

from relic.serve.config import Serve


class Refused(Exception):
    """A request that is not served: an HTTP status, one sentence and perhaps when to come again."""

    def __init__(self, status: int, sentence: str, retry_after_s: float | None = None):
        super().__init__(sentence)
        self.status, self.sentence, self.retry_after_s = status, sentence, retry_after_s


def bearer(header: str | None) -> str:
    """What an Authorization header carries; empty when it carries nothing."""
    scheme, _, value = (header or "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""


class Access:
    """Keys are held as hashes. A token is `payload.signature`, HMAC-SHA256 by a secret that lives with the process."""

    def __init__(self, keys: dict[str, str], token_s: float):
        self.principals = {hashlib.sha256(key.encode()).digest(): name for key, name in keys.items()}
        self.token_s = token_s
        self.secret = secrets.token_bytes(32)

    @property
    def keys_needed(self) -> bool:
        return bool(self.principals)

    def key_holder(self, key: str) -> str | None:
        """The name that belongs to an API key."""
        return self.principals.get(hashlib.sha256(key.encode()).digest())

    def principal(self, header: str | None, address: str) -> str:
        """The API key's name, or the caller's address where no keys are configured."""
        if not self.keys_needed:
            return address
        if not bearer(header):
            raise Refused(401, "there is no API key; send the header 'Authorization: Bearer KEY'")
        name = self.key_holder(bearer(header))
        if name is None:
            raise Refused(403, "the API key is not one of this server's")
        return name

    def issue(self, session: str) -> str:
        payload = _encode(json.dumps({"session": session, "until": time.time() + self.token_s}).encode())
        return f"{payload}.{self._sign(payload)}"

    def check(self, token: object, session: str) -> None:
        """Refused unless `token` was issued here for this session and is not over."""
        payload, _, signature = token.partition(".") if isinstance(token, str) and token.isascii() else ("", "", "")
        if not payload:
            raise Refused(401, "there is no token; give the one that POST /v1/sessions returned")
        if not hmac.compare_digest(signature, self._sign(payload)):
            raise Refused(403, "the token's signature is wrong; give the one that POST /v1/sessions returned")
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        if claims["session"] != session:
            raise Refused(403, "the token belongs to another session")
        if claims["until"] < time.time():
            raise Refused(403, f"the token is over; it lives {self.token_s:g} s and every pong brings a fresh one")

    def _sign(self, payload: str) -> str:
        return _encode(hmac.digest(self.secret, payload.encode(), "sha256"))


def read_keys(cfg: Serve) -> dict[str, str]:
    """{key: name} of the file of API keys; empty without one."""
    if not cfg.api_keys:
        return {}
    path, keys = Path(cfg.api_keys), {}
    if not path.is_file():
        raise ValueError(f"api_keys {path} is not a file; it has lines of a name and a key")
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            words = line.split()
            if len(words) != 2 or len(words[1]) < 16:
                raise ValueError(f"{path} line {number} is not a name and a key of at least 16 characters")
            keys[words[1]] = words[0]
    if not keys:
        raise ValueError(f"api_keys {path} holds no key; it has lines of a name and a key")
    return keys


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
