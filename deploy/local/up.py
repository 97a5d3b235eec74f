#!/usr/bin/python3
"""`make up` and `make down`: a cluster of three nodes and two routers on this machine that stays.

    up.py --build DIR --work DIR up|down|show     [--nodes 3] [--routers 2] [--port 7700]

`up` starts what does not run and makes a cluster when there is none; it may be run again after a crash or a reboot. `down` ends
exactly those processes that `up` started and keeps their data; remove the directory to begin anew.
"""
import argparse
import sys
from pathlib import Path

from local_cluster import ClusterError, LocalCluster


def show(cluster):
    for p in cluster.processes:
        state = "not running" if not p.alive() else (p.not_ready() or "ready")
        address = getattr(p, "listen", None) or p.address
        print(f"  {p.name:10} {address:24} {p.http}/metrics   pid {p.pid if p.alive() else '-':>7}   {state}")


def up(cluster):
    cluster.start()
    show(cluster)
    print(f"\nClients connect to {cluster.endpoints}\n\n"
          f"  export OMENDB_ENDPOINT={cluster.endpoints} PATH={cluster.build}:$PATH\n"
          "  omenctl cluster status\n"
          "  omenctl collections create books --dim 4 --shards 4 --replication 3\n\n"
          f"State and logs are under {cluster.work}; `make down` ends it and keeps the data.")


def down(cluster):
    running = [p.name for p in cluster.processes if p.alive()]
    cluster.stop()
    print(f"ended {', '.join(running)}" if running else "nothing was running")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=Path, required=True, help="directory of omen-node, omen-router and omenctl")
    parser.add_argument("--work", type=Path, required=True, help="state, data and logs")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--routers", type=int, default=2)
    parser.add_argument("--port", type=int, default=7700, help="routers from here on, nodes from 10 above; later runs keep it")
    parser.add_argument("what", choices=["up", "down", "show"])
    args = parser.parse_args()
    try:
        cluster = LocalCluster(args.build, args.work, args.nodes, args.routers, base_port=args.port)
        {"up": up, "down": down, "show": show}[args.what](cluster)
    except ClusterError as e:
        print(f"make {args.what}: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
