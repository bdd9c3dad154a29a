async def test_up_outside_the_repository_says_where_to_run_it(semel, tmp_path):
    ran = await semel("up", "--events", "10", "--json")

    assert (ran.code, ran.out) == (2, "")
    assert f"there is no demos/up/run.py in {tmp_path}" in ran.err
    assert "run it in the root of" in ran.err


async def test_up_refuses_no_events_and_a_seed_below_zero(semel):
    for arguments in (("--events", "0"), ("--seed", "-1"), ("--events", "many")):
        ran = await semel("up", *arguments)
        assert (ran.code, ran.out) == (2, ""), arguments
