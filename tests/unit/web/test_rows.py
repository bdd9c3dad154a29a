import random

import pytest

from semel.web.paths import quote_key, row_path
from semel.web.view import NotOwned, Owner, Restoring

HOSTILE = [
    "plain",
    "a/b/../c",
    "%2F",
    "%252f",
    "..",
    ".",
    "",
    "/",
    "sp ace+plus",
    "?q=1&page=2#frag",
    "'\"`;--",
    "<script>alert(1)</script>",
    "naïve-日本-🦊",
    "new\nline\ttab\x00nul",
    "\u202egnp.exe",
    ":partition",
    "a" * 5000,
]


async def test_any_worker_answers_for_any_key_however_hostile(start, group, keyed):
    rows = {key: {"n": position} for position, key in enumerate(HOSTILE)}
    workers = await start(group(t=keyed(rows)), "a", "b")

    for worker in workers:
        for key, value in rows.items():
            answer = await worker.get(row_path("t", key))

            assert answer.status == 200, (key, answer.text)
            assert answer.json == {"table": "t", "key": key, "value": value, "partition": sum(key.encode()) % 4}


async def test_slashes_in_a_key_may_stand_unencoded(start, group, keyed):
    (worker,) = await start(group(t=keyed({"a/b": 1})), "a")

    assert (await worker.get("/tables/t/a/b")).json["value"] == 1


async def test_a_table_may_have_any_name(start, group, keyed):
    (worker,) = await start(group(**{"odd/näme": keyed({"k": 1})}), "a")

    assert (await worker.get(f"/tables/{quote_key('odd/näme')}/k")).json["table"] == "odd/näme"


async def test_keys_keep_their_type_over_the_hop(start, group, keyed):
    workers = await start(group(t=keyed({n: n * n for n in range(20)}, read=int)), "a", "b")

    for worker in workers:
        assert (await worker.get("/tables/t/7")).json == {"table": "t", "key": 7, "value": 49, "partition": 55 % 4}
        assert (await worker.get("/tables/t/seven")).status == 400


async def test_a_key_without_a_row_is_404_and_a_table_that_is_not_there_names_those_that_are(start, group, keyed):
    worker, _ = await start(group(t=keyed({"k": 1})), "a", "b")

    missing = await worker.get("/tables/t/other")
    assert (missing.status, missing.json["key"]) == (404, "other")
    nowhere = await worker.get("/tables/u/k")
    assert (nowhere.status, nowhere.json["tables"]) == (404, ["t"])
    assert (await worker.get("/tables/u")).status == 404


async def test_a_path_that_is_not_utf8_is_refused(start, group, keyed):
    (worker,) = await start(group(t=keyed({})), "a")

    assert (await worker.get("/tables/t/%FF")).status == 400


@pytest.mark.parametrize("asked", [0, 1])
async def test_a_restoring_partition_is_503_with_its_progress_on_every_worker(asked, start, group, keyed):
    shop = group(t=keyed({"k": 1}))
    workers = await start(shop, "a", "b")
    partition = ord("k") % 4
    shop.restoring[partition] = Restoring(partition, 30, 100, 2.5)

    for path in ("/tables/t/k", "/tables/t"):
        answer = await workers[asked].get(path)

        assert answer.status == 503
        assert answer.json["restoring"] == {"partition": partition, "done": 30, "total": 100, "eta_seconds": 2.5}
        assert answer.headers["Retry-After"] == "3"


async def test_a_row_in_several_partitions_without_merge_is_409_and_names_them(start, group, table_data):
    data = table_data({0: {"k": 1, "only": 5}, 1: {}, 3: {"k": 2}}, keyed=False)
    workers = await start(group(t=data), "a", "b")

    for worker in workers:
        answer = await worker.get("/tables/t/k")
        assert (answer.status, answer.json["partitions"]) == (409, [0, 3])
        assert (await worker.get("/tables/t/only")).json == {"table": "t", "key": "only", "value": 5, "partition": 0}
        assert (await worker.get("/tables/t/none")).status == 404


async def test_a_merged_row_is_combined_over_all_workers(start, group, table_data):
    data = table_data({0: {"k": 1}, 1: {"k": 10}, 3: {"k": 100, "x": 7}}, merged=True)
    workers = await start(group(t=data), "a", "b")

    for worker in workers:
        answer = await worker.get("/tables/t/k")
        assert answer.json == {"table": "t", "key": "k", "value": 111, "partition": None, "partitions": [0, 1, 3]}
        assert (await worker.get("/tables/t/x")).json["value"] == 7


# -- a map of owners that is out of date


