#!/usr/bin/python3
"""The demo's witness: a client process of its own that writes single points as fast as they are acknowledged and keeps
an fsynced record of every acknowledgement.

    writer.py --endpoint URL --collection NAME --log FILE --dim N --seed N [--in-flight 128]

Each line of the log is "id sequence duplicate us": point `id` was acknowledged by entry `sequence`, `us` microseconds of the
machine's monotonic clock. Acknowledgements are
appended and fsynced in groups, so a line in the log was certainly acknowledged. The process writes until it reads a
line "stop" (or the end) on stdin, then waits for everything in flight, prints a JSON summary and ends. Vectors and payloads
follow from seed and id (see `make_point`), so that the checker can compute them again.
"""
import argparse
import json
import os
import sys
import threading
import time

import numpy as np

import omendb


def make_point(seed: int, point_id: int, dim: int):
    """Vector and payload of a point: a function of seed and id alone."""
    rng = np.random.default_rng((seed, point_id))
    return rng.standard_normal(dim, dtype=np.float32), {"writer": seed, "n": point_id, "note": f"write {point_id}"}


class AckLog:
    """Collects acknowledgements; a thread appends and fsyncs them in groups."""

    def __init__(self, path: str):
        self._file = open(path, "a", buffering=1 << 16)
        self._lock = threading.Condition()
        self._lines, self._ended = [], False
        self.logged = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def add(self, line: str) -> None:
        with self._lock:
            self._lines.append(line)
            self._lock.notify()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._lines and not self._ended:
                    self._lock.wait()
                lines, self._lines = self._lines, []
                if not lines:
                    return
            self._file.write("".join(lines))
            self._file.flush()
            os.fsync(self._file.fileno())
            self.logged += len(lines)

    def close(self) -> None:
        with self._lock:
            self._ended = True
            self._lock.notify()
        self._thread.join()
        self._file.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--collection", required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--dim", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--first-id", type=int, default=0)
    parser.add_argument("--in-flight", type=int, default=128)
    parser.add_argument("--api-key")
    args = parser.parse_args()

    stop = threading.Event()

    def read_stdin():
        for line in sys.stdin:
            if line.strip() == "stop":
                break
        stop.set()

    threading.Thread(target=read_stdin, daemon=True).start()
    log = AckLog(args.log)
    acknowledged = [0]

    def on_ack(ids, result):
        now_us = time.monotonic_ns() // 1000
        for i in ids:
            log.add(f"{i} {result.sequence} {int(result.duplicate)} {now_us}\n")
        acknowledged[0] += len(ids)

    # A minute is longer than any restart in the demo; the pipeline retries with the same op ids until then.
    with omendb.connect(args.endpoint, api_key=args.api_key, timeout=60) as db:
        collection = db.collection(args.collection)
        next_id = args.first_id
        with collection.pipeline(in_flight=args.in_flight, on_ack=on_ack) as pipeline:
            while not stop.is_set():
                vector, payload = make_point(args.seed, next_id, args.dim)
                pipeline.upsert([next_id], vector[None, :], [payload])
                next_id += 1
    log.close()
    print(json.dumps({"submitted": next_id - args.first_id, "acknowledged": acknowledged[0], "logged": log.logged}))


if __name__ == "__main__":
    main()
