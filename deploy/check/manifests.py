#!/usr/bin/python3
"""What deploys OmenDB: manifests parse, name only what there is (services, ports, volumes, selectors), and set only keys that
the programs have. systemd's own checker reads the units where it is installed."""

import os
import re
import subprocess
import tempfile

import yaml

from _tree import complain, files, finish, read

PROGRAM_KEYS = {"omen-node": "deploy/omendb.yaml", "omen-router": "deploy/omen-router.yaml"}


def keys_of(path):
    """Every key of a documented configuration as its environment variable."""
    found = set()

    def walk(value, prefix):
        for key, below in (value or {}).items():
            if isinstance(below, dict):
                walk(below, prefix + (key,))
            else:
                found.add("OMENDB_" + "_".join(prefix + (key,)).upper())
    try:
        walk(yaml.safe_load(read(path) or ""), ())
    except (yaml.YAMLError, AttributeError):
        pass  # told below as a file that does not parse
    return found


KEYS = {program: keys_of(path) for program, path in PROGRAM_KEYS.items()}


def line_of(path, needle):
    for number, line in enumerate((read(path) or "").split("\n"), 1):
        if needle in line:
            return number
    return 1


def check_environment(path, program, names):
    for name in names:
        if name.startswith("OMENDB_") and name not in KEYS.get(program, ()):
            complain(path, line_of(path, name), "%s is no key of %s (%s)" % (name, program, PROGRAM_KEYS.get(program)))


# ---- compose ----

def check_compose(path, doc):
    services = doc.get("services") or {}
    declared = {kind: set(doc.get(kind) or {}) for kind in ("networks", "volumes", "secrets")}
    for name, service in services.items():
        where = line_of(path, "  %s:" % name)
        if not service.get("image") and not service.get("build"):
            complain(path, where, "%s has neither image nor build" % name)
        for other in service.get("depends_on") or ():
            if other not in services:
                complain(path, where, "%s depends on %s, which is no service" % (name, other))
        for kind in ("networks", "secrets"):
            for used in service.get(kind) or ():
                if used not in declared[kind]:
                    complain(path, where, "%s uses %s %s, which is not declared" % (name, kind, used))
        for volume in service.get("volumes") or ():
            if str(volume).split(":")[0] not in declared["volumes"]:
                complain(path, where, "%s mounts %s, which is not declared" % (name, volume))
        command = service.get("command") or ""
        program = (command if isinstance(command, str) else command[0] if command else "").split(" ")[0]
        check_environment(path, program, service.get("environment") or ())


# ---- Kubernetes ----

def labels_match(selector, labels):
    return bool(selector) and all(labels.get(k) == v for k, v in selector.items())