async def test_a_partition_that_just_moved_is_looked_up_again(start, group, keyed):
    shop = group(t=keyed({"k": 1}))
    first, second = await start(shop, "a", "b")
    partition = ord("k") % 4
    wrong = Owner(partition, second.server.url if shop.holder[partition] == "a" else None)
    first.view.stale_owners = [[wrong]]

    assert (await first.get("/tables/t/k")).json["value"] == 1


async def test_two_workers_that_point_at_each_other_end_in_one_refusal(start, group, keyed):
    shop = group(t=keyed({"k": 1}))
    first, second = await start(shop, "a", "b")
    shop.holder = dict.fromkeys(range(4), "gone")
    first.view.stale_owners = [[Owner(p, second.server.url) for p in range(4)] for _ in range(2)]
    second.view.stale_owners = [[Owner(p, first.server.url) for p in range(4)] for _ in range(9)]

    answer = await first.get("/tables/t/k")

    assert answer.status == 503
    assert "moving" in answer.json["error"]
    assert len(second.view.stale_owners) == 9


async def test_a_hop_is_never_forwarded(start, group, keyed):
    shop = group(t=keyed({"k": 1}))
    workers = await start(shop, "a", "b")
    partition = ord("k") % 4
    other = next(w for w in workers if w.view.instance != shop.holder[partition])

    assert (await other.get(f"/tables/t/k?partitions={partition}", X_Semel_Hop="1" * 32)).status == 421
    assert (await other.get(f"/tables/t/k?partitions={partition}")).status == 400


async def test_an_owner_that_does_not_answer_is_503_and_named(start, group, keyed):
    shop = group(t=keyed({"k": 1}))
    first, second = await start(shop, "a", "b")
    shop.holder = dict.fromkeys(range(4), "b")
    await second.server.stop()

    answer = await first.get("/tables/t/k")

    assert (answer.status, answer.json["worker"]) == (503, second.server.url)
    assert answer.headers["Retry-After"] == "1"


async def test_before_the_first_assignment_the_answer_is_503(start, group, keyed):
    shop = group(t=keyed({}))
    (worker,) = await start(shop, "a")
    shop.holder = {}

    for path in ("/tables/t", "/tables/t/k"):
        assert (await worker.get(path)).status == 503


async def test_an_owner_that_refuses_the_partition_for_good_is_503(start, group, keyed, monkeypatch):
    (worker,) = await start(group(t=keyed({"k": 1})), "a")

    def gone(*_):
        raise NotOwned

    monkeypatch.setattr(worker.view, "get", gone)

    assert (await worker.get("/tables/t/k")).status == 503


# -- pages


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 40, 1000])
async def test_pages_hold_every_row_once_in_order_whoever_is_asked(limit, start, group, keyed):
    rows = {f"key-{n:03}": n for n in range(40)} | dict.fromkeys(HOSTILE, -1)
    workers = await start(group(t=keyed(rows, 5), partitions=5), "a", "b", "c")

    for worker in workers:
        pages = await worker.pages(f"/tables/t?limit={limit}")

        assert all(len(page) == limit for page in pages[:-1])
        assert 1 <= len(pages[-1]) <= limit
        found = [row for page in pages for row in page]
        assert {row["key"]: row["value"] for row in found} == rows
        assert [(row["partition"], row["key"].encode()) for row in found] == sorted(
            (sum(key.encode()) % 5, key.encode()) for key in rows
        )


async def test_prefix_from_and_to_narrow_every_page(start, group, keyed):
    rows = {f"{letter}{n}": n for letter in "abc" for n in range(10)}
    worker, _ = await start(group(t=keyed(rows)), "a", "b")

    def keys(pages):
        return sorted(row["key"] for page in pages for row in page)

    assert keys(await worker.pages("/tables/t?limit=3&prefix=b")) == [f"b{n}" for n in range(10)]
    assert keys(await worker.pages("/tables/t?limit=3&from=a8&to=b2")) == ["a8", "a9", "b0", "b1"]
    assert await worker.pages("/tables/t?prefix=z") == [[]]


async def test_a_page_is_not_shifted_by_rows_that_come_and_go_before_it(start, group, keyed, table_data):
    data = table_data({0: dict.fromkeys("bdfhj", 0)})
    (worker,) = await start(group(t=data, partitions=1), "a")

    first = (await worker.get("/tables/t?limit=2")).json
    del data.rows[0]["d"]
    data.rows[0] |= {"a": 0, "g": 0}
    second = (await worker.get(f"/tables/t?limit=9&page={first['next']}")).json

    assert [row["key"] for row in first["rows"]] == ["b", "d"]
    assert [row["key"] for row in second["rows"]] == ["f", "g", "h", "j"]


