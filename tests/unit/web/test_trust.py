"""Members of the consumer group may claim any URL: what goes there, and what its answers can do."""

import asyncio
import base64
import json
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import pytest

from semel.web.auth import HOP, PROOF
from semel.web.trust import TICKET_S, GroupKey, Tickets

TOKEN = "a token of some length"
ROW = {"key": "k", "value": 1, "partition": 0, "raw": base64.b64encode(b"k").decode()}
FORGED = "<h1>forged</h1>"
PATHS = ("/tables/t/k1", "/tables/t", "/tables", "/dedup/shop/x")


class Liar:
    """A server at a URL that a member claims. `answer(path)` gives status and body; with `key` it can prove itself."""

    def __init__(self, answer, key=None):
        self.answer, self.key = answer, key
        self.asked, self.headers = [], []
        self.url = ""

    async def serve(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                line, *given = head.strip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (f.partition(":") for f in given)}
                path = line.split(" ")[1]
                self.asked.append(path)
                self.headers.append(headers)
                status, body = (200, {"ticket": "t"}) if path == "/ticket" else self.answer(path)
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                proof = self.key.of_answer(self.url, headers[HOP.lower()], status, raw) if self.key else "0" * 64
                fields = f"Content-Length: {len(raw)}\r\nLocation: {self.url}/x\r\n{PROOF}: {proof}"
                writer.write(f"HTTP/1.1 {status} X\r\n{fields}\r\n\r\n".encode() + raw)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def lying(answer, key=None):
    liar = Liar(answer, key)
    server = await asyncio.start_server(liar.serve, "127.0.0.1", 0)
    liar.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield liar


@pytest.fixture
def victim(start, group, keyed):
    """`await victim(url, token)`: a worker beside a member that claims all but one partition at this URL."""

    async def make(url, token=TOKEN):
        shop = group(t=keyed({f"k{n}": n for n in range(8)}))
        (worker,) = await start(shop, "a", **({"web_token": token} if token else {}))
        shop.urls["liar"] = url
        shop.holder.update(dict.fromkeys(range(3), "liar"))
        return worker

    return make


async def asked(worker, path, token=TOKEN, **headers):
    return await worker.get(path, **headers, **({"Authorization": f"Bearer {token}"} if token else {}))


# -- what goes there


async def test_the_caller_s_token_goes_to_no_worker_at_all(start, group, keyed):
    seen = []
    shop = group(t=keyed({f"k{n}": n for n in range(8)}))
    workers = await start(shop, "a", "b", web_token=TOKEN)
    for worker in workers:
        client = worker.server._peers._client()
        inner = client._request

        async def spying(method, url, inner=inner, **options):
            seen.append((str(url), dict(options["headers"])))
            return await inner(method, url, **options)

        client._request = spying
    for worker in workers:
        for n in range(8):
            answer = await asked(worker, f"/tables/t/k{n}")
            assert answer.json["value"] == n
        assert (await asked(worker, "/tables")).json[0]["rows"] == 8
    assert len(seen) > 8
    assert TOKEN not in json.dumps(seen)
    assert base64.b64encode(TOKEN.encode()).decode()[:20] not in json.dumps(seen)


async def test_a_url_that_does_not_prove_itself_hears_no_more_than_a_question_for_a_ticket(victim):
    async with lying(lambda path: (200, {"rows": [ROW]})) as liar:
        worker = await victim(liar.url)
        for path in PATHS:
            answer = await asked(worker, path)
            assert answer.status == (200 if path == "/tables" else 502), path
            assert "does not prove" in answer.text or path == "/tables"
        assert set(liar.asked) == {"/ticket"}
        for headers in liar.headers:
            assert "authorization" not in headers
            assert TOKEN not in json.dumps(headers)


async def test_a_worker_of_an_earlier_version_is_asked_and_answered_with_nothing_it_would_read_amiss(
    start, group, keyed, table_data
):
    """It asks with another hop header, and reads the answers otherwise; it knows no tickets."""
    tables = {"t": keyed({"k": 1}), "m": table_data({0: {"k": 1}}, merged=True)}
    (worker,) = await start(group(partitions=1, **tables), "a", web_token=TOKEN)
    for path in ("/dedup/shop/pay-1", "/tables/m/k?partitions=0", "/tables/t?partitions=0", "/tables"):
        answer = await asked(worker, path, X_Semel_Hop="1")
        assert answer.status == 503, path
        assert "another version of semel" in answer.json["error"] and answer.headers["Retry-After"] == "1"


