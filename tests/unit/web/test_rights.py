from __future__ import annotations

import base64
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from semel.config import Settings
from semel.web.answer import Refusal
from semel.web.rights import ACT, COOKIE, Rights

ADA, BOB = "a" * 20, "b" * 20
OPERATORS = {"ada": {"token": ADA, "rights": ["replay", "edit", "drop", "archive"]}, "bob": {"token": BOB}}
HOST = "127.0.0.1:6066"


def request(remote: str = "127.0.0.1", **headers: str) -> Any:
    sent = {name.replace("_", "-"): value for name, value in {"Host": HOST, **headers}.items()}
    made = make_mocked_request("POST", "/dead-letters/p/actions", headers=sent)
    return made.clone(remote=remote)


def rights(**settings: Any) -> Rights:
    return Rights(Settings(**settings))


def refused(by: Rights, asked: Any, right: str = "replay", said: str = "") -> int:
    with pytest.raises(Refusal) as refusal:
        by.actor(asked, said, right)
    return refusal.value.status


def bearer(token: str) -> str:
    return f"Bearer {token}"


def test_without_operators_only_who_is_on_this_machine_acts_and_nothing_proves_who_it_is() -> None:
    here = rights()
    actor = here.actor(request(), "ada", "edit")
    assert (actor.name, "drop" in actor.rights) == ("ada (not proven)", True)
    assert here.by_name
    assert refused(here, request(remote="10.0.0.7")) == 403
    assert refused(here, request(X_Forwarded_For="10.0.0.7")) == 403
    assert refused(here, request(Via="1.1 proxy")) == 403
    assert refused(here, request(), said="a\nb") == 400


@pytest.mark.parametrize(
    "settings",
    [
        {"web_bind": "0.0.0.0", "web_open": True},
        {"web_bind": "0.0.0.0", "web_token": "t" * 20},
        {"web_url": "http://proxy.example:80"},
        {"web_token": "t" * 20},
        {"broker_security": {"protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "username": "u", "password": "p"}},
        {"broker_security": {"protocol": "SSL"}},
    ],
)
def test_where_others_may_read_or_the_worker_has_more_rights_than_they_nobody_acts_unless_named(settings: Any) -> None:
    closed = rights(**settings)
    assert refused(closed, request()) == 403
    assert "web_operators" in closed.closed
    named = rights(**settings, web_operators=OPERATORS)
    assert named.closed == ""
    assert refused(named, request()) == 401
    assert refused(named, request(Authorization=bearer("t" * 20))) == 401
    assert named.actor(request(Authorization=bearer(ADA), remote="10.0.0.7"), "eve", "drop").name == "ada"


def test_each_right_is_one_of_its_own_and_a_browser_may_give_the_token_as_password() -> None:
    named = rights(web_operators=OPERATORS)
    basic = "Basic " + base64.b64encode(f"whoever:{BOB}".encode()).decode()
    assert named.actor(request(Authorization=basic), "ada", "replay").name == "bob"
    for right in ("edit", "drop", "archive"):
        assert refused(named, request(Authorization=basic), right) == 403
    assert named.knows(basic) and not named.knows(bearer("c" * 20)) and not named.knows(None)


# -- whether they mean it


def meant(by: Rights, asked: Any, form: dict[str, str] | None = None) -> bool:
    try:
        by.check_meant(asked, form)
    except Refusal as refusal:
        assert refusal.status == 403
        return False
    return True


def test_a_form_is_taken_from_a_page_that_was_given_to_the_same_browser_only() -> None:
    by = rights()
    cookie, new = by.cookie_of(request())
    assert new
    token = by.form_token(cookie)
    ours = request(Cookie=f"{COOKIE}={cookie}", Origin=f"http://{HOST}", Sec_Fetch_Site="same-origin")
    assert meant(by, ours, {"csrf": token})
    assert by.cookie_of(ours) == (cookie, False)
    assert not meant(by, ours, {"csrf": "0" * 64})
    assert not meant(by, ours, {})
    assert not meant(by, request(Origin=f"http://{HOST}"), {"csrf": token}), "no cookie"
    assert not meant(by, request(Cookie=f"{COOKIE}={'1' * 32}", Origin=f"http://{HOST}"), {"csrf": token})
    assert not meant(by, request(Cookie=f"{COOKIE}=", Origin=f"http://{HOST}"), {"csrf": by.form_token("")})
    assert not meant(rights(), ours, {"csrf": token}), "another worker's, or the one before it"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:8080"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site", "Origin": "http://127.0.0.1:6066"},
        {"Origin": "http://evil.example", "X_Semel_Act": "1"},
    ],
)
def test_what_a_page_of_another_site_sends_is_refused_whatever_it_knows(headers: dict[str, str]) -> None:
    by = rights()
    cookie, _ = by.cookie_of(request())
    form = {"csrf": by.form_token(cookie)}
    assert not meant(by, request(Cookie=f"{COOKIE}={cookie}", **headers), form)
    assert not meant(by, request(**headers), None)


def test_a_program_says_that_it_acts() -> None:
    by = rights()
    assert not meant(by, request())
    assert meant(by, request(**{ACT: "1"}))


def test_behind_a_proxy_the_name_of_web_url_is_our_own() -> None:
    by = rights(web_url="https://semel.example", web_operators=OPERATORS)
    assert meant(by, request(Origin="https://semel.example", X_Semel_Act="1"))
    assert not meant(by, request(Origin="https://other.example", X_Semel_Act="1"))