@pytest.mark.parametrize("limit", [1, 2, 5, 1000])
async def test_merged_pages_hold_every_key_once_combined_and_in_order(limit, start, group, table_data):
    dice = random.Random(limit)
    held = {p: {f"k{dice.randrange(60):02}": dice.randrange(100) for _ in range(25)} for p in range(6)}
    truth: dict[str, int] = {}
    for rows in held.values():
        for key, value in rows.items():
            truth[key] = truth.get(key, 0) + value
    workers = await start(group(t=table_data(held, merged=True), partitions=6), "a", "b")

    for worker in workers:
        pages = await worker.pages(f"/tables/t?limit={limit}")

        assert all(len(page) == limit for page in pages[:-1])
        found = [row for page in pages for row in page]
        assert [row["key"] for row in found] == sorted(truth)
        assert {row["key"]: row["value"] for row in found} == truth
        assert all(row["partitions"] == [p for p in held if row["key"] in held[p]] for row in found)


async def test_a_merged_page_takes_several_rounds_where_partitions_are_many(start, group, table_data, monkeypatch):
    monkeypatch.setattr("semel.web.rows.ROWS_PER_ROUND", 10)
    held = {p: {f"{p:02}-{n:02}": 1 for n in range(30)} | {"zz": 1} for p in range(12)}
    worker, _ = await start(group(t=table_data(held, merged=True), partitions=12), "a", "b")

    (rows,) = await worker.pages("/tables/t?limit=1000")

    assert [row["key"] for row in rows] == [f"{p:02}-{n:02}" for p in range(12) for n in range(30)] + ["zz"]
    assert rows[-1]["value"] == 12


async def test_large_rows_make_a_page_shorter_and_none_is_left_out(start, group, table_data, monkeypatch):
    monkeypatch.setattr("semel.web.scan.PAGE_BYTES_MAX", 10_000)
    held = {p: {f"{p}-{n}": "x" * 3000 for n in range(10)} for p in range(4)}
    workers = await start(group(t=table_data(held)), "a", "b")

    for worker in workers:
        pages = await worker.pages("/tables/t?limit=1000")

        assert len(pages) >= 8
        assert [r["key"] for page in pages for r in page] == [f"{p}-{n}" for p in range(4) for n in range(10)]


async def test_large_merged_rows_are_all_given_out(start, group, table_data, monkeypatch):
    monkeypatch.setattr("semel.web.scan.PAGE_BYTES_MAX", 4_000)
    held = {p: {f"{n:02}": 1 for n in range(50)} for p in range(4)}
    for rows in held.values():
        rows |= {"big" + "g" * 2000: 1}
    workers = await start(group(t=table_data(held, merged=True)), "a", "b")

    for worker in workers:
        rows = [row for page in await worker.pages("/tables/t?limit=7") for row in page]
        assert [row["value"] for row in rows] == [4] * 51


async def test_a_sparse_table_of_many_partitions_is_read_in_a_few_rounds(start, group, table_data):
    shop = group(t=table_data({199: {"last": 1}}), partitions=200)
    worker, other = await start(shop, "a", "b")

    assert (await worker.pages("/tables/t"))[0][0]["key"] == "last"
    assert worker.view.scans + other.view.scans == 200


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=x",
        "limit=" + "9" * 50,
        "limit=",
        "limit=1&limit=2",
        "limit=%D9%A3",
        "page=",
        "page=!!",
        "page=AAAA",
        "page=%C3%A9",
        "page=Af____8",
        "prefx=a",
        "partitions=0",
    ],
)
async def test_a_query_out_of_bounds_or_unknown_is_400(query, start, group, keyed):
    (worker,) = await start(group(t=keyed({"k": 1})), "a")

    answer = await worker.get("/tables/t?" + query)

    assert answer.status == 400, answer.text
    assert answer.json["error"]


@pytest.mark.parametrize("held", ["", "x", "-1", "0,", "1" * 11])
async def test_a_hop_with_a_broken_list_of_partitions_is_400(held, start, group, keyed):
    (worker,) = await start(group(t=keyed({"k": 1})), "a")

    assert (await worker.get(f"/tables/t?partitions={held}", X_Semel_Hop="1" * 32)).status == 400


async def test_bounds_that_are_no_key_of_the_table_are_400_on_every_worker(start, group, keyed):
    shop = group(t=keyed({1: 1}, read=int))
    workers = await start(shop, "a", "b")
    shop.holder = dict.fromkeys(range(4), "b")

    for worker in workers:
        assert (await worker.get("/tables/t?from=x")).status == 400


async def test_a_key_with_a_lone_surrogate_is_listed_as_json_and_html(start, group, table_data):
    (worker,) = await start(group(t=table_data({0: {"\ud800": 1 << 80}}), partitions=1), "a")

    listed = await worker.get("/tables/t")
    assert listed.json["rows"] == [{"key": "\ud800", "value": 1 << 80, "partition": 0}]
    assert (await worker.get("/tables/t", Accept="text/html")).status == 200
