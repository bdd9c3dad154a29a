import asyncio
import socket

import pytest

from semel.display.printing import shown
from semel.web.view import Restoring


async def test_get_prints_the_value_or_the_whole_row_as_json(semel, start, group, keyed):
    worker, _ = await start(group(t=keyed({"a/b ü": {"n": 1}})), "a", "b")

    plain = await semel("tables", "get", "t", "a/b ü", "--url", worker.server.url)
    assert (plain.code, plain.out, plain.err) == (0, '{\n  "n": 1\n}\n', "")
    as_json = await semel("tables", "get", "t", "a/b ü", "--url", worker.server.url, "--json")
    assert as_json.json == {"table": "t", "key": "a/b ü", "value": {"n": 1}, "partition": sum("a/b ü".encode()) % 4}
    assert as_json.out.count("\n") == 1


async def test_a_key_may_begin_with_a_dash_or_be_empty(semel, start, group, keyed):
    (worker,) = await start(group(t=keyed({-5: "minus"}, read=int), s=keyed({"": 0})), "a")

    assert (await semel("tables", "get", "t", "-5", "--url", worker.server.url)).out == '"minus"\n'
    assert (await semel("tables", "get", "s", "", "--url", worker.server.url)).out == "0\n"


async def test_what_is_not_there_is_exit_code_1_and_one_line_and_one_document(semel, start, group, keyed, table_data):
    shop = group(t=keyed({"k": 1}), twice=table_data({0: {"k": 1}, 1: {"k": 2}}, keyed=False))
    (worker,) = await start(shop, "a")
    url = worker.server.url

    missing = await semel("tables", "get", "t", "gone", "--url", url, "--json")
    assert (missing.code, missing.json["key"]) == (1, "gone")
    assert missing.err == "semel: table 't' has no row for this key\n"
    plain = await semel("tables", "get", "t", "gone", "--url", url)
    assert (plain.code, plain.out) == (1, "")
    assert (await semel("tables", "get", "u", "k", "--url", url, "--json")).json["tables"] == ["t", "twice"]
    several = await semel("tables", "get", "twice", "k", "--url", url, "--json")
    assert (several.code, several.json["partitions"]) == (1, [0, 1])
    shop.restoring = {p: Restoring(p, 1, 2, None) for p in range(4)}
    restoring = await semel("tables", "scan", "t", "--url", url, "--json")
    assert (restoring.code, restoring.json["restoring"]["total"]) == (1, 2)
    assert "is being restored: 1 of 2 records" in restoring.err


async def test_scan_prints_lines_or_one_document_over_all_pages(semel, start, group, keyed):
    rows = {f"k{n:04}": n for n in range(1500)}
    worker, _ = await start(group(t=keyed(rows)), "a", "b")
    url = worker.server.url

    everything = await semel("tables", "scan", "t", "--limit", "5000", "--url", url, "--json")
    assert {row["key"]: row["value"] for row in everything.json["rows"]} == rows
    assert everything.json["next"] is None
    some = await semel("tables", "scan", "t", "--limit", "1200", "--url", url, "--json")
    assert some.json["rows"] == everything.json["rows"][:1200]
    rest = await semel("tables", "scan", "t", "--limit", "5000", "--page", some.json["next"], "--url", url, "--json")
    assert rest.json["rows"] == everything.json["rows"][1200:]
    plain = await semel("tables", "scan", "t", "--prefix", "k00", "--from", "k0010", "--to", "k0013", "--url", url)
    assert sorted(plain.out.splitlines()) == [f'"k00{n}"\t{n}\t{sum(f"k00{n}".encode()) % 4}' for n in (10, 11, 12)]
    assert plain.err == ""
    cut = await semel("tables", "scan", "t", "--limit", "2", "--url", url)
    assert len(cut.out.splitlines()) == 2
    assert "there are more than the 2 shown" in cut.err


async def test_merged_rows_name_all_their_partitions(semel, start, group, table_data):
    (worker,) = await start(group(t=table_data({0: {"k": 1}, 2: {"k": 2}}, merged=True)), "a")

    assert (await semel("tables", "scan", "t", "--url", worker.server.url)).out == '"k"\t3\t0,2\n'


async def test_a_query_the_worker_refuses_is_exit_code_2(semel, start, group, keyed):
    (worker,) = await start(group(t=keyed({1: 1}, read=int)), "a")

    for arguments in (("get", "t", "x"), ("scan", "t", "--from", "x"), ("scan", "t", "--page", "x")):
        assert (await semel("tables", *arguments, "--url", worker.server.url)).code == 2
    assert (await semel("tables", "scan", "t", "--limit", "0")).code == 2


async def test_nobody_there_is_exit_code_3_and_names_the_url(semel):
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"

    for flags in ((), ("--json",)):
        ran = await semel("tables", "get", "t", "k", "--url", url, *flags)
        assert ran.code == 3
        assert ran.err.startswith(f"semel: no worker answers at {url} (Connection refused)")
        assert len(ran.err.splitlines()) == 1
    assert ran.json["error"]


@pytest.mark.parametrize("reply", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"SSH-2.0-x\r\n", b""])
async def test_another_server_on_the_port_is_exit_code_3(reply, semel):
    async def serve(reader, writer):
        await reader.read(10)
        writer.write(reply)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as other:
        ran = await semel("tables", "get", "t", "k", "--url", f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}")

    assert ran.code == 3


@pytest.mark.parametrize("url", ["", "localhost:6066", "ftp://h", "http://", "http://h:port", "http://u:p@h"])
async def test_a_url_that_is_none_is_exit_code_2(url, semel):
    ran = await semel("tables", "get", "t", "k", "--url", url)

    assert ran.code == 2
    assert "write http://host:port" in ran.err


async def test_the_token_comes_from_the_settings_where_the_worker_asks_for_it(semel, start, group, keyed, tmp_path):
    (worker,) = await start(group(t=keyed({"k": 1})), "a", web_token="s3cret")
    get = ("tables", "get", "t", "k", "--url", worker.server.url)

    without = await semel(*get)
    assert (without.code, "SEMEL_WEB_TOKEN" in without.err) == (2, True)
    wrong = await semel(*get, env={"SEMEL_WEB_TOKEN": "wr0ng"})
    assert (wrong.code, "wr0ng" in wrong.err) == (2, False)
    assert (await semel(*get, env={"SEMEL_WEB_TOKEN": "s3cret"})).out == "1\n"
    (tmp_path / "config").mkdir()
    (tmp_path / "config/local.toml").write_text("web_token = 's3cret'")
    assert (await semel(*get)).out == "1\n"


def test_nothing_that_is_shown_can_steer_a_terminal():
    shown_ = shown({"k": "\x1b[2J\x9b31m\u202e\ud800 ü 日本\n"}, indent=2)

    assert shown_ == '{\n  "k": "\\u001b[2J\\u009b31m\\u202e\\ud800 ü 日本\\n"\n}'
