"""Dead letters over HTTP: a real server over a cluster in memory."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from yarl import URL

from semel.config import Settings
from semel.web.letters import LetterDesk
from semel.web.server import WebServer
from tests.unit.dead_letters.shelf import GROUP, Shelf
from tests.unit.web.workers import Group, HeldView

HTML = {"Accept": "text/html"}
ACT = {"X-Semel-Act": "1"}
ADA = "a" * 20


class Site:
    """A worker's site and one browser."""

    def __init__(self, shelf: Shelf, server: WebServer, client: aiohttp.ClientSession) -> None:
        self.shelf = shelf
        self.server = server
        self.client = client
        self.root = f"/dead-letters/{quote(shelf.name, safe='')}"

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        async with self.client.get(self.url(path), headers=headers) as response:
            assert response.headers["Cache-Control"] == "no-store"
            return response.status, await response.json()

    async def page(self, path: str) -> str:
        async with self.client.get(self.url(path), headers=HTML) as response:
            assert response.status == 200, await response.text()
            assert response.headers["Referrer-Policy"] == "same-origin"
            return await response.text()

    async def post(self, path: str, said: dict[str, Any], **headers: str) -> tuple[int, Any]:
        sent = {**ACT, **headers}
        async with self.client.post(self.url(path), json=said, headers=sent) as response:
            return response.status, await response.json()

    async def submit(self, page: str, button: str, **fields: str) -> aiohttp.ClientResponse:
        """Fill in the form that has this button and send it, as a browser does."""
        forms = Forms(page)
        [form] = [form for form in forms.found if form.button == button]
        sent = {name: value.replace("\n", "\r\n") for name, value in {**form.fields, **fields}.items()}
        headers = {**HTML, "Origin": self.server.url, "Sec-Fetch-Site": "same-origin"}
        return await self.client.post(self.url(form.action), data=sent, headers=headers)

    def url(self, path: str) -> URL:
        return URL(self.server.url + path, encoded=True)

    async def until_over(self, path: str) -> Any:
        async with asyncio.timeout(20):
            while True:
                _, said = await self.get(path)
                if said["state"] != "running":
                    return said
                await asyncio.sleep(0.02)


class Form:
    def __init__(self, action: str) -> None:
        self.action = action
        self.fields: dict[str, str] = {}
        self.button = ""


class Forms(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[Form] = []
        self.tags: list[str] = []
        self._into: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.found.append(Form(given["action"]))
        elif tag == "input" and given.get("type") != "checkbox" and self.found:
            self.found[-1].fields[given["name"]] = given.get("value", "")
        elif tag in ("textarea", "button"):
            self._into.append(given.get("name", "button"))
            if tag == "textarea":
                self.found[-1].fields[given["name"]] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("textarea", "button"):
            self._into.pop()

    def handle_data(self, data: str) -> None:
        if not self._into:
            return
        form = self.found[-1]
        if self._into[-1] == "button":
            form.button += data
        else:
            # As browsers read an area: without the first line break.
            form.fields[self._into[-1]] += data.removeprefix("\n")


@pytest.fixture
async def make_site(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    started: list[Site] = []

    async def make(shelf: Shelf | None = None, **settings: Any) -> Site:
        shelf = shelf or Shelf()
        desk = LetterDesk(shelf.connection, shelf.clock, shelf.plan, shelf.settings)
        server = WebServer(HeldView(Group({}, 1), "w1"), Settings(web_port=0, **settings), letters=desk)
        await server.start()
        client = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))
        started.append(Site(shelf, server, client))
        return started[-1]

    yield make
    for site in started:
        await site.client.close()
        await site.server.stop()


