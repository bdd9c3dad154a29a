import asyncio
import base64
import json
import re
import socket

import pytest

from semel.config import Settings
from semel.errors import ConfigError
from semel.web.paths import dedup_path
from semel.web.server import WebServer
from semel.web.view import NotOwned, Restoring
from tests.unit.web.workers import HeldView

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


def mark(time, partition=0):
    return {
        "verdict": "accepted",
        "first": {"topic": "t", "partition": partition, "offset": 7, "time": time},
        "outcome": "done",
        "expires": 2_000,
        "revision": 2,
        "id": "as it is",
    }


# -- tables, pipelines, dedup


async def test_tables_are_counted_over_all_workers(start, group, keyed):
    workers = await start(group(t=keyed({f"k{n}": n for n in range(10)})), "a", "b", "c")

    for worker in workers:
        assert (await worker.get("/tables")).json == [{"table": "t", "pipeline": "shop", "partitions": 4, "rows": 10}]


async def test_the_rows_of_a_merged_table_are_said_to_be_partial(start, group, table_data):
    parts = table_data({0: {"a": 1, "b": 1}, 1: {"a": 1}}, merged=True)
    workers = await start(group(m=parts), "a", "b", "c")

    assert len((await workers[0].get("/tables/m")).json["rows"]) == 2
    for worker in workers:
        assert (await worker.get("/tables")).json == [
            {"table": "m", "pipeline": "shop", "partitions": 4, "rows": 3, "partial": True}
        ]
        assert "3 partial" in (await worker.get("/tables", Accept=BROWSER)).text


async def test_a_merged_table_of_one_partition_has_as_many_rows_as_it_shows(start, group, table_data):
    (worker,) = await start(group(partitions=1, m=table_data({0: {"a": 1, "b": 1}}, merged=True)), "a")

    assert (await worker.get("/tables")).json == [{"table": "m", "pipeline": "shop", "partitions": 1, "rows": 2}]


async def test_the_partial_rows_are_unknown_while_a_worker_does_not_answer(start, group, table_data):
    first, second = await start(group(m=table_data({0: {"a": 1}}, merged=True)), "a", "b")
    await second.server.stop()

    [found] = (await first.get("/tables")).json
    assert (found["rows"], found["partial"]) == (None, True)


async def test_a_worker_that_does_not_answer_leaves_the_rows_unknown(start, group, keyed):
    first, second = await start(group(t=keyed({"k": 1})), "a", "b")
    await second.server.stop()

    answer = await first.get("/tables")

    assert answer.json == [{"table": "t", "pipeline": "shop", "partitions": 2, "rows": None}]
    assert answer.headers["X-Semel-Unreachable"] == second.server.url


async def test_rows_that_are_too_many_to_count_are_not_counted_at_every_look(start, group, keyed, monkeypatch):
    monkeypatch.setattr("semel.web.cluster.COUNT_MAX", 5)
    monkeypatch.setattr("semel.web.cluster.COUNT_CHUNK", 2)
    rows = {f"k{n}": n for n in range(100)}
    (worker,) = await start(group(partitions=1, many=keyed(rows, 1), few=keyed({"k": 1}, 1)), "a")

    for _ in range(5):
        assert [(info["table"], info["rows"]) for info in (await worker.get("/tables")).json] == [
            ("few", 1),
            ("many", None),
        ]
    assert worker.view.scans == 5 + 3


async def test_probes_do_not_wait_for_readers(start, group, keyed):
    (worker,) = await start(group(t=keyed({"k": 1})), "a")
    worker.server._budget.spend(600.0)
    waits = asyncio.create_task(worker.get("/tables/t/k"))
    async with asyncio.timeout(5):
        for path in ("/livez", "/readyz") * 5:
            # Each on a connection of its own.
            assert (await worker.get(path, Connection="close")).status == 200
    assert not waits.done()
    waits.cancel()


async def test_an_id_is_looked_up_on_every_worker_and_the_earliest_mark_wins(start, group, keyed):
    shop = group(t=keyed({}))
    shop.marks = {
        "a": {"id/1": mark(2), "here": mark(1)},
        "b": {"id/1": mark(1, 1)},
    }
    workers = await start(shop, "a", "b")

    for worker in workers:
        found = (await worker.get(dedup_path("shop", ["id/1"]))).json
        assert found == mark(1, 1) | {"others": [mark(2)]}
        assert (await worker.get("/dedup/shop/here")).json == mark(1)
        assert (await worker.get("/dedup/shop/unknown")).status == 404
        assert (await worker.get("/dedup/other/here")).status == 404


