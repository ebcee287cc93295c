"""The server's log: an event in words and facts beside it, as text or as a line of JSON a record.

A fact is an identifier, a count, a reason. Sentences that quote a caller, tokens, keys, prompts and images are none."""

import json
import logging
from datetime import UTC, datetime

logger = logging.getLogger("relic.serve")

CALLERS_OWN = {  # what uvicorn says whenever a caller likes: wrong requests and messages, and streams that are refused
    "Unsupported upgrade request.", "Invalid HTTP request received.", "Invalid UTF-8 sequence received from client.",
    "ASGI callable returned without completing handshake.",
}  # fmt: skip


def note(event: str, **facts: object) -> None:
    """One event, such as "session begun", and what is to be known of it."""
    logger.info(event, extra={"facts": facts})


def announce(kind: str, sentence: str, address: str) -> None:
    """That a server is open: a person's sentence on stdout, or a record."""
    if kind == "json":
        note("open", address=address)
    else:
        print(f"{sentence} is open at {address}   (Ctrl-C closes it)", flush=True)


def configure(kind: str) -> None:
    """Sends all records of the process to stderr, as `kind`: text or json."""
    handler = logging.StreamHandler()
    handler.setFormatter(Json() if kind == "json" else Text("%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for chatty in ("httpx", "httpcore", "websockets"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.getMessage() not in CALLERS_OWN)


class Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        facts = vars(record).get("facts", {})
        return " ".join([super().formatMessage(record), *(f"{name}={value}" for name, value in facts.items())])


class Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(), "logger": record.name, "event": record.getMessage(),
            **vars(record).get("facts", {}),
        }  # fmt: skip
        if record.exc_info:
            said["error"] = self.formatException(record.exc_info)
        return json.dumps(said)