async def test_groups_letters_search_and_audit_are_read(make_site: Any) -> None:
    site = await make_site()
    for number in range(3):
        site.shelf.put(0, key=b"k%d" % number)
    site.shelf.put(1, group="other", trace="at needle")
    status, said = await site.get(site.root)
    assert (status, said["open"], said["complete"]) == (200, 4, True)
    assert [(g["fingerprint"], g["count"], g["keys"], g["version"]) for g in said["groups"]] == [
        (GROUP, 3, 3, "v1"), ("other", 1, 1, "v1")
    ]  # fmt: skip
    status, said = await site.get(f"{site.root}/groups/{quote(GROUP, safe='')}?limit=2")
    assert [row["position"] for row in said["letters"]] == ["0@2", "0@1"]
    _, said = await site.get(f"{site.root}/groups/{quote(GROUP, safe='')}?limit=2&page={said['next']}")
    assert ([row["position"] for row in said["letters"]], said["next"]) == (["0@0"], None)
    _, said = await site.get(f"{site.root}/letters/0@1")
    assert (said["key"], said["state"], said["trace"]) == ("k1", "open", "Traceback")
    _, said = await site.get(f"{site.root}?search=needle")
    assert [row["position"] for row in said["letters"]] == ["1@0"]
    assert await site.get(f"{site.root}/audit") == (200, {"topic": "payments-audit", "entries": [], "next": None})
    assert (await site.get("/dead-letters"))[1][0]["topic"] == "payments.dlq"
    assert "payments" in await site.page("/dead-letters"), "a person is led to the only ones there are"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/dead-letters/other", 404),
        ("{root}/groups/unknown", 404),
        ("{root}/letters/0@99", 404),
        ("{root}/letters/7@0", 404),
        ("{root}/letters/x", 400),
        ("{root}/letters/payments%5B0%5D@0", 400),
        ("{root}?show=all", 400),
        ("{root}?search=", 400),
        ("{root}?search=a&limit=1000", 400),
        ("{root}?search=a&page=%21", 400),
        ("{root}?unknown=1", 400),
        ("{root}/audit?before=x", 400),
        ("{root}/actions/unknown", 404),
    ],
)
async def test_what_cannot_be_meant_is_refused(make_site: Any, path: str, status: int) -> None:
    site = await make_site()
    site.shelf.put()
    assert (await site.get(path.format(root=site.root)))[0] == status


async def test_without_a_topic_of_dead_letters_that_is_said(make_site: Any) -> None:
    shelf = Shelf()
    shelf.letters = "payments.dlq"
    site = await make_site(shelf)
    del shelf.cluster._topics["payments.dlq"]
    status, said = await site.get(site.root)
    assert (status, "there is no dead-letter topic" in said["error"]) == (404, True)
    assert "dead_letters" not in said, "that is where one is"


async def test_a_program_drops_a_group_and_sees_what_came_of_it(make_site: Any) -> None:
    site = await make_site()
    for _ in range(3):
        site.shelf.put()
    site.shelf.put(group="other")
    said = {"action": "drop", "group": GROUP, "reason": "a test", "as": "ada"}
    async with site.client.post(site.url(f"{site.root}/actions"), json=said, headers=ACT) as response:
        assert response.status == 202
        where = response.headers["Location"]
    assert (await site.until_over(where))["letters"] == 3
    [entry] = (await site.get(f"{site.root}/audit"))[1]["entries"]
    assert (entry["action"], entry["by"], entry["reason"]) == ("drop", "ada (not proven)", "a test")
    assert (await site.get(site.root))[1]["open"] == 1
    _, done = await site.get(f"{site.root}?show=done")
    assert [(group["fingerprint"], group["count"]) for group in done["groups"]] == [(GROUP, 3)]


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({}, 400),
        ({"action": "forget"}, 400),
        ({"action": "replay"}, 400),
        ({"action": "replay", "letter": "0@0", "all": True}, 400),
        ({"action": "replay", "letter": "x"}, 400),
        ({"action": "replay", "letter": 1}, 400),
        ({"action": "replay", "all": "yes"}, 400),
        ({"action": "replay", "all": True, "as": "a\nb"}, 400),
        ({"action": "replay", "all": True, "rate": -1}, 400),
        ({"action": "replay", "all": True, "rate": "nan"}, 400),
        ({"action": "drop", "all": True}, 400),
        ({"action": "edit", "all": True, "reason": "x"}, 400),
        ({"action": "edit", "letter": "0@0", "reason": "x"}, 400),
        ({"action": "edit", "letter": "0@9", "reason": "x", "value": 1}, 404),
        ({"action": "archive", "letter": "0@0"}, 400),
    ],
)
async def test_what_is_asked_wrongly_does_nothing(make_site: Any, said: dict[str, Any], status: int) -> None:
    site = await make_site()
    site.shelf.put()
    assert (await site.post(f"{site.root}/actions", said))[0] == status
    assert (await site.get(f"{site.root}/actions"))[1] == []
    assert "payments-audit" not in site.shelf.cluster.topics()


