"""Shares a cache with Python's huggingface_hub, in both directions, by way of a hub on this machine.

    python hub.py ATOMBANK_BINARY WORK_DIR

What huggingface_hub has fetched is used without fetching it again; what atombank has fetched is found by huggingface_hub
and transformers, links, locks, known absences and all. Each check prints a line; the last line counts them. Exit code 1
where one failed.
"""
import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from common import BINARY, FIXTURES, WORK, check, finish

import huggingface_hub
import transformers
from huggingface_hub.file_download import _CACHED_NO_EXIST
from huggingface_hub.utils import WeakFileLock

# The other scripts must not ask anybody; this one asks its own hub.
huggingface_hub.constants.HF_HUB_OFFLINE = False
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "org/model"
FILES = {path.name: path.read_bytes() for path in sorted((FIXTURES / "demo/base").iterdir()) if path.is_file()}
FILES["additional_chat_templates/tool_use.jinja"] = b"{{ tools }}"
asked = []


def is_large(name):
    return name.endswith((".safetensors", ".model"))


def etag(name):
    data = FILES[name]
    return hashlib.sha256(data).hexdigest() if is_large(name) else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        resolve = path.split("/resolve/")
        if path.startswith(f"/api/models/{NAME}/tree/"):
            entries = [{"type": "file", "path": name, "size": len(data), "oid": etag(name)} for name, data in FILES.items()]
            self.reply(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        elif path.startswith(f"/api/models/{NAME}"):
            siblings = [{"rfilename": name} for name in FILES]
            info = {"id": NAME, "sha": COMMIT, "private": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings}
            self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        elif len(resolve) == 2:
            self.file(resolve[1].split("/", 1)[1])
        elif path.startswith("/store/"):
            self.content(path[len("/store/"):], {})
        else:
            self.reply(404, b"", {})

    do_HEAD = do_GET

    def file(self, name):
        if name not in FILES:
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        mark = f'"{etag(name)}"'
        if not is_large(name):
            return self.content(name, {"ETag": mark, "X-Repo-Commit": COMMIT})
        headers = {"X-Linked-ETag": mark, "X-Linked-Size": str(len(FILES[name])), "X-Repo-Commit": COMMIT}
        # As on the real hub, large files are on another server.
        self.reply(302, b"Found", {**headers, "Location": f"http://127.0.0.1:{store.server_port}/store/{name}"})

    def content(self, name, headers):
        data = FILES[name]
        wanted = self.headers.get("Range")
        if self.command == "GET" and wanted != "bytes=0-0":
            asked.append((name, wanted))
        if wanted is None:
            return self.reply(200, data, headers)
        start, end = wanted.removeprefix("bytes=").split("-")
        start, end = int(start), min(int(end or len(data) - 1), len(data) - 1)
        if start >= len(data):
            return self.reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        self.reply(206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})

    def reply(self, status, body, headers):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *_):
        """A client that hangs up is no error here."""


def serve():
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


hub, store = serve(), serve()
ENDPOINT = f"http://127.0.0.1:{hub.server_port}"


def convert(cache, **variables):
    """`atombank convert` of the model, on its way."""
    names = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    command = [BINARY, "convert", f"hf:{NAME}", "-o", WORK / "model.gguf", "--overwrite"]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**names, "HF_HUB_CACHE": str(cache), "HF_ENDPOINT": ENDPOINT, **variables})


def finished(run):
    """The exit code, and what was said of the hub."""
    lines = run.communicate()[1].splitlines()
    return run.returncode, " ".join(line for line in lines if "hf:" in line or line.startswith("error"))


def converted(cache, **variables):
    asked.clear()
    code, said = finished(convert(cache, **variables))
    return code, said, sorted({name for name, _ in asked})


def fresh(name):
    cache = WORK / name
    shutil.rmtree(cache, ignore_errors=True)
    return cache


def python_first():
    cache = fresh("python-first")
    huggingface_hub.snapshot_download(NAME, cache_dir=cache, endpoint=ENDPOINT)
    code, said, fetched = converted(cache, HF_HUB_OFFLINE="1")
    check("a snapshot of huggingface_hub, offline", code == 0, said or "read")
    code, said, fetched = converted(cache)
    check("a snapshot of huggingface_hub", (code, said, fetched) == (0, "", []), f"fetched {fetched} {said}")

    cache = fresh("python-part")
    for name in ["config.json", "model.safetensors"]:
        huggingface_hub.hf_hub_download(NAME, name, cache_dir=cache, endpoint=ENDPOINT)
    code, said, fetched = converted(cache)
    lacked = sorted(set(FILES) - {"config.json", "model.safetensors"})
    check("the rest of what huggingface_hub has in part", code == 0 and fetched == lacked, f"fetched {fetched} {said}")


def atombank_first():
    cache = fresh("atombank-first")
    code, said, fetched = converted(cache)
    check("a model into an empty cache", code == 0 and not said, f"fetched {len(fetched)} files {said}")
    asked.clear()
    folder = {huggingface_hub.hf_hub_download(NAME, name, cache_dir=cache, endpoint=ENDPOINT) for name in FILES}
    same = all(open(path, "rb").read() == FILES[path.split(f"/{COMMIT}/")[1]] for path in folder)
    check("all of it is found by huggingface_hub", same and not asked, f"{len(folder)} files, {len(asked)} fetched again")
    path = huggingface_hub.snapshot_download(NAME, cache_dir=cache, local_files_only=True)
    check("also without a hub", path.endswith(COMMIT), path[-60:])
    absent = huggingface_hub.try_to_load_from_cache(NAME, "vocab.txt", cache_dir=cache)
    check("what the model hasn't is known", absent is _CACHED_NO_EXIST, "vocab.txt")
    found = huggingface_hub.scan_cache_dir(cache)
    sizes = found.size_on_disk == sum(len(data) for data in FILES.values())
    check("the cache is in order", not found.warnings and sizes, f"{found.size_on_disk} bytes, warnings: {found.warnings}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    check("transformers reads it", len(tokenizer) > 0, f"a tokenizer of {len(tokenizer)} tokens")


def together():
    # A part of an older huggingface_hub, which broke off.
    cache = fresh("part")
    part = cache / f"models--org--model/blobs/{etag('model.safetensors')}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(FILES["model.safetensors"][:1000])
    asked.clear()
    code, said = finished(convert(cache))
    # Its header comes first, by a range of its own.
    ranges = [wanted for name, wanted in asked if name == "model.safetensors"]
    goes_on = ranges[0].startswith("bytes=0-") and ranges[-1] == "bytes=1000-"
    check("a part goes on where it broke off", code == 0 and goes_on, f"ranges {ranges}")

    cache = fresh("lock")
    lock = cache / f".locks/models--org--model/{etag('model.safetensors')}.lock"
    lock.parent.mkdir(parents=True)
    with WeakFileLock(lock):
        run = convert(cache)
        time.sleep(2)
        waits = run.poll() is None
    code, said = finished(run)
    check("a lock of huggingface_hub is waited for", waits and code == 0 and "another process" in said, said)


python_first()
atombank_first()
together()
finish("hub")