async def test_an_id_is_not_called_unknown_while_a_worker_cannot_say(start, group, keyed, monkeypatch):
    shop = group(t=keyed({}))
    shop.marks = {"a": {"known": mark(1)}}
    first, second = await start(shop, "a", "b")

    def restoring(*_):
        raise Restoring(1, 0, 9, None)

    monkeypatch.setattr(second.view, "dedup", restoring)

    for worker in (first, second):
        assert (await worker.get("/dedup/shop/known")).status == 200
        assert (await worker.get("/dedup/shop/other")).json["restoring"]["total"] == 9
    await second.server.stop()
    assert (await first.get("/dedup/shop/other")).status == 503


async def test_an_id_is_not_called_unknown_while_its_partition_moves(start, group, keyed, monkeypatch):
    first, second = await start(group(t=keyed({})), "a", "b")

    def moves(*_):
        raise NotOwned

    monkeypatch.setattr(second.view, "dedup", moves)

    for worker in (first, second):
        answer = await worker.get("/dedup/shop/other")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert answer.json["error"] == "the partition is moving between workers"


async def test_pipelines_health_and_metrics_are_the_worker_s_own(start, group, keyed):
    (worker,) = await start(group(t=keyed({})), "a")

    assert (await worker.get("/pipelines")).json == [{"name": "shop", "instance": "a"}]
    assert (await worker.get("/livez")).json == {"ok": True, "loop": "turning"}
    assert (await worker.get("/readyz")).json == {"ok": True, "partitions": 4}
    metrics = await worker.get("/metrics")
    assert metrics.text == "semel_events_total 1.0\n"
    assert metrics.headers["Content-Type"].startswith("text/plain; version=0.0.4")

    worker.view.ready = False
    assert (await worker.get("/readyz")).status == 503
    assert (await worker.get("/livez")).status == 200


# -- JSON or a page


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("text/html", "text/html"),
        (BROWSER, "text/html"),
        ("text/*;q=0.9, application/json;q=0.8", "text/html"),
        ("text/html, application/json", "application/json"),
        ("text/html;q=0.5, application/json", "application/json"),
        ("text/html;q=0, */*", "application/json"),
        ("text/html;q=x", "application/json"),
        ("text/plain", "application/json"),
    ],
)
async def test_a_page_is_given_where_accept_prefers_it_and_json_else(accept, kind, start, group, keyed):
    (worker,) = await start(group(t=keyed({"k": 1})), "a")

    for path in ("/", "/tables", "/tables/t", "/tables/t/k", "/tables/t/gone", "/pipelines", "/livez"):
        assert (await worker.get(path, Accept=accept)).headers["Content-Type"].startswith(kind), path


async def test_nothing_a_key_or_value_holds_becomes_markup(start, group, table_data):
    evil = "<script>alert('1')</script>\"'&<img src=x onerror=y>"
    shop = group(
        **{evil: table_data({0: {evil: {evil: evil}}}), "t": table_data({0: {evil: evil}})},
        partitions=1,
    )
    shop.marks = {"a": {evil: mark(1) | {"id": evil, "verdict": evil}}}
    (worker,) = await start(shop, "a")
    from semel.web.paths import quote_key, row_path, table_path

    for path in (
        "/tables",
        table_path("t"),
        table_path("t") + "?prefix=" + quote_key(evil[:9]),
        table_path(evil),
        row_path("t", evil),
        row_path("t", "gone" + evil),
        row_path("gone" + evil, "k"),
        dedup_path("shop", [evil]),
        "/tables/t?" + quote_key(evil) + "=1",
    ):
        answer = await worker.get(path, Accept=BROWSER)
        assert "<script" not in answer.text
        assert "<img" not in answer.text
        assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:|//|javascript:)""", answer.text), path
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_every_row_of_a_page_links_to_itself_and_the_page_to_the_next(start, group, keyed):
    rows = {key: key for key in ("a/b", "ü?&=#", "..", "x y", "%41")}
    (worker,) = await start(group(t=keyed(rows)), "a")

    listed = await worker.get("/tables/t?limit=3&prefix=", Accept="text/html")
    more = re.search(r'href="([^"]+)">next page', listed.text)[1].replace("&amp;", "&")
    rest = await worker.get(more, Accept="text/html")
    links = re.findall(r'href="(/tables/t/[^"]+)"', listed.text + rest.text)

    assert sorted([(await worker.get(link)).json["key"] for link in links]) == sorted(rows)
    assert "next page" not in rest.text


