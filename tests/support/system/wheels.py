"""Small wheels of piecework in small environments, whose worker is as good as a test wants.

The program in them is a stand-in that answers `worker update` as the real one does: `worker check`
has an exit code, and `worker start` an admin port with `/ready` and `/drain`, and a journal.
"""

from __future__ import annotations

import base64
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

PROGRAM = """
import http.server, json, os, pathlib, secrets, signal, sqlite3, sys, threading

GOOD_CHECK, GETS_READY, SCHEMA, DIES = {check}, {ready}, {schema}, {dies}
STATUS = {status}

def main():
    words = sys.argv[1:]
    home = pathlib.Path(words[words.index("--home") + 1])
    assert os.environ["PIECEWORK_PASSWORD"] == "a test password"
    if words[:2] == ["worker", "check"]:
        print("ok" if GOOD_CHECK else "FAIL  model: the new version cannot load it")
        raise SystemExit(0 if GOOD_CHECK else 1)
    assert words[:2] == ["worker", "start"], words
    journal = sqlite3.connect(home / "journal.db", isolation_level=None)
    journal.execute("PRAGMA locking_mode = EXCLUSIVE")
    journal.execute("PRAGMA journal_mode = WAL")
    journal.execute(f"PRAGMA user_version = {{SCHEMA}}")
    journal.execute("BEGIN IMMEDIATE")
    journal.execute("COMMIT")
    if DIES:
        os._exit(1)
    class Admin(http.server.BaseHTTPRequestHandler):
        def answer(self, status, body):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())
        def do_GET(self):
            if self.path == "/status":
                self.answer(200, STATUS)
            else:
                self.answer(200 if GETS_READY else 503, {{"ready": GETS_READY}})
        def do_POST(self):
            self.answer(202, {{"draining": True}})
            threading.Thread(target=server.shutdown).start()
        def log_message(self, *words):
            pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Admin)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    (home / "admin.token").write_text(secrets.token_urlsafe(32))
    address = {{"host": "127.0.0.1", "port": server.server_port, "pid": os.getpid()}}
    (home / "admin.json").write_text(json.dumps(address))
    (home / "version").write_text("{version}")
    server.serve_forever()
    (home / "admin.json").unlink()
    journal.close()
"""


def build_wheel(
    folder: Path,
    version: str,
    *,
    check: bool = True,
    ready: bool = True,
    paused: bool = False,
    schema: int = 3,
    dies: bool = False,
    needs: str = "",
) -> Path:
    """A wheel whose program does as it is told. paused: for its owner, since its start."""
    status = {"state": "paused", "offer": {"sequence": 1} if paused else None}
    info = f"piecework-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: piecework\nVersion: {version}\n"
    files = {
        "piecework/__init__.py": "",
        "piecework/main.py": PROGRAM.format(
            check=check, ready=ready, schema=schema, dies=dies, version=version, status=status
        ),
        f"{info}/METADATA": metadata + (f"Requires-Dist: {needs}\n" if needs else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\npiecework = piecework.main:main\n",
    }
    return _zipped(folder / f"piecework-{version}-py3-none-any.whl", info, files)


def build_library(folder: Path, name: str) -> Path:
    """A wheel of another package, such as a new version might need."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}/__init__.py": "HERE = True\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    return _zipped(folder / f"{name}-1.0-py3-none-any.whl", info, files)


def _zipped(wheel: Path, info: str, files: dict[str, str]) -> Path:
    rows = [f"{name},sha256={_hash(text)},{len(text)}" for name, text in files.items()]
    record = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    return wheel


def _hash(text: str) -> str:
    return base64.urlsafe_b64encode(sha256(text.encode()).digest()).rstrip(b"=").decode()


def digest_of(wheel: Path) -> str:
    return sha256(wheel.read_bytes()).hexdigest()


def install(folder: Path, name: str, *wheels: Path) -> Path:
    """An environment with these wheels, as a person makes the first one."""
    place = folder / name
    subprocess.run([sys.executable, "-P", "-m", "venv", "--without-pip", str(place)], check=True)
    pip = [sys.executable, "-P", "-m", "pip", "--python", str(place / "bin" / "python")]
    subprocess.run(
        [*pip, "install", "-q", "--no-index", "--no-deps", *map(str, wheels)], check=True
    )
    return place
