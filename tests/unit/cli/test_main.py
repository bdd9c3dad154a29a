import json
import logging
import os
import subprocess
import sys

import pytest

from semel import cli
from semel.cli import exits, logs
from semel.display import printing
from semel.errors import ConfigError, DeclarationError, InstanceTaken, PositionConflict
from semel.local.errors import NotReady, PortTaken
from semel.port import RpcError, RpcLost


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (InstanceTaken("x"), 4),
        (PositionConflict("x"), 1),
        (RpcLost("Metadata", "x", sent=False), 3),
        (exits.Unreachable("x"), 3),
        (NotReady("x"), 3),
        (PortTaken("x"), 1),
        (DeclarationError("x"), 2),
        (RpcError("SaslAuthenticate", 58, "x"), 3),
        (RpcError("CreateTopics", 29, "x"), 1),
    ],
)
def test_an_error_semel_knows_is_one_line_and_its_exit_code(error, code, monkeypatch, capsys):
    def fails():
        raise error

    monkeypatch.setattr(cli, "app", fails)

    with pytest.raises(SystemExit) as ended:
        cli.main()

    assert ended.value.code == code
    assert capsys.readouterr() == ("", f"semel: {error}\n")


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(cli, "app", lambda: {}["x"])

    with pytest.raises(KeyError):
        cli.main()


def test_starting_imports_nothing_heavy():
    heavy = {"faust", "aiokafka", "rich", "aiohttp", "pydantic", "rocksdict", "asyncio"}
    code = f"import sys, semel.cli; print(sorted({heavy!r} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


async def test_usage_errors_are_exit_code_2_on_standard_error(semel):
    for arguments in (("nothing",), ("tables", "get"), ("worker",), ("worker", "a", "--web-port", "99999")):
        ran = await semel(*arguments)
        assert (ran.code, ran.out) == (2, ""), arguments
        assert ran.err


async def test_help_and_version_go_to_standard_output(semel):
    shown = await semel("--help")
    assert shown.code == 0
    assert all(name in shown.out for name in ("worker", "tables", "kafka"))
    version = await semel("--version")
    assert version.out.count(".") >= 1


def test_json_logs_hold_one_object_a_line_with_the_traceback_inside(capsys):
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logs.configure(as_json=True)
        try:
            raise ValueError("two\nlines")
        except ValueError:
            logging.getLogger("semel.x").exception("it %s", "failed")
    finally:
        root.handlers[:], root.level = before

    out, err = capsys.readouterr()
    line = json.loads(out)
    assert (line["level"], line["logger"], line["message"]) == ("error", "semel.x", "it failed")
    assert line["traceback"].endswith("ValueError: two\nlines")
    assert err == ""


FORGED = "x\n2026-11-26 00:00:00,000 ERROR   forged\r\x1b[2J\u2028\ud800"


def test_text_from_outside_cannot_begin_a_line_of_the_log(capsys):
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logs.configure(as_json=False)
        logging.getLogger("semel.x").warning("of an event: %s", FORGED)
        try:
            raise ValueError(FORGED)
        except ValueError:
            logging.getLogger("somebody.else").exception("it failed: %s", FORGED, stack_info=True)
    finally:
        root.handlers[:], root.level = before

    lines = capsys.readouterr().err.split("\n")
    own = [line for line in lines if line and not line.startswith("    ")]
    assert [line[24:31].strip() for line in own] == ["WARNING", "ERROR"], "each record is one line"
    assert own[0].endswith(r"of an event: x\n2026-11-26 00:00:00,000 ERROR   forged\r\x1b[2J\u2028\ud800")
    assert all(line.isprintable() for line in lines)
    assert any("ValueError: x" in line for line in lines), "the traceback is there, below it"


def test_an_error_with_text_from_outside_is_indented_below_its_first_line(monkeypatch, capsys):
    def fails():
        raise ConfigError(FORGED)

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit):
        cli.main()

    first, *more = capsys.readouterr().err.splitlines()
    assert first == "semel: x"
    assert more and all(line.startswith("    ") for line in more)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_log_that_cannot_be_written_is_said_once_and_costs_nothing_else(as_json, monkeypatch, capsys):
    root = logging.getLogger()
    before = root.handlers[:], root.level
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout" if as_json else "stderr", full)
        try:
            logs.configure(as_json=as_json)
            for n in range(3):
                logging.getLogger("semel.x").warning("line %d", n)
        finally:
            root.handlers[:], root.level = before
            printing.settle()
    assert capsys.readouterr().err.count("the log cannot be written ([Errno 28]") == (1 if as_json else 0)
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_goes_away_changes_no_exit_code():
    code = (
        "import logging, os, sys; from semel import cli; from semel.cli import logs\n"
        "def app():\n"
        "    logs.configure(as_json=True)\n"
        "    for n in range(5): logging.getLogger('semel').warning('x' * 5000)\n"
        "    sys.exit(4)\n"
        "cli.app = app; cli.main()"
    )
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (ran.returncode, len(ran.stderr.splitlines())) == (4, 1), ran.stderr