async def test_a_long_value_is_cut_in_the_list_and_whole_on_its_own_page(start, group, keyed):
    (worker,) = await start(group(t=keyed({"k": "x" * 9000})), "a")

    assert len((await worker.get("/tables/t", Accept="text/html")).text) < 6000
    assert "x" * 9000 in (await worker.get("/tables/t/k", Accept="text/html")).text


# -- the token


def basic(password):
    return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()


async def test_a_token_is_asked_for_and_the_owner_is_asked_by_the_worker_itself(start, group, keyed):
    shop = group(t=keyed({f"k{n}": n for n in range(8)}))
    workers = await start(shop, "a", "b", web_token="s:3cret")

    for worker in workers:
        for path in (
            "/",
            "/tables",
            "/tables/t",
            "/tables/t/k1",
            "/pipelines",
            "/dedup/shop/x",
            "/metrics",
            "/nowhere",
        ):
            for wrong in ("", "Bearer", "Bearer s:3cre", "Bearer s:3cret2", basic("x"), "Basic !", "Digest s:3cret"):
                answer = await worker.get(path, Authorization=wrong)
                assert answer.status == 401
                assert "Bearer" in answer.headers["WWW-Authenticate"]
                assert "3cret" not in answer.text
        for right in ("Bearer s:3cret", "bearer  s:3cret", basic("s:3cret")):
            for n in range(8):
                assert (await worker.get(f"/tables/t/k{n}", Authorization=right)).json["value"] == n
            assert len((await worker.get("/tables/t", Authorization=right)).json["rows"]) == 8
            assert (await worker.get("/tables", Authorization=right)).json[0]["rows"] == 8
            assert (await worker.get("/dedup/shop/x", Authorization=right)).status == 404


async def test_health_answers_without_the_token_but_says_no_more_than_yes_or_no(start, group, keyed):
    (worker,) = await start(group(t=keyed({})), "a", web_token="secret")

    assert (await worker.get("/readyz")).json == {"ok": True}
    assert (await worker.get("/livez")).json == {"ok": True}
    assert (await worker.get("/readyz", Authorization="Bearer secret")).json == {"ok": True, "partitions": 4}


async def test_a_hop_without_the_token_is_refused(start, group, keyed):
    (worker,) = await start(group(t=keyed({"k": 1})), "a", web_token="secret")

    assert (await worker.get("/tables/t?partitions=0", X_Semel_Hop="1" * 32)).status == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:6066", "127.0.0.1.evil.example", "localhost.evil", "[::2]", "[", "::"]
)
async def test_a_name_that_is_not_the_loopback_s_is_refused_there(host, start, group, keyed):
    (worker,) = await start(group(t=keyed({"k": 1})), "a")

    for path in ("/", "/tables/t/k", "/tables", "/livez", "/ticket", "/nowhere"):
        answer = await worker.get(path, Host=host)
        assert answer.status == 403
        assert "localhost" in answer.json["error"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "localhost.", "127.0.0.1:6066", "[::1]:6066", "ledger.example"]
)
async def test_the_loopback_s_own_names_and_that_of_web_url_are_answered(host, start, group, keyed):
    (worker,) = await start(group(t=keyed({"k": 1})), "a", web_url="https://ledger.example/w1")
    url = f"http://127.0.0.1:{worker.server.port}/tables/t/k"

    async with worker._client.get(url, headers={"Host": host}) as response:
        assert response.status == 200


async def test_a_worker_that_others_may_reach_answers_to_any_name(start, group, keyed):
    (worker,) = await start(group(t=keyed({"k": 1})), "a", web_bind="0.0.0.0", web_open=True)
    async with worker._client.get(
        f"http://127.0.0.1:{worker.server.port}/tables/t/k", headers={"Host": "w1.svc"}
    ) as found:
        assert found.status == 200


@pytest.mark.parametrize("asked", ["0,0", "0,1,2,3," * 1000 + "0", "0,1,2,3,0", "x", "-1", "0,,1", "1" * 40])
async def test_partitions_are_named_once_each_and_a_page_is_one(asked, start, group, keyed):
    (worker,) = await start(group(t=keyed({"k": 1})), "a")

    for path in ("/tables/t", "/tables/t/k"):
        answer = await worker.get(f"{path}?partitions={asked}", X_Semel_Hop="1" * 32)
        assert answer.status == 400
        assert len(answer.text) < 300


