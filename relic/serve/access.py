"""Who may come in: API keys for callers, short-lived signed tokens for sessions, and the refusal that says why not.

Everything that is signed is HMAC-SHA256 in base64url, by one secret that replicas and their router share.
"""

import base64
import hashlib
import hmac
import ipaddress
import json
import secrets
import time
from pathlib import Path

from relic.serve.config import Serve

CALLER = "x-relic-caller"  # the header by which a router tells whom it speaks for: "ADDRESS SIGNATURE"
ROUTER = "router"  # the name in a router's token; no session's id is this short
PREFIX = 8  # characters of an export's key that begin the ids of its sessions, before a dot
HASHED = "sha256:"  # before the hash of a key, in the file of keys


class Refused(Exception):
    """A request that is not served: an HTTP status, one sentence and perhaps when to come again.

    `reason` is a word for the metrics and logs, where the sentence, which may quote the caller, does not go."""

    def __init__(self, status: int, sentence: str, retry_after_s: float | None = None, reason: str = ""):
        super().__init__(sentence)
        self.status, self.sentence, self.retry_after_s = status, sentence, retry_after_s
        self.reason = reason or REASONS[status]


REASONS = {
    401: "unauthorized", 403: "forbidden", 404: "unknown", 405: "method", 408: "slow", 409: "own_limit", 410: "ended",
    413: "too_large", 415: "type", 422: "wrong_value", 429: "full", 503: "closing",
}  # fmt: skip


def bearer(header: str | None) -> str:
    """What an Authorization header carries; empty when it carries nothing."""
    scheme, _, value = (header or "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""


def network(address: str) -> str:
    """What one caller surely has for itself: an address, or of IPv6 the 64 bits before its own choice."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # of a connection that has none, such as a Unix socket's
        return address
    if parsed.version == 4 or parsed.is_loopback:
        return str(parsed)
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed.packed, 64), strict=False))


class Access:
    """Keys are held as hashes. A token is `payload.signature`, signed by `secret`; without one, by one of its own."""

    def __init__(self, keys: dict[str, str], token_s: float, secret: bytes = b""):
        self.principals = {_digest(key): name for key, name in keys.items()}
        self.token_s = token_s
        self.secret = secret or secrets.token_bytes(32)

    @property
    def keys_needed(self) -> bool:
        return bool(self.principals)

    def key_holder(self, key: str) -> str | None:
        """The name that belongs to an API key; every key is compared, in constant time."""
        said = hashlib.sha256(key.encode()).digest()
        names = [name for digest, name in self.principals.items() if hmac.compare_digest(digest, said)]
        return names[0] if names else None

    def principal(self, header: str | None, address: str) -> str:
        """The API key's name, or the caller's network where no keys are configured."""
        if not self.keys_needed:
            return network(address)
        if not bearer(header):
            raise Refused(401, "there is no API key; send the header 'Authorization: Bearer KEY'")
        name = self.key_holder(bearer(header))
        if name is None:
            raise Refused(403, "the API key is not one of this server's")
        return name

    def introduce(self, address: str) -> str:
        """The header CALLER by which a router says whose request it brings."""
        return f"{address} {self.sign(address)}"

    def caller(self, header: str | None, peer: str) -> str:
        """The address of who calls: what the header CALLER says if it is signed, else that of the connection.

        Nothing but an address is believed: a token's payload and its signature have the same form."""
        address, _, signature = (header or "").partition(" ")
        if not signature.isascii() or not hmac.compare_digest(signature, self.sign(address)):
            return peer
        try:
            return str(ipaddress.ip_address(address))
        except ValueError:
            return peer

    def issue(self, session: str) -> str:
        payload = _encode(json.dumps({"session": session, "until": time.time() + self.token_s}).encode())
        return f"{payload}.{self.sign(payload)}"

    def check(self, token: object, session: str) -> None:
        """Refused unless `token` was issued here for this session and is not over."""
        payload, _, signature = token.partition(".") if isinstance(token, str) and token.isascii() else ("", "", "")
        if not payload:
            raise Refused(401, "there is no token; give the one that POST /v1/sessions returned")
        if not hmac.compare_digest(signature, self.sign(payload)):
            raise Refused(403, "the token's signature is wrong; give the one that POST /v1/sessions returned")
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        if claims["session"] != session:
            raise Refused(403, "the token belongs to another session")
        if claims["until"] < time.time():
            raise Refused(403, f"the token is over; it lives {self.token_s:g} s and every pong brings a fresh one")

    def check_router(self, header: str | None) -> None:
        """Refused unless an Authorization header carries a router's token."""
        self.check(bearer(header), ROUTER)

    def sign(self, text: str) -> str:
        return _encode(hmac.digest(self.secret, text.encode(), "sha256"))


def read_keys(cfg: Serve) -> dict[str, str]:
    """{key: name} of the file of API keys, a key perhaps as `sha256:HEX` of itself; empty without a file."""
    if not cfg.api_keys:
        return {}
    path, keys = Path(cfg.api_keys), {}
    known: set[bytes] = set()
    if not path.is_file():
        raise ValueError(f"api_keys {path} is not a file; it has lines of a name and a key")
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"api_keys {path} is not text in UTF-8; it has lines of a name and a key") from error
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            words = line.split()
            if len(words) != 2 or not words[1].isascii() or (len(words[1]) < 16 and not words[1].startswith(HASHED)):
                raise ValueError(f"{path} line {number} is not a name and a key of at least 16 ASCII characters")
            if words[1].startswith(HASHED) and not _is_hash(words[1].removeprefix(HASHED)):
                raise ValueError(f"{path} line {number} has a wrong hash; allowed are {HASHED} and 64 digits of hex")
            if _digest(words[1]) in known:
                raise ValueError(f"{path} line {number} has a key that an earlier line has; a key has one name")
            known.add(_digest(words[1]))
            keys[words[1]] = words[0]
    if not keys:
        raise ValueError(f"api_keys {path} holds no key; it has lines of a name and a key")
    return keys


def read_secret(path: str) -> bytes:
    """The secret in a file, the white space around it left out; empty without a file."""
    if not path:
        return b""
    if not Path(path).is_file():
        raise ValueError(f"token_secret {path} is not a file; it holds the secret that signs tokens")
    secret = Path(path).read_bytes().strip()
    if len(secret) < 32:
        raise ValueError(f"token_secret {path} holds {len(secret)} bytes; it must hold at least 32")
    return secret


def _digest(key: str) -> bytes:
    return bytes.fromhex(key.removeprefix(HASHED)) if key.startswith(HASHED) else hashlib.sha256(key.encode()).digest()


def _is_hash(text: str) -> bool:
    return len(text) == 64 and all(letter in "0123456789abcdefABCDEF" for letter in text)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