async def test_a_person_edits_a_letter_sees_what_changes_and_confirms(make_site: Any) -> None:
    site = await make_site()
    site.shelf.put(value=b'{"id":"p","account":"a","amount":12345678901234567890123}', trace="")
    group = await site.page(f"{site.root}/groups/{quote(GROUP, safe='')}")
    assert "letters/0%400" in group
    page = await site.page(f"{site.root}/letters/0@0/edit")
    text = '{\n  "id": "p",\n  "account": "a",\n  "amount": 12\n}\n'
    shown = await site.submit(page, "Show what changes", text=text)
    assert shown.status == 200, await shown.text()
    diff = await shown.text()
    assert "12345678901234567890123" in diff and "&quot;amount&quot;: 12</span>" in diff
    again = await site.submit(diff, "Edit it again")
    assert again.status == 200
    assert Forms(await again.text()).found[-1].fields["text"].splitlines() == text.splitlines()
    done = await site.submit(diff, "Replay with this value", reason="typo", hold="1", **{"as": "ada"})
    assert (done.status, done.history[0].status) == (200, 303)
    assert (await site.until_over(done.url.path))["letters"] == 1
    [entry] = site.shelf.audited()
    assert (entry.action, entry.by, entry.reason) == ("edit", "ada (not proven)", "typo")
    assert "typo" in await site.page(f"{site.root}/letters/0@0")


async def test_a_value_that_a_program_sends_is_written_as_it_was_to_the_digit(make_site: Any) -> None:
    site = await make_site()
    site.shelf.put(value=b'{"id":"p","account":"a","amount":"x"}')
    raw = b'{"value": {"id": "p", "account": "a", "amount": 1, "note": 12345678901234567890123, "rate": 1.10}}'
    url = site.url(f"{site.root}/letters/0@0/diff")
    async with site.client.post(url, data=raw, headers={**ACT, "Content-Type": "application/json"}) as response:
        said = await response.json()
    assert response.status == 200, said
    assert '+  "note": 12345678901234567890123,' in said["changes"] and '+  "rate": 1.10' in said["changes"]
    async with site.client.post(url, data={"value": "1"}, headers=ACT) as refused:
        assert refused.status == 403


@pytest.mark.parametrize("path", ["/groups/nobody%40knows", "/letters/0@99"])
async def test_a_group_or_letter_that_is_not_there_leads_back_to_those_that_are(make_site: Any, path: str) -> None:
    site = await make_site()
    site.shelf.put()
    async with site.client.get(site.url(site.root + path), headers=HTML) as missing:
        assert (missing.status, f'<a href="{site.root}">dead letters</a>' in await missing.text()) == (404, True)
    status, said = await site.get(site.root + path)
    assert (status, said["dead_letters"]) == (404, site.root)


async def test_the_worker_answers_to_no_name_that_leads_here_from_another_site(make_site: Any) -> None:
    site = await make_site()
    site.shelf.put()
    for method in ("GET", "POST"):
        headers = {**HTML, **ACT, "Host": "rebound.example", "Origin": "http://rebound.example"}
        async with site.client.request(method, site.url(site.root), headers=headers) as refused:
            assert refused.status == 403


