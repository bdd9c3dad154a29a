"""`semel prove` where what it found cannot be written, and with times that Kafka does not have."""

import dataclasses
import errno
import sys
from collections import defaultdict

import pytest

from semel import cli
from semel.errors import ConfigError, ShapeChanged, TopicChanged
from semel.port import RpcError, RpcLost
from semel.proof import Finding, Law, NothingToProve, Proof, Verdict

PIPELINE = """
from semel.pipeline import Pipeline
from semel.topic import Topic

def agent(event):
    return event

pipeline = Pipeline("shop", source=Topic("orders"), agent=agent, sink=Topic("results"))
"""

FOUND = (Finding(Law.NO_LOSS, "an event is lost"),)


class Broker:
    async def start(self):
        pass

    async def close(self):
        pass


@pytest.fixture
def proven(monkeypatch, tmp_path):
    """Runs `semel` with these arguments; the exit code. `proven.proof` is what the run finds."""
    (tmp_path / "shop.py").write_text(PIPELINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("semel.worker.engine_host.kafka_broker", lambda *_, **__: Broker())
    clean = Proof("shop", 0, None, None, (), {}, (), (), defaultdict(int), (), tuple(Law), True, 0.0)

    async def prove(*_, **__):
        if isinstance(run.proof, BaseException):
            raise run.proof
        return run.proof

    monkeypatch.setattr("semel.proof.prove", prove)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["semel", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0

    run.proof = clean
    yield run
    sys.modules.pop("shop", None)


def broken(proof):
    return dataclasses.replace(proof, findings=FOUND, by_law={Law.NO_LOSS: 1})


@pytest.mark.parametrize("form", [(), ("--json",)])
@pytest.mark.parametrize("verdict", [Verdict.CLEAN, Verdict.VIOLATED])
def test_a_verdict_that_cannot_be_written_is_no_violation(proven, form, verdict, monkeypatch, capsys):
    if verdict is Verdict.VIOLATED:
        proven.proof = broken(proven.proof)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code = proven("prove", "shop", *form)
    assert code == (6 if verdict is Verdict.CLEAN else 1)
    err = capsys.readouterr().err
    assert f"the verdict is {verdict.value}, and standard output cannot be written (No space left on device)" in err


def test_a_report_that_cannot_be_written_is_no_violation_and_the_verdict_is_printed(proven, capsys):
    assert proven("prove", "shop", "--report", "/dev/full") == 6
    out, err = capsys.readouterr()
    assert "clean" in out and "--report '/dev/full' cannot be written (No space left on device)" in err


def test_a_proof_that_has_no_room_for_its_files_is_none(proven, capsys):
    proven.proof = OSError(errno.ENOSPC, "No space left on device")
    assert proven("prove", "shop") == 6
    assert "nothing is proven: the files" in capsys.readouterr().err


@pytest.mark.parametrize(
    "refused",
    [
        NothingToProve("'shop' took in events of payments under an earlier declaration"),
        ShapeChanged("table 'balances' has another value"),
        TopicChanged("'shop-dedup-changelog' was made anew"),
        RpcError("Fetch", 29, "orders[0]"),
        RpcError("Fetch", 6, "orders[0], of which no broker is the leader for long"),
    ],
)
def test_what_cannot_be_judged_is_unprovable_and_no_violation(proven, refused, capsys):
    proven.proof = refused
    assert proven("prove", "shop") == 5
    out, err = capsys.readouterr()
    assert (out, err.strip()) == ("", f"semel: {refused}")


@pytest.mark.parametrize(
    ("refused", "code"),
    [
        (RpcLost("Metadata"), 3),
        (RpcError("SaslAuthenticate", 58, "login"), 3),
        (ConfigError("no"), 2),
        (ConnectionError("gone"), None),
    ],
)
def test_what_keeps_it_from_judging_has_the_code_of_the_table(proven, refused, code):
    proven.proof = refused
    if code is None:
        with pytest.raises(ConnectionError):
            proven("prove", "shop")
    else:
        assert proven("prove", "shop") == code


@pytest.mark.parametrize("at", ["1969-01-01T00:00:00Z", "1969-12-31T23:59:59.999+00:00", "0001-01-01"])
@pytest.mark.parametrize(
    ("arguments", "way"),
    [(("reset", "shop", "--to"), "earliest"), (("prove", "shop", "--since"), "leave the option out")],
)
def test_a_time_before_kafkas_is_a_usage_error_with_the_way_out(proven, arguments, way, at, capsys):
    assert proven(*arguments, at) == 2
    err = capsys.readouterr().err
    assert f"{arguments[-1]} '{at}' is before 1970" in err and err.endswith(f"or {way}\n")


def test_what_is_no_time_is_a_usage_error(proven, capsys):
    assert proven("reset", "shop", "--to", "soon") == 2
    assert "--to 'soon' is neither earliest nor latest nor a time" in capsys.readouterr().err
    assert proven("prove", "shop", "--since", "2026-13-01") == 2
    assert "--since '2026-13-01' is not a time" in capsys.readouterr().err
