"""What a server may be told, and the sentence for what it may not."""

import pytest

from relic.serve.config import Router, Serve

WRONG = {
    "drain_s": -1.0, "rest_s": -1.0, "hello_s": 0.0, "message_bytes": 0, "image_bytes": 0, "image_pixels": -1,
    "max_speed": -1.0, "max_magnitude": 0.0, "prompt_characters": -1, "gpus": 0, "chunk": -1, "context": "loud",
    "rewind_points": -1, "sockets": -1, "image_memory": 1, "messages_per_s": 501.0, "log_format": "xml",
    "jpeg_quality": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_named_with_what_is_allowed(name: str):
    with pytest.raises(ValueError, match=rf"{name} (is )?'?{WRONG[name]}'?.*(must|allowed)"):
        Serve(run="fake", **{name: WRONG[name]})  # type: ignore[arg-type]


def test_snapshots_need_the_secret_that_signs_them():
    with pytest.raises(ValueError, match="snapshots is 'here' without token_secret"):
        Serve(run="fake", snapshots="here")


def test_a_routers_servers_are_names_and_ports():
    with pytest.raises(ValueError, match="replicas is 'a b'; it must be NAME:PORT, or several between commas"):
        Router(replicas="a b", token_secret="file")