async def test_partitions_that_are_not_there_are_not_held(start, group, keyed):
    (worker,) = await start(group(t=keyed({"k": 1})), "a")

    every = ",".join(map(str, range(8000)))
    assert (await worker.get(f"/tables/t?partitions={every}", X_Semel_Hop="1" * 32)).status == 421


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("levels", [100, 300, 5000])
async def test_what_is_nested_deeply_is_shown_or_said_to_be(levels, start, group, keyed):
    (worker,) = await start(group(t=keyed({"k": nested(levels)})), "a")

    for path in ("/tables/t/k", "/tables/t"):
        answer = await worker.get(path)
        page = await worker.get(path, Accept="text/html")
        if levels == 5000:
            assert (answer.status, page.status) == (500, 200)
            assert "nested too deeply" in answer.json["error"] and "nested too deeply" in page.text
        else:
            assert (answer.status, page.status) == (200, 200)


# -- the server itself


async def test_a_port_that_is_taken_is_named_with_the_way_out(start, group, keyed):
    (worker,) = await start(group(t=keyed({})), "a")

    other = WebServer(worker.view, Settings(web_port=worker.server.port))
    with pytest.raises(ConfigError, match=rf"web_port = {worker.server.port}: the port is taken.*--web-port"):
        await other.start()
    await other.stop()
    assert (await worker.get("/livez")).status == 200


async def test_an_address_that_is_not_ours_is_named(group, keyed):
    server = WebServer(HeldView(group(t=keyed({})), "a"), Settings(web_bind="192.0.2.1", web_open=True))

    with pytest.raises(ConfigError, match=r"web_bind = '192\.0\.2\.1'.*cannot listen"):
        await server.start()


async def test_after_stop_the_port_is_free_and_stop_may_be_repeated(start, group, keyed):
    (worker,) = await start(group(t=keyed({})), "a")
    port = worker.server.port

    await worker.server.stop()
    await worker.server.stop()

    again = WebServer(worker.view, Settings(web_port=port))
    await again.start()
    assert again.url == f"http://127.0.0.1:{port}"
    await again.stop()


async def test_an_error_inside_is_500_without_its_text(start, group, keyed, monkeypatch, caplog):
    (worker,) = await start(group(t=keyed({"k": 1})), "a")

    def broken(*_):
        raise RuntimeError("the secret of the house")

    monkeypatch.setattr(worker.view, "get", broken)
    answer = await worker.get("/tables/t/k")

    assert answer.status == 500
    assert "secret" not in answer.text
    assert "the secret of the house" in caplog.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_nothing_can_be_written(method, start, group, keyed):
    (worker,) = await start(group(t=keyed({"k": 1})), "a")

    async with worker._client.request(method, worker.server.url + "/tables/t/k", data=b"x" * 100_000) as response:
        assert response.status == 405
        assert json.loads(await response.text())["error"] == "Method Not Allowed"


async def test_a_url_without_end_is_refused_and_the_server_goes_on(start, group, keyed):
    (worker,) = await start(group(t=keyed({"k": 1})), "a")

    assert (await worker.get("/tables/t/" + "x" * 200_000)).status == 400
    assert (await worker.get("/tables/t/k")).status == 200


async def test_an_owner_that_hangs_is_given_up(start, group, keyed, monkeypatch):
    monkeypatch.setattr("semel.web.owner.FORWARD_TIMEOUT_S", 0.3)
    shop = group(t=keyed({"k": 1}))
    (worker,) = await start(shop, "a")
    deaf = socket.create_server(("127.0.0.1", 0))
    shop.urls["b"] = f"http://127.0.0.1:{deaf.getsockname()[1]}"
    shop.holder = dict.fromkeys(range(4), "b")

    try:
        async with asyncio.timeout(5):
            answer = await worker.get("/tables/t/k")
    finally:
        deaf.close()

    assert (answer.status, answer.json["worker"]) == (503, shop.urls["b"])
    assert "in time" in answer.json["error"]


@pytest.mark.parametrize(
    ("reply", "status"),
    [(b"nonsense\r\n\r\n", 503), (b"", 503), (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull", 502)],
)
async def test_an_owner_that_answers_nonsense_is_said_to(reply, status, start, group, keyed):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        writer.close()

    shop = group(t=keyed({"k": 1}))
    (worker,) = await start(shop, "a")
    odd = await asyncio.start_server(serve, "127.0.0.1", 0)
    shop.urls["b"] = f"http://127.0.0.1:{odd.sockets[0].getsockname()[1]}"
    shop.holder = dict.fromkeys(range(4), "b")

    async with odd:
        assert (await worker.get("/tables/t/k")).status == status
