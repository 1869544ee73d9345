"""The work of cluster.sh: python3 cluster.py BINARY RATE SECONDS."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

BINARY, RATE, SECONDS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
TICKS = os.sysconf("SC_CLK_TCK")
# Addresses of this run.
NETWORK = f"127.{random.randrange(64, 250)}.{random.randrange(250)}"


class Process:
    def __init__(self, site, role, number, workers):
        self.role, self.name = role, f"{role}-{number}"
        self.address = f"{NETWORK}.{len(site.processes) + 1}"
        self.folder = site.folder / self.name
        self.folder.mkdir()
        ring = f"instance_id: {self.name}, instance_addr: {self.address}, kvstore: {{store: memberlist}}"
        (self.folder / "config.yaml").write_text(f"""
target: {role}
server: {{http_listen_address: {self.address}, http_listen_port: 3200, grpc_listen_address: {self.address}, grpc_listen_port: 9095}}
distributor:
  receivers: {{otlp: {{protocols: {{grpc: {{endpoint: "{self.address}:4317"}}}}}}}}
ingester:
  max_block_duration: 10s
  lifecycler:
    {{id: {self.name}, address: {self.address}, min_ready_duration: 0s,
     ring: {{replication_factor: {site.copies}, kvstore: {{store: memberlist}}, heartbeat_timeout: 10s}}}}
metrics_generator: {{ring: {{{ring}}}, storage: {{path: {self.folder}/generator}}}}
memberlist: {{bind_addr: [{self.address}], join_members: ["{NETWORK}.1:7946"], gossip_interval: 200ms, min_join_backoff: 200ms}}
overrides:
  defaults:
    ingestion: {{rate_limit_bytes: 2000000000, burst_size_bytes: 2000000000, max_traces_per_user: 10000000}}
    metrics_generator: {{processors: [{site.processors}]}}
storage: {{trace: {{backend: local, local: {{path: {site.folder}/blocks}}, wal: {{path: {self.folder}/wal}}}}}}
rubato: {{dataflow: {{workers: {workers}, listen_address: {self.address}}}}}
""")
        log = open(self.folder / "log", "w")
        self.process = subprocess.Popen(
            [BINARY, f"-config.file={self.folder}/config.yaml"], cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )

    def get(self, path):
        with urllib.request.urlopen(f"http://{self.address}:3200{path}", timeout=30) as answer:
            return answer.read().decode()

    def metric(self, name):
        """The sum over the series."""
        lines = (line for line in self.get("/metrics").splitlines() if re.match(re.escape(name) + r"[ {]", line))
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def cpu(self):
        """In microseconds."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) * 1_000_000 / TICKS