class Kubernetes:
    def __init__(self, path, docs):
        self.path, self.docs = path, [d for d in docs if d]
        self.pods = [d["spec"]["template"] for d in self.docs if d["kind"] in ("StatefulSet", "Deployment", "DaemonSet", "Job")]

    def complain(self, doc, text):
        complain(self.path, line_of(self.path, "kind: %s" % doc.get("kind")), "%s %s: %s" % (
            doc.get("kind"), doc.get("metadata", {}).get("name"), text))

    def pods_of(self, selector):
        return [p for p in self.pods if labels_match(selector, p["metadata"].get("labels", {}))]

    def ports_of(self, pod):
        return {p["name"] for c in pod["spec"]["containers"] for p in c.get("ports", ())}

    def check(self):
        for doc in self.docs:
            if not doc.get("apiVersion") or not doc.get("metadata", {}).get("name"):
                self.complain(doc, "needs apiVersion and metadata.name")
                continue
            check = getattr(self, "check_" + doc["kind"].lower(), None)
            if check is not None:
                check(doc)

    def check_service(self, doc):
        pods = self.pods_of(doc["spec"].get("selector"))
        if not pods:
            self.complain(doc, "selects no pod")
        for port in doc["spec"].get("ports", ()):
            for pod in pods:
                if isinstance(port.get("targetPort"), str) and port["targetPort"] not in self.ports_of(pod):
                    self.complain(doc, "port %s is no port of its pods" % port["targetPort"])

    def check_poddisruptionbudget(self, doc):
        if not self.pods_of(doc["spec"]["selector"].get("matchLabels")):
            self.complain(doc, "selects no pod")

    def check_networkpolicy(self, doc):
        pods = self.pods_of(doc["spec"]["podSelector"].get("matchLabels"))
        if not pods:
            self.complain(doc, "selects no pod")
        for rule in doc["spec"].get("ingress", ()):
            for peer in rule.get("from", ()):
                if not self.pods_of(peer.get("podSelector", {}).get("matchLabels")):
                    self.complain(doc, "lets nobody in by %s" % peer)
            for port in rule.get("ports", ()):
                if pods and port["port"] not in self.ports_of(pods[0]):
                    self.complain(doc, "port %s is no port of its pods" % port["port"])

    def check_statefulset(self, doc):
        names = [d["metadata"]["name"] for d in self.docs if d["kind"] == "Service"]
        if doc["spec"].get("serviceName") not in names:
            self.complain(doc, "serviceName names no service")
        self.check_workload(doc, [t["metadata"]["name"] for t in doc["spec"].get("volumeClaimTemplates", ())])

    def check_deployment(self, doc):
        self.check_workload(doc, [])

    def check_workload(self, doc, claims):
        pod = doc["spec"]["template"]
        if not labels_match(doc["spec"]["selector"].get("matchLabels"), pod["metadata"].get("labels", {})):
            self.complain(doc, "its selector does not match its own pods")
        volumes = {v["name"] for v in pod["spec"].get("volumes", ())} | set(claims)
        for container in pod["spec"]["containers"]:
            for mount in container.get("volumeMounts", ()):
                if mount["name"] not in volumes:
                    self.complain(doc, "mounts %s, which is no volume" % mount["name"])
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                port = container.get(probe, {}).get("httpGet", {}).get("port")
                if port is not None and port not in self.ports_of(pod):
                    self.complain(doc, "%s asks port %s, which it has not" % (probe, port))
            program = (container.get("command") or [""])[0]
            check_environment(self.path, program, [e["name"] for e in container.get("env", ())])


# ---- systemd ----

def check_unit(path):
    text = read(path)
    for section in ("[Unit]", "[Service]", "[Install]"):
        if section not in text:
            complain(path, 1, "has no %s" % section)
    found = re.search(r"^ExecStart=(\S+)(.*)$", text, re.M)
    if found is None:
        complain(path, 1, "has no ExecStart")
        return
    program = os.path.basename(found.group(1))
    check_environment(path, program, re.findall(r"^Environment=(\w+)=", text, re.M))
    with tempfile.TemporaryDirectory() as folder:  # the program is not installed where this is checked
        copy = os.path.join(folder, os.path.basename(path))
        with open(copy, "w") as f:
            f.write(text.replace(found.group(0), "ExecStart=/bin/true"))
        try:
            done = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return  # not installed, or not usable here
        # It also reads the units that ours want: what it says of those is not ours to mend.
        for line in done.stderr.split("\n"):
            if os.path.basename(path) in line:
                complain(path, 1, line.strip())


for path in files(".yaml", ".yml"):
    if not path.startswith("deploy/"):
        continue
    try:
        docs = list(yaml.safe_load_all(read(path)))
    except yaml.YAMLError as e:
        complain(path, getattr(getattr(e, "problem_mark", None), "line", 0) + 1, str(e).replace("\n", " "))
        continue
    if path.startswith("deploy/kubernetes/"):
        Kubernetes(path, docs).check()
    elif "services" in (docs[0] or {}):
        check_compose(path, docs[0])
for path in files(".service"):
    check_unit(path)
finish()
