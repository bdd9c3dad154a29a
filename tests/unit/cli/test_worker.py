import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from semel import cli
from semel.errors import ConfigError, DeclarationError, InstanceTaken, PipelineHalted, TopicChanged
from semel.port import RpcLost

PIPELINE = """
from semel.pipeline import Pipeline
from semel.topic import Topic

def agent(event):
    return event

pipeline = Pipeline("shop", source=Topic("orders"), agent=agent, sink=Topic("results"))
"""


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What `semel.worker.main.run` was called with; it ends with `started["failure"]`."""
    calls = {"failure": None}

    def run(target, settings, *, instance, adopt, exit_code):
        calls.update(target=target, settings=settings, instance=instance, adopt=adopt)
        return calls["failure"]

    engine = ModuleType("semel.worker.main")
    engine.run = run
    monkeypatch.setitem(sys.modules, "semel.worker.main", engine)
    monkeypatch.setattr("semel.cli.logs.configure", lambda **_: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    Path("shop_pipeline.py").write_text(PIPELINE)
    yield calls
    sys.modules.pop("shop_pipeline", None)


def test_worker_hands_the_pipeline_and_its_settings_to_the_engine(started):
    Path("w.toml").write_text("standbys = 1\nweb_port = 1")

    ran = CliRunner().invoke(
        cli.app, ["worker", "shop_pipeline", "--instance", "w-1", "--web-port", "7001", "--config", "w.toml", "--adopt",
                  "--halt-after", "0"]
    )  # fmt: skip

    assert ran.exit_code == 0, ran.output
    assert started["target"].name == "shop"
    assert (started["settings"].web_port, started["settings"].standbys) == (7001, 1)
    assert started["settings"].halt_after == 0
    assert (started["instance"], started["adopt"]) == ("w-1", True)


def test_worker_does_not_start_with_timeouts_out_of_order(started, monkeypatch, capsys):
    monkeypatch.setenv("SEMEL_COMMIT_TIMEOUT_MS", "8000")
    monkeypatch.setenv("SEMEL_REVOKE_TIMEOUT_MS", "7000")
    monkeypatch.setattr(sys, "argv", ["semel", "worker", "shop_pipeline"])

    with pytest.raises(SystemExit) as ended:
        cli.main()

    assert ended.value.code == 2
    assert "commit_timeout_ms = 8000 must be below revoke_timeout_ms = 7000" in capsys.readouterr().err
    assert "target" not in started


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (InstanceTaken("x"), 4),
        (PipelineHalted("settle", 12, 60.0, "OSError: x"), 7),
        (TopicChanged("x"), 1),
        (DeclarationError("x"), 2),
        (RpcLost("Metadata"), 3),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("a defect, said on the log"), 1),
    ],
)
def test_worker_ends_with_the_exit_code_of_what_ended_it(started, failure, code):
    started["failure"] = failure

    assert CliRunner().invoke(cli.app, ["worker", "shop_pipeline"]).exit_code == code
    assert (started["instance"], started["adopt"], started["settings"].web_port) == (None, False, 6066)


@pytest.mark.parametrize("name", ["", "..", "a/b", "ü", "x" * 250])
def test_an_instance_name_kafka_or_a_directory_would_refuse_is_a_usage_error(name, started):
    assert CliRunner().invoke(cli.app, ["worker", "shop_pipeline", "--instance", name]).exit_code == 2
    assert "target" not in started


def test_a_wrong_setting_stops_before_the_pipeline_is_imported(started):
    Path("bad.toml").write_text("sesion_timeout_ms = 1")

    ran = CliRunner().invoke(cli.app, ["worker", "shop_pipeline", "--config", "bad.toml"])

    assert isinstance(ran.exception, ConfigError)
    assert "shop_pipeline" not in sys.modules