class Site:
    """Processes of one cluster, which end with it."""

    def __init__(self, ingesters=1, copies=1, generators=0, workers=1, alone=False, processors=""):
        self.copies, self.processors, self.processes = copies, processors, []
        self.holder = tempfile.TemporaryDirectory(prefix="rubato-bench-")
        self.folder = pathlib.Path(self.holder.name)
        roles = [("all", 1)] if alone else [("ingester", ingesters), ("metrics-generator", generators), ("distributor", 1)]
        for role, count in roles:
            for number in range(count):
                self.processes.append(Process(self, role, number, workers))
        self.members = ingesters + generators

    def __enter__(self):
        for process in self.processes:
            self.wait(f"{process.name} is ready", lambda: "ready" in process.get("/ready"))
        for process in self.of("ingester") + self.of("metrics-generator"):
            self.wait("one dataflow", lambda: process.metric("rubato_dataflow_members") == self.members)
        for process in self.of("distributor"):
            ring = f'tempo_ring_members{{name="ingester",state="ACTIVE"}} {len(self.of("ingester"))}\n'
            self.wait("the ring", lambda: ring in process.get("/metrics"))
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.process.kill()
        for process in self.processes:
            process.process.wait()
        self.holder.cleanup()

    def wait(self, what, is_so, patience=120):
        began = time.monotonic()
        while time.monotonic() - began < patience:
            for process in self.processes:
                if process.process.poll() not in (None, -signal.SIGKILL):
                    sys.exit(f"{process.name} ended:\n" + (process.folder / "log").read_text()[-3000:])
            try:
                if is_so():
                    return
            except OSError:
                pass
            time.sleep(0.1)
        sys.exit(f"gave up waiting: {what}")

    def of(self, role):
        return [process for process in self.processes if process.role == role]

    def load(self, seconds):
        """Starts to send."""
        to = (self.of("distributor") or self.of("all"))[0]
        truth = self.folder / "truth.json"
        command = [BINARY, "load", "--endpoint", f"http://{to.address}:4317", "--rate", str(RATE), "--duration", f"{seconds}s"]
        return subprocess.Popen([*command, "--truth", str(truth)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def stored(self):
        """Traces in blocks."""
        metas = self.folder.glob("blocks/*/*/meta.json")
        return sum(json.loads(meta.read_text()).get("totalObjects", 0) for meta in metas)

    def finish(self, load):
        """What `rubato load` printed, and the spans that were acknowledged, once all of them are in blocks."""
        printed, _ = load.communicate()
        if load.returncode:
            sys.exit(f"rubato load failed:\n{printed}")
        truth = json.loads((self.folder / "truth.json").read_text())
        self.wait("all is in blocks", lambda: self.stored() >= len(truth["traces"]))
        return printed, truth["acknowledged"]["spans"]

    def cost(self):
        """Microseconds of CPU by role, without what they cost while they are idle, and bytes between processes, per span; then the idle cost, in
        thousandths of a core."""
        used = lambda: {process: process.cpu() for process in self.processes}
        begun, before = time.monotonic(), used()
        time.sleep(5)
        loaded, idle = time.monotonic(), used()
        _, spans = self.finish(self.load(SECONDS))
        done, after = time.monotonic(), used()
        rate = {process: (idle[process] - before[process]) / (loaded - begun) for process in self.processes}
        net = lambda process: after[process] - idle[process] - rate[process] * (done - loaded)
        of_role = lambda role: sum(net(process) for process in self.of(role)) / spans
        sent = sum(process.metric("rubato_distributor_replicated_bytes_total") for process in self.of("distributor"))
        members = self.of("ingester") + self.of("metrics-generator")
        mesh = sum(process.metric("rubato_dataflow_mesh_sent_bytes_total") for process in members)
        roles = [of_role(role) for role in ("all", "distributor", "ingester", "metrics-generator")]
        return [sum(roles), *roles, sent / spans, mesh / spans, sum(rate.values()) / 1000]


def table(title, rows):
    print(f"\n{title}")
    names = ["", "sum", "all", "distributor", "ingesters", "generators", "B to ingesters", "B in dataflow", "idle mcores"]
    print("{:34}".format(names[0]) + "".join(f"{name:>15}" for name in names[1:]))
    for name, figures in rows:
        print(f"{name:34}" + "".join(f"{figure:15.2f}" if figure else f"{'-':>15}" for figure in figures), flush=True)


def costs(title, sites):
    rows = []
    for name, settings in sites:
        with Site(**settings) as site:
            rows.append((name, site.cost()))
    table(title, rows)


def loss():
    """An ingester of three is killed under load."""
    with Site(ingesters=3, copies=3, generators=1) as site:
        load = site.load(SECONDS)
        time.sleep(SECONDS / 2)
        victim = site.of("ingester")[1]
        victim.process.kill()
        survivors = [process for process in site.of("ingester") if process is not victim]
        for process in survivors:
            site.wait("the others form", lambda: process.metric("rubato_dataflow_members") == 3)
        printed, spans = site.finish(load)
        again = max(process.metric("rubato_dataflow_reform_seconds_sum") for process in survivors)
        longest = next(line for line in printed.splitlines() if line.startswith("latency"))
        print(f"\nkill -9 of one of three ingesters under load: {again:.2f} s from the loss to the next generation in survivors, {spans} spans")
        print(f"requests meanwhile: {longest.removeprefix('latency').strip()}")


both = "service-graphs, span-metrics"
print(f"{RATE} spans a second for {SECONDS} s each; microseconds of CPU per span until all is in blocks, beyond what idle processes use, and bytes per span between processes")
costs("one process, by workers of the dataflow", [(f"all, {workers} workers", {"alone": True, "workers": workers}) for workers in (1, 2, 4)])
costs(
    "copies",
    [(f"3 ingesters, {copies} copies", {"ingesters": 3, "copies": copies}) for copies in (1, 2, 3)],
)
costs(
    "processes of one dataflow, one copy",
    [
        ("1 ingester", {}),
        ("2 ingesters", {"ingesters": 2}),
        ("3 ingesters", {"ingesters": 3}),
        ("2 ingesters, 2 workers each", {"ingesters": 2, "workers": 2}),
        ("2 ingesters, series", {"ingesters": 2, "processors": both}),
        ("2 ingesters, series at 1 generator", {"ingesters": 2, "generators": 1, "processors": both}),
    ],
)
loss()
