"""The server module, against stubs in place of ComfyUI."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tools import server

STUB = """
import http.server, sys
print("arguments", sys.argv[1:])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def test_a_host_that_dies_is_reported_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("print('cannot start, because'); raise SystemExit(3)")
    with (
        pytest.raises(server.ServerError, match=r"(?s)exit code 3.*cannot start, because"),
        server.Server(tmp_path, {}),
    ):
        pass


def test_server_ends_its_process_and_removes_its_folder_after_an_exception(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(STUB)
    (tmp_path / "model").mkdir()
    links = {"custom_nodes/thing": tmp_path / "model"}
    running = server.Server(tmp_path, links)

    def use_and_fail() -> None:
        with running:
            assert (running.base / "custom_nodes/thing").samefile(tmp_path / "model")
            assert "'--listen', '127.0.0.1'" in running.log()
            assert "'--cpu'" in running.log()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use_and_fail()
    assert running.process.poll() is not None
    assert not running.base.exists()
    assert (tmp_path / "model").exists()


def test_a_link_is_replaced_and_a_real_folder_is_not(tmp_path: Path) -> None:
    for name in ("one", "two", "real/something"):
        (tmp_path / name).mkdir(parents=True)
    server.link(tmp_path / "one", tmp_path / "link")
    server.link(tmp_path / "two", tmp_path / "link")
    assert (tmp_path / "link").samefile(tmp_path / "two")
    with pytest.raises(FileExistsError):
        server.link(tmp_path / "one", tmp_path / "real")


def test_a_model_folder_holds_real_files_also_where_a_link_stood(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("1")
    (tmp_path / "base" / "models").mkdir(parents=True)
    (tmp_path / "base" / "models" / "x").symlink_to(tmp_path / "model")
    for _ in range(2):
        server.prepare_base(tmp_path / "base", {"models/x": tmp_path / "model"})
        file = tmp_path / "base" / "models" / "x" / "weights"
        assert file.read_text() == "1"
        assert file.resolve() == (tmp_path / "base").resolve() / "models" / "x" / "weights"
    assert (tmp_path / "model" / "weights").exists()


def test_a_missing_link_target_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        server.prepare_base(tmp_path, {"models/x": tmp_path / "nothing-here"})


def test_server_environment_has_no_foreign_import_path() -> None:
    environ = server.server_environment({"PYTHONPATH": "x", "PYTHONHOME": "y", "KEPT": "1"}, offline=True)
    assert "PYTHONPATH" not in environ
    assert "PYTHONHOME" not in environ
    assert (environ["KEPT"], environ["HF_HUB_OFFLINE"]) == ("1", "1")
    assert "HF_HUB_OFFLINE" not in server.server_environment({}, offline=False)


def test_a_link_on_the_command_line_has_two_sides() -> None:
    assert server.link_argument("models/x=/a=b") == ("models/x", Path("/a=b"))
    with pytest.raises(argparse.ArgumentTypeError, match="INSIDE=TARGET"):
        server.link_argument("models/x")
