"""Keys, tokens and the router's word: what is believed, and what is not."""

import hashlib
import time

import pytest

from relic.serve.access import Access, Refused, network, read_keys, read_secret
from relic.serve.config import Serve

KEY = "correct-horse-battery"
HASH = hashlib.sha256(KEY.encode()).hexdigest()
SECRET = b"s" * 32


def refusal(call, *arguments) -> int:
    with pytest.raises(Refused) as error:
        call(*arguments)
    return error.value.status


def test_a_hashed_key_lets_its_own_key_in_and_not_its_hash(tmp_path):
    (tmp_path / "keys").write_text(f"# who may walk\nann sha256:{HASH}\nbob {KEY[::-1]}\n")
    access = Access(read_keys(Serve(run="x", api_keys=str(tmp_path / "keys"))), 60.0)
    assert access.principal(f"Bearer {KEY}", "1.2.3.4") == "ann"
    assert access.principal(f"bearer {KEY[::-1]}", "1.2.3.4") == "bob"
    for wrong in (HASH, f"sha256:{HASH}", KEY + "x"):
        assert refusal(access.principal, f"Bearer {wrong}", "1.2.3.4") == 403
    assert refusal(access.principal, None, "1.2.3.4") == 401


@pytest.mark.parametrize(
    "line",
    [
        "ann short",
        "ann",
        "ann kéy-of-more-than-16",
        "ann sha256:0123456789abcdef",
        f"ann sha256:{'g' * 64}",
        f"ann {KEY}",
        f"ann sha256:{HASH.upper()}",
    ],
)
def test_a_wrong_line_of_the_file_of_keys_is_named(tmp_path, line):
    (tmp_path / "keys").write_text(f"bob {KEY}\n{line}\n")
    with pytest.raises(ValueError, match="line 2"):
        read_keys(Serve(run="x", api_keys=str(tmp_path / "keys")))


def test_a_file_of_keys_that_is_no_text_is_named(tmp_path):
    (tmp_path / "keys").write_bytes(b"bob \xff" + SECRET)
    with pytest.raises(ValueError, match="keys is not text in UTF-8; it has lines of a name and a key"):
        read_keys(Serve(run="x", api_keys=str(tmp_path / "keys")))


def test_servers_with_one_secret_believe_each_others_tokens(tmp_path):
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    one, other, alone = (Access({}, 60.0, secret) for secret in (SECRET, read_secret(f"{tmp_path}/secret"), b""))
    other.check(one.issue("walk"), "walk")
    assert refusal(alone.check, one.issue("walk"), "walk") == 403
    assert refusal(other.check, one.issue("walk"), "talk") == 403


def test_a_secret_that_is_short_or_missing_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(ValueError, match="holds 5 bytes; it must hold at least 32"):
        read_secret(f"{tmp_path}/secret")
    with pytest.raises(ValueError, match="is not a file"):
        read_secret(f"{tmp_path}/nothing")


def test_a_token_ends():
    access = Access({}, 0.01, SECRET)
    token = access.issue("walk")
    time.sleep(0.02)
    assert refusal(access.check, token, "walk") == 403


def test_no_part_of_a_token_can_be_changed():
    access = Access({}, 60.0, SECRET)
    token = access.issue("walk")
    for place in range(len(token)):
        changed = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        assert refusal(access.check, changed, "walk") in (401, 403)
    for wrong in (None, 7, "", ".", "é.é", token + "="):
        assert refusal(access.check, wrong, "walk") in (401, 403)


def test_the_routers_token_is_no_sessions():
    access = Access({}, 60.0, SECRET)
    access.check_router(f"Bearer {access.issue('router')}")
    assert refusal(access.check_router, f"Bearer {access.issue('walk')}") == 403
    assert refusal(access.check_router, None) == 401


def test_a_callers_address_is_believed_only_with_its_signature():
    access = Access({}, 60.0, SECRET)
    payload, _, signature = access.issue("walk").partition(".")
    assert access.caller(access.introduce("10.0.0.7"), "peer") == "10.0.0.7"
    assert access.caller(access.introduce("fd00::7"), "peer") == "fd00::7"
    forged = [None, "", "10.0.0.7", "10.0.0.7 xyz", "10.0.0.7 é", access.introduce("10.0.0.7").replace("7 ", "8 ")]
    for header in [*forged, f"{payload} {signature}", Access({}, 60.0).introduce("10.0.0.7")]:
        assert access.caller(header, "peer") == "peer"


def test_a_caller_without_a_key_is_its_network():
    assert network("10.0.0.7") == "10.0.0.7" == network("::ffff:10.0.0.7")
    assert network("2001:db8:1:2:3::4") == network("2001:db8:1:2:9::9") == "2001:db8:1:2::/64"
    assert (network("::1"), network("unknown")) == ("::1", "unknown")