async def test_what_the_pipeline_could_not_read_is_said_before_anything_is_done(make_site: Any) -> None:
    site = await make_site()
    site.shelf.put()
    page = await site.page(f"{site.root}/letters/0@0/edit")
    refused = await site.submit(page, "Show what changes", text='{"id": "p0"}')
    again = await refused.text()
    assert (refused.status, "not what the topic declares" in again) == (400, True)
    assert Forms(again).found[-1].fields["text"] == '{"id": "p0"}', "what was written is not lost"
    mended = await site.submit(again, "Show what changes", text='{"id":"p0","account":"a","amount":1}')
    assert mended.status == 200 and "Replay with this value" in await mended.text()
    other = await (await site.submit(page, "Show what changes", text='{"id":"q","account":"a","amount":1}')).text()
    assert "it would be another event" in other and 'name="new_id" value="1" required' in other


async def test_a_form_of_another_site_or_of_no_page_of_ours_does_nothing(make_site: Any) -> None:
    site = await make_site()
    site.shelf.put()
    page = await site.page(site.root)
    [csrf] = set(re.findall(r'name="csrf" value="(\w+)"', page))
    form = {"csrf": csrf, "action": "drop", "all": "1", "reason": "x"}
    url = site.url(f"{site.root}/actions")
    for headers in (
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://evil.example", "Host": "evil.example"},
    ):  # fmt: skip
        async with site.client.post(url, data=form, headers=headers) as refused:
            assert refused.status == 403, headers
    async with aiohttp.ClientSession() as foreign, foreign.post(url, data=form) as refused:
        assert refused.status == 403, "the browser was never given this form"
    async with site.client.post(url, json=form) as refused:
        assert refused.status == 403, "no program, and no form"
    async with site.client.post(url, data={**form, "csrf": "0"}, headers={"Origin": site.server.url}) as refused:
        assert refused.status == 403
    assert (await site.get(f"{site.root}/actions"))[1] == []


async def test_who_has_a_token_does_what_its_rights_say_and_stands_in_the_audit(make_site: Any) -> None:
    operators = {"ada": {"token": ADA, "rights": ["drop"]}, "bob": {"token": "b" * 20}}
    site = await make_site(web_operators=operators)
    site.shelf.put()
    drop = {"action": "drop", "all": True, "reason": "x", "as": "somebody else"}
    async with site.client.post(site.url(f"{site.root}/actions"), json=drop, headers=ACT) as refused:
        # Chromium asks for a password only where Basic comes first.
        assert (refused.status, refused.headers["WWW-Authenticate"][:6]) == (401, "Basic ")
    assert (await site.post(f"{site.root}/actions", drop, Authorization=f"Bearer {'b' * 20}"))[0] == 403
    status, run = await site.post(f"{site.root}/actions", drop, Authorization=f"Bearer {ADA}")
    assert (status, run["by"]) == (202, "ada")
    await site.until_over(f"{site.root}/actions/{run['id']}")
    assert [entry.by for entry in site.shelf.audited()] == ["ada"]


async def test_an_operator_may_read_where_a_token_is_asked_for(make_site: Any) -> None:
    site = await make_site(web_token="t" * 20, web_operators={"ada": {"token": ADA}})
    site.shelf.put()
    assert (await site.get(site.root))[0] == 401
    assert (await site.get(site.root, Authorization=f"Bearer {ADA}"))[0] == 200
    assert (await site.get(site.root, Authorization=f"Bearer {'t' * 20}"))[0] == 200
    said = {"action": "replay", "all": True}
    assert (await site.post(f"{site.root}/actions", said, Authorization=f"Bearer {'t' * 20}"))[0] == 401


