"""A router that answers `cluster` requests as a test says: what tools print and how they wait, without a cluster.

    with FakeRouter({"status": lambda request: {...}}) as router:
        omenctl --endpoint router.listen cluster status
"""
import socket
import struct
import threading

import msgpack

_OPENING = b"\x00SP\x00\x00\x31\x00\x00"


class Refused(Exception):
    """Answered with this error."""

    def __init__(self, code, name, message):
        super().__init__(message)
        self.code, self.name = code, name


class FakeRouter:
    """`actions`: by name a function of the request that returns the reply or raises :class:`Refused`. `asked` lists all
    requests, `op_ids` what came with each. `silent`: says nothing any more."""

    def __init__(self, actions):
        self.actions, self.asked, self.op_ids, self.silent = actions, [], [], False
        self._server = socket.create_server(("127.0.0.1", 0))
        self.listen = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._server.close()

    def _accept(self):
        while True:
            try:
                peer = self._server.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer):
        with peer, peer.makefile("rb") as stream:
            peer.sendall(_OPENING)
            stream.read(8)
            while header := stream.read(8):
                frame = stream.read(struct.unpack(">Q", header)[0])
                if self.silent:
                    continue
                body = msgpack.packb(self._answer(msgpack.unpackb(frame[4:])))
                peer.sendall(struct.pack(">Q", len(body) + 4) + frame[:4] + body)

    def _answer(self, request):
        if request["op"] == "hello":
            return {"ok": True, "engine_us": 0, "version": 1, "versions": [1, 1], "server_version": "0", "commit": "0",
                    "limits": {}}
        asked = request["request"]
        self.asked.append(asked)
        self.op_ids.append(request.get("op_id"))
        try:
            return {"ok": True, "engine_us": 0, "reply": self.actions[asked["do"]](asked)}
        except Refused as e:
            return {"ok": False, "error": {"code": e.code, "name": e.name, "message": str(e)}}
        except KeyError:
            return {"ok": False, "error": {"code": 1, "name": "invalid", "message": "do is not known"}}