async def test_who_cannot_prove_itself_may_be_of_an_earlier_version(victim):
    async with lying(lambda path: (404, {"error": "Not Found"})) as liar:
        answer = await asked(await victim(liar.url), "/tables/t/k1")
        assert answer.status == 502 and "an earlier version of semel" in answer.json["error"]


async def test_a_redirect_is_not_followed(victim):
    async with lying(lambda path: (302, {})) as liar:
        worker = await victim(liar.url)
        assert (await asked(worker, "/tables/t/k1")).status == 502
        assert set(liar.asked) == {"/ticket"}


async def test_a_member_that_passes_the_question_on_to_a_true_worker_proves_nothing(victim, start, group, keyed):
    (true,) = await start(group(t=keyed({"k": 1})), "b", web_token=TOKEN)
    worker = await victim("http://127.0.0.1:1")
    seen = []

    async def relay(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head)
        host, port = urlsplit(true.server.url).netloc.split(":")
        there, back = await asyncio.open_connection(host, int(port))
        back.write(head)
        writer.write(await there.readuntil(b"\r\n\r\n"))
        writer.write(await there.read(1 << 16))
        writer.close()
        back.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    worker.view.group.urls["liar"] = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        answer = await asked(worker, "/tables/t/k1")
    assert answer.status == 502
    assert len(seen) == 1 and b"GET /ticket" in seen[0]


async def test_what_a_worker_signs_admits_nobody_anywhere_else(start, group, keyed):
    first, second = await start(group(t=keyed({"k": 1})), "a", "b", web_token=TOKEN)
    key = GroupKey("shop", TOKEN)
    path, nonce = "/tables/t?partitions=0", "0" * 32

    async def status(worker, to, target=path, ticket=None, sent_nonce=nonce):
        given = ticket or (await worker.get("/ticket")).json["ticket"]
        mac = key.of_request(to.server.url, target, given, nonce)
        return (await worker.get(path, X_Semel_Hop=sent_nonce, Authorization=f"semel {given}:{mac}")).status

    assert await status(first, first) in (200, 421)
    assert await status(second, first) == 401
    assert await status(first, first, target="/tables/t?partitions=1") == 401
    assert await status(first, first, ticket="0" * 32) == 401
    assert await status(first, first, ticket=(await second.get("/ticket")).json["ticket"]) == 401
    assert await status(first, first, sent_nonce="1" * 32) == 401
    for odd in ("semel", "semel :", "semel x", "semel \udcff:\udcff", "semel a:b:c"):
        assert (await first.get(path, X_Semel_Hop=nonce, Authorization=odd)).status == 401


async def test_workers_with_another_token_are_named_as_such(start, group, keyed):
    shop = group(t=keyed({f"k{n}": n for n in range(8)}))
    (first,) = await start(shop, "a", web_token=TOKEN)
    (second,) = await start(shop, "b", web_token="another token, as long")
    shop.holder.update({0: "a", 1: "b", 2: "a", 3: "b"})

    answers = [await asked(first, f"/tables/t/k{n}") for n in range(8)]

    assert {answer.status for answer in answers} == {200, 502}
    refused = next(answer for answer in answers if answer.status == 502)
    assert "web_token" in refused.json["error"] and second.server.url in refused.json["error"]


async def test_without_a_token_workers_still_find_each_other_and_pass_nothing_on(victim, start, group, keyed):
    async with lying(lambda path: (200, {"rows": [ROW]})) as liar:
        worker = await victim(liar.url, token=None)
        answer = await worker.get("/tables/t/k1", Authorization="Bearer of somebody's", Cookie="a=b")
        assert answer.status == 502
        assert set(liar.asked) == {"/ticket"}
        assert all("authorization" not in headers and "cookie" not in headers for headers in liar.headers)


async def test_a_ticket_lasts_for_its_time_and_an_old_one_is_asked_for_anew(start, group, keyed, monkeypatch):
    shop = group(t=keyed({f"k{n}": n for n in range(8)}))
    first, second = await start(shop, "a", "b", web_token=TOKEN)
    now = [1000.0]
    for worker in (first, second):
        worker.server._guard.tickets = Tickets(lambda: now[0])
    for _ in range(4):
        for n in range(8):
            assert (await asked(first, f"/tables/t/k{n}")).status == 200
        now[0] += 3 * TICKET_S