async def test_where_nobody_may_act_the_page_says_why_and_has_no_form(make_site: Any) -> None:
    site = await make_site(web_token="t" * 20)
    site.shelf.put()
    site.client.headers["Authorization"] = f"Bearer {'t' * 20}"
    for path in ("", f"/groups/{quote(GROUP, safe='')}", "/letters/0@0", "/letters/0@0/edit"):
        page = await site.page(site.root + path)
        assert "web_operators" in page and 'method="post"' not in page


async def test_an_action_of_many_is_stopped_and_one_beside_it_is_refused(make_site: Any) -> None:
    site = await make_site()
    for _ in range(300):
        site.shelf.put()
    _, run = await site.post(f"{site.root}/actions", {"action": "replay", "all": True, "rate": 50, "keep_going": True})
    where = f"{site.root}/actions/{run['id']}"
    async with asyncio.timeout(20):
        while (await site.get(where))[1]["letters"] < 20:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    busy, said = await site.post(f"{site.root}/actions", {"action": "replay", "all": True})
    assert (busy, run["id"] in said["error"]) == (409, True)
    page = await site.page(where)
    assert "Stop it" in page and 'http-equiv="refresh"' in page
    assert (await site.submit(page, "Stop it")).status == 200
    said = await site.until_over(where)
    assert said["state"] == "stopped"
    assert 20 <= sum(entry.count for entry in site.shelf.audited()) < 300


async def test_a_server_that_stops_ends_what_runs(make_site: Any) -> None:
    site = await make_site()
    for _ in range(300):
        site.shelf.put()
    await site.post(f"{site.root}/actions", {"action": "replay", "all": True, "rate": 10, "keep_going": True})
    await asyncio.sleep(0.2)
    async with asyncio.timeout(5):
        await site.server.stop()
    told = sum(entry.count for entry in site.shelf.audited())
    await asyncio.sleep(0.3)
    assert sum(entry.count for entry in site.shelf.audited()) == told


async def test_a_body_that_is_too_large_or_no_json_is_refused(make_site: Any) -> None:
    site = await make_site()
    url = site.url(f"{site.root}/actions")
    async with site.client.post(url, data=b"{" + b" " * (2 << 20), headers=ACT) as refused:
        assert refused.status == 413
    for body in (b"{", b"[]", b"\xff"):
        async with site.client.post(url, data=body, headers=ACT) as refused:
            assert refused.status == 400


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


async def test_whatever_stands_in_a_letter_is_text_on_every_page(make_site: Any) -> None:
    site = await make_site()
    raw = HOSTILE.encode()
    shelf = site.shelf
    shelf.put(
        group=f"g{HOSTILE}/..", key=raw, value=raw, headers=((HOSTILE, raw),), error=HOSTILE, version=HOSTILE, topic="payments",
        trace=f"</pre>{HOSTILE}",
    )  # fmt: skip
    shelf.put(group="..", key=b"</textarea>", value=b"</textarea>" + raw, topic=f"t{HOSTILE}")
    listed = (await site.get(site.root))[1]["groups"]
    pages = [site.root, f"{site.root}?search={quote(HOSTILE)}", f"{site.root}/letters/0@0", f"{site.root}/letters/0@1"]
    pages += [f"{site.root}/letters/0@{n}/edit" for n in range(2)]
    for group in listed:
        path = f"{site.root}/groups/{quote(group['fingerprint'], safe='').replace('.', '%2E')}"
        pages += [path]
    said = {"action": "drop", "group": f"g{HOSTILE}/..", "reason": HOSTILE, "as": HOSTILE}
    _, run = await site.post(f"{site.root}/actions", said)
    await site.until_over(f"{site.root}/actions/{run['id']}")
    pages += [
        f"{site.root}/actions",
        f"{site.root}/actions/{run['id']}",
        f"{site.root}/audit",
        f"{site.root}?show=done",
    ]
    for path in pages:
        page = await site.page(path)
        tags = set(Forms(page).tags)
        assert not tags & {"script", "img"}, path
        assert "<script" not in page and "onerror=alert(2)>" not in page.replace("&gt;", ""), path
