#!/usr/bin/python3
"""Cut the demo's data set out of the full debpkg-lsa-128 folder and recompute its truth.

    make_data.py FULL_DATA_SET_DIR [OUT_DIR]

Keeps every package of section `httpd` and of the nginx family, then rows in file order up to 20,000. Vectors are stored
as f16 (what the demo loads is exactly what is stored), queries as f32; truth is the exact top 100 by cosine over the
f16 values, computed in f64. The output is deterministic: running it again gives the same bytes.
"""
import gzip
import json
import sys
from pathlib import Path

import numpy as np

ROWS, QUERIES, TRUTH_K = 20_000, 200, 100


def read_fbin(path):
    rows, dims = np.fromfile(path, dtype="<u4", count=2)
    return np.fromfile(path, dtype="<f4", offset=8).reshape(rows, dims)


def write_bin(path, array):
    with open(path, "wb") as f:
        np.array(array.shape, dtype="<u4").tofile(f)
        array.tofile(f)


def main():
    full = Path(sys.argv[1])
    out = Path(sys.argv[2] if len(sys.argv) > 2 else Path(__file__).parent / "data")
    out.mkdir(parents=True, exist_ok=True)
    base = read_fbin(full / "base.fbin")
    queries = read_fbin(full / "query.fbin")[:QUERIES]
    payload = [json.loads(line) for line in open(full / "payload.jsonl", encoding="utf-8")]

    wanted = [i for i, p in enumerate(payload) if p["section"] == "httpd" or p["package"].startswith("nginx")]
    chosen = set(wanted)
    for i in range(len(payload)):
        if len(chosen) >= ROWS:
            break
        chosen.add(i)
    rows = sorted(chosen)

    half = base[rows].astype("<f2")
    stored = half.astype(np.float64)
    unit = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    q = queries.astype(np.float64)
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    truth = np.argsort(-(q @ unit.T), axis=1, kind="stable")[:, :TRUTH_K].astype("<u4")

    write_bin(out / "base.f16bin", half)
    write_bin(out / "query.fbin", queries.astype("<f4"))
    write_bin(out / "truth.ibin", truth)
    with gzip.GzipFile(out / "payload.jsonl.gz", "wb", compresslevel=9, mtime=0) as f:
        for new_id, i in enumerate(rows):
            p = dict(payload[i])
            p["id"] = new_id
            f.write((json.dumps(p, ensure_ascii=False, separators=(",", ":")) + "\n").encode())
    meta = {"name": "debpkg-lsa-128-demo", "count": len(rows), "dim": int(base.shape[1]), "metric": "cosine",
            "base": "base.f16bin", "query": "query.fbin", "truth": "truth.ibin", "payload": "payload.jsonl"}
    (out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


if __name__ == "__main__":
    main()