def test_tickets_are_good_for_their_time_and_of_one_process_only():
    now = [0.0]
    tickets, others = Tickets(lambda: now[0]), Tickets(lambda: now[0])
    ticket = tickets.give()
    assert tickets.good(ticket) and not others.good(ticket)
    now[0] = TICKET_S
    assert tickets.good(ticket)
    now[0] = 2 * TICKET_S
    assert not tickets.good(ticket)


def test_keys_differ_by_app_and_token_and_a_mac_by_each_of_its_parts():
    keys = [GroupKey("a", None), GroupKey("b", None), GroupKey("a", TOKEN), GroupKey("b", TOKEN), GroupKey("a", "x")]
    macs = {key.of_request("http://h", "/p", "t", "n") for key in keys}
    key = keys[2]
    macs |= {key.of_request("http://h", "/p", "tn", ""), key.of_request("http://h/", "p", "t", "n")}
    macs |= {key.of_answer("http://h", "n", 200, b"x"), key.of_answer("http://h", "n", 20, b"0x")}
    assert len(macs) == 9


# -- what its answers can do: even a member that knows the token is no part of this process


ODD = [
    {"error": "?"}, [1, 2], {}, {"rows": 5, "slices": 5, "marks": 5}, {"rows": [5], "slices": [5], "marks": [5]}, [{"table": 5}],
    {"rows": [ROW | {"partition": FORGED}], "marks": ["x"],
     "slices": [{"partition": 0, "rows": [ROW | {"partition": FORGED}], "more": False, "last": ""}]},
    {"rows": [ROW | {"partition": 3}], "marks": [{"verdict": FORGED}],
     "slices": [{"partition": 0, "rows": [ROW | {"partition": 3}], "more": False, "last": ""}]},
    {"rows": [ROW | {"raw": "no base64!"}], "slices": [{"partition": FORGED}], "marks": None}, b"", b"null", b"{not json",
    b"[" * 100_000 + b"]" * 100_000, b"\xff\xfe",
]  # fmt: skip


@pytest.mark.parametrize("body", ODD, ids=lambda body: str(body)[:40])
async def test_an_answer_in_another_form_is_502_and_nothing_of_it_is_shown(body, victim):
    async with lying(lambda path: (200, body), GroupKey("shop", TOKEN)) as liar:
        worker = await victim(liar.url)
        for path in PATHS:
            for accept in ("application/json", "text/html"):
                answer = await asked(worker, path, Accept=accept)
                assert answer.status == (200 if path == "/tables" else 502), (path, answer.text)
                assert FORGED not in answer.text
        assert {row["rows"] for row in (await asked(worker, "/tables")).json} == {None}


@pytest.mark.parametrize("progress", [5, "x", [], {"partition": "x", "done": "y", "total": "z", "eta_seconds": "q"}])
async def test_a_progress_in_another_form_is_502(progress, victim):
    async with lying(lambda path: (503, {"restoring": progress}), GroupKey("shop", TOKEN)) as liar:
        worker = await victim(liar.url)
        assert (await asked(worker, "/tables/t/k1")).status == 502


async def test_what_another_worker_holds_is_shown_as_text(victim):
    def answer(path):
        parts = parse_qs(urlsplit(path).query).get("partitions", ["0"])[0].split(",")
        row = ROW | {"key": FORGED, "value": {FORGED: FORGED}, "partition": int(parts[0])}
        if path == "/tables":
            return 200, [{"table": name, "pipeline": FORGED, "partitions": 1, "rows": 1} for name in ("t", FORGED)]
        if path.startswith("/dedup"):
            first = {"topic": FORGED, "partition": 0, "offset": 0, "time": 0}
            return 200, {"marks": [{"verdict": FORGED, "first": first, "outcome": FORGED, "expires": 1}]}
        return 200, {
            "rows": [row],
            "slices": [{"partition": int(parts[0]), "rows": [row], "more": False, "last": ROW["raw"]}],
        }

    async with lying(answer, GroupKey("shop", TOKEN)) as liar:
        worker = await victim(liar.url)
        for path in PATHS:
            answered = await asked(worker, path, Accept="text/html")
            assert answered.status == 200
            assert FORGED not in answered.text
        assert [info["table"] for info in (await asked(worker, "/tables")).json] == ["t"]


async def test_an_answer_without_end_is_given_up(victim, monkeypatch):
    monkeypatch.setattr("semel.web.owner.ANSWER_BYTES_MAX", 1000)
    async with lying(lambda path: (200, b"[" + b"1," * 5000 + b"1]"), GroupKey("shop", TOKEN)) as liar:
        worker = await victim(liar.url)
        assert (await asked(worker, "/tables/t/k1")).status == 502
