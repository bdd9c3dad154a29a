import sys
from pathlib import Path

import pytest

from semel import project
from semel.errors import ConfigError
from semel.pipeline import Pipeline

PIPELINE = """
from semel.pipeline import Pipeline
from semel.topic import Topic

def agent(event):
    return event

{name} = Pipeline("shop", source=Topic("orders"), agent=agent, sink=Topic("results"))
"""


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """An empty project directory; what it puts on the path and imports is taken back."""
    monkeypatch.chdir(tmp_path)
    # This repository is a project too, and its folders would hide those made here.
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not Path(p, "pipelines").is_dir()])
    before = set(sys.modules)
    names = {"pipelines", "agents", "tables", "config"}
    hidden = {n: sys.modules.pop(n) for n in [*sys.modules] if n.partition(".")[0] in names}
    yield tmp_path
    for name in set(sys.modules) - before | {n for n in sys.modules if n.partition(".")[0] in names}:
        del sys.modules[name]
    sys.modules.update(hidden)


def write(path, text=""):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def refused(target):
    with pytest.raises(ConfigError) as error:
        project.load(target)
    return str(error.value)


def test_a_module_stands_for_its_attribute_pipeline_and_a_name_may_be_given(folder):
    write("pipelines/orders.py", PIPELINE.format(name="pipeline") + PIPELINE.format(name="other"))

    found = project.load("pipelines.orders")

    assert isinstance(found, Pipeline)
    assert found is project.load("pipelines.orders:pipeline")
    assert found is not project.load("pipelines.orders:other")
    assert sys.path[0] == str(folder)


def test_the_current_directory_comes_before_what_is_installed(folder):
    write("installed/pipelines/__init__.py")
    write("installed/pipelines/orders.py", "raise AssertionError('the wrong one')")
    sys.path.insert(0, str(folder / "installed"))
    write("pipelines/__init__.py")
    write("pipelines/orders.py", PIPELINE.format(name="pipeline"))

    assert project.load("pipelines.orders").name == "shop"


def test_a_pipeline_may_live_in_one_package_or_one_file(folder):
    write("bookshop/pipelines/orders.py", PIPELINE.format(name="pipeline"))
    write("single.py", PIPELINE.format(name="pipeline"))

    assert project.load("bookshop.pipelines.orders").name == "shop"
    assert project.load("single").name == "shop"


def test_a_path_is_answered_with_the_module_that_was_meant():
    assert "write pipelines.orders, or module:name" in refused("pipelines/orders.py")
    assert "write pipelines.orders" in refused("./pipelines/orders")
    for nonsense in ("", "a b", "a:b:c", "a.", ".a", "9a", "a:"):
        assert "write" in refused(nonsense)


def test_a_module_that_is_not_there_names_those_that_are(folder):
    write("pipelines/orders.py")
    write("pipelines/__init__.py")

    assert refused("pipelines.oders") == (
        f"there is no module 'pipelines.oders' in {folder}; there is pipelines.orders"
    )
    assert "there is pipelines.orders" in refused("nowhere")


def test_outside_a_project_it_says_where_to_go(folder):
    assert "run the command in the project's directory" in refused("pipelines.orders")


def test_an_attribute_that_is_not_there_names_the_pipelines_that_are():
    write("pipelines/orders.py", PIPELINE.format(name="orders"))
    write("pipelines/empty.py")

    assert refused("pipelines.orders").endswith("no attribute 'pipeline'; write pipelines.orders:orders")
    assert refused("pipelines.empty").endswith("define a Pipeline there")


def test_an_attribute_of_another_type_is_refused_and_a_faust_app_is_shown_the_import():
    write("pipelines/orders.py", "import faust\npipeline = {}\napp = faust.App('x')")

    assert "pipelines.orders:pipeline is a dict, not a Pipeline or an App of semel" in refused("pipelines.orders")
    assert refused("pipelines.orders:app").endswith("import App from semel instead of faust")


def test_an_import_that_fails_is_told_with_its_place():
    write("pipelines/typo.py", "\nimport agents.setle")
    write("agents/settle.py")
    write("pipelines/broken.py", "x = 1\n\ny = x / 0")
    write("pipelines/syntax.py", "def f(:\n")
    write("pipelines/ends.py", "raise SystemExit(3)")

    typo = refused("pipelines.typo")
    assert "imports 'agents.setle', which is not found (pipelines/typo.py, line 2)" in typo
    assert "ZeroDivisionError: division by zero (pipelines/broken.py, line 3)" in refused("pipelines.broken")
    assert "syntax.py, line 1)" in refused("pipelines.syntax")
    assert '__name__ == "__main__"' in refused("pipelines.ends")


def test_a_declaration_that_cannot_be_passes_with_its_own_words():
    write("pipelines/orders.py", PIPELINE.format(name="pipeline").replace('"results"', '"orders"'))

    with pytest.raises(Exception, match="'orders'") as error:
        project.load("pipelines.orders")
    assert type(error.value).__name__ == "DeclarationError"


# -- names that something else hides


def test_a_folder_that_an_installed_package_hides_is_refused_in_one_sentence(folder):
    write("installed/tables/__init__.py")
    sys.path.append(str(folder / "installed"))
    write("pipelines/orders.py", PIPELINE.format(name="pipeline"))
    write("tables/balances.py")

    assert refused("pipelines.orders") == (
        f"tables/ of this project is hidden by another package 'tables' ({folder}/installed/tables); "
        "add an __init__.py to it"
    )
    write("tables/__init__.py")
    assert project.load("pipelines.orders").name == "shop"


def test_a_name_that_was_imported_from_elsewhere_is_refused(folder):
    write("installed/agents/__init__.py")
    sys.path.insert(0, str(folder / "installed"))
    __import__("agents")
    write("agents/__init__.py")
    write("pipelines/orders.py", PIPELINE.format(name="pipeline"))

    assert "agents/ of this project is hidden by another package 'agents'" in refused("pipelines.orders")


def test_a_module_of_the_standard_library_hides_a_file_of_its_name(folder):
    write("json/orders.py")

    assert "json/ of this project is hidden" in refused("json.orders")


def test_a_folder_without_python_hides_nothing(folder):
    write("installed/config/__init__.py")
    sys.path.append(str(folder / "installed"))
    write("config/local.toml")
    write("pipelines/orders.py", PIPELINE.format(name="pipeline"))

    assert project.load("pipelines.orders").name == "shop"


def test_a_folder_reached_through_a_link_is_ours(folder):
    write("real/orders.py", PIPELINE.format(name="pipeline"))
    Path("pipelines").symlink_to("real")

    assert project.load("pipelines.orders").name == "shop"
