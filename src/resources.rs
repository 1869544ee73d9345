//! What this process may use: CPUs and memory from the cgroup, and the sizes that follow.
//!
//! ```text
//!  GOMAXPROCS, cpu.max / cpu.cfs_* , machine ──► Resources.cpus   ──► Sizes: async threads, dataflow workers, encoders
//!  GOMEMLIMIT, memory.max / limit_in_bytes ──► Resources.memory ──► Sizes: budgets in bytes
//! ```
//!
//! The parsers are functions over file contents; only [`detect`] touches files, below a root that tests choose. Limits of all ancestors of the cgroup hold,
//! so the smallest one counts.

use std::path::{Path, PathBuf};

use crate::config::{COMPACTOR, Config, QUERIER, QUERY_FRONTEND};

/// What this process may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Resources {
    /// CPUs, a fraction where a quota says so. Above 0.
    pub(crate) cpus: f64,
    /// Memory that the process should stay below, in bytes.
    pub(crate) memory_bytes: u64,
    /// Whether a limit was set for this process; otherwise the memory is a share of the machine's.
    pub(crate) memory_is_limited: bool,
}

/// How much of each thing there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Threads of the async runtime.
    pub(crate) async_threads: usize,
    /// Workers of the dataflow.
    pub(crate) dataflow_workers: usize,
    /// Blocks encoded at the same time.
    pub(crate) block_encoders: usize,
    /// Bytes of requests between socket and WAL.
    pub(crate) ingest_bytes: u64,
    /// Bytes of live traces, batches and blocks being encoded.
    pub(crate) live_bytes: u64,
    /// Bytes that queries may hold.
    pub(crate) query_bytes: u64,
    /// Bytes of caches.
    pub(crate) cache_bytes: u64,
    /// Bytes that merges of blocks may hold.
    pub(crate) compactor_bytes: u64,
    /// Threads that merge blocks.
    pub(crate) compactor_threads: usize,
}

/// Share of the machine's memory that is taken when no limit is set: other processes live there too.
const UNLIMITED_SHARE: f64 = 0.5;
/// What is assumed when the machine does not tell.
const UNKNOWN_MEMORY: u64 = 2 << 30;

impl Sizes {
    /// The sizes for a configuration on given resources.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded numbers of threads")]
    pub(crate) fn new(resources: &Resources, config: &Config) -> Self {
        let cpus = resources.cpus.ceil().clamp(1.0, 1024.0) as usize;
        let memory = resources.memory_bytes;
        // Beside everything else, half of the CPUs are more than enough to keep up with what the others take in.
        let is_alone = config.target == COMPACTOR;
        Self {
            async_threads: config.threads.unwrap_or(cpus).clamp(1, 1024),
            dataflow_workers: config.dataflow.workers.unwrap_or((cpus / 2).max(1)).clamp(1, 256),
            block_encoders: (cpus / 2).clamp(1, config.ingester.concurrent_flushes),
            ingest_bytes: memory / 8,
            live_bytes: memory / 4,
            // Queries alone need no room for what comes in.
            query_bytes: if [QUERIER, QUERY_FRONTEND].contains(&config.target.as_str()) { memory / 2 } else { memory / 4 },
            cache_bytes: memory / 8,
            compactor_bytes: if is_alone { memory / 2 } else { memory / 8 },
            compactor_threads: if is_alone { cpus } else { (cpus / 2).max(1) },
        }
    }
}

/// Finds out what this process may use.
///
/// `root` is where `/proc` and `/sys` are; `env` reads variables; `machine_cpus` is the number of CPUs of the machine.
pub(crate) fn detect(root: &Path, env: &dyn Fn(&str) -> Option<String>, machine_cpus: usize, config: &Config) -> Resources {
    let read = |path: PathBuf| std::fs::read_to_string(root.join(path)).ok();
    let groups = read(PathBuf::from("proc/self/cgroup")).map_or_else(Vec::new, |text| parse_cgroups(&text));

    #[expect(clippy::cast_precision_loss, reason = "a number of CPUs")]
    let machine = machine_cpus.max(1) as f64;
    let quota = smallest(candidates(&groups, "cpu").into_iter().filter_map(|dir| {
        let v2 = read(dir.join("cpu.max")).and_then(|text| parse_cpu_max(&text));
        v2.or_else(|| parse_cfs(&read(dir.join("cpu.cfs_quota_us"))?, &read(dir.join("cpu.cfs_period_us"))?))
    }));
    let cpus = env("GOMAXPROCS").and_then(|text| text.trim().parse::<u32>().ok()).filter(|cpus| *cpus > 0).map(f64::from);
    let cpus = cpus.unwrap_or_else(|| quota.map_or(machine, |quota| quota.min(machine)));

    let host = read(PathBuf::from("proc/meminfo")).and_then(|text| parse_meminfo(&text)).unwrap_or(UNKNOWN_MEMORY);
    let limit = candidates(&groups, "memory").into_iter().filter_map(|dir| {
        let text = read(dir.join("memory.max")).or_else(|| read(dir.join("memory.limit_in_bytes")))?;
        parse_memory_limit(&text, host)
    });
    let limit = limit.min();
    let share = |bytes: u64, ratio: f64| {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of memory, to a few bytes"
        )]
        let bytes = (bytes as f64 * ratio) as u64;
        bytes
    };
    let written = config.memory_limit.or_else(|| env("GOMEMLIMIT").and_then(|text| parse_go_memory_limit(&text)));
    let (memory, limited) = match (written, limit) {
        (Some(written), _) => (written, true),
        (None, Some(limit)) => (share(limit, config.memory_ratio), true),
        (None, None) => (share(host, UNLIMITED_SHARE), false),
    };
    // Below this nothing useful fits; the budgets stay above zero.
    Resources { cpus: cpus.max(0.01), memory_bytes: memory.max(16 << 20), memory_is_limited: limited }
}

/// The folders that may hold limits of a controller: the cgroup's own and its ancestors', and the mount's root (what a container sees as its own).
fn candidates(groups: &[(Vec<String>, String)], controller: &str) -> Vec<PathBuf> {
    let mounts: &[&str] = if controller == "cpu" { &["cpu", "cpu,cpuacct"] } else { &["memory"] };
    let mut dirs = Vec::new();
    let mut add = |mount: PathBuf, path: &str| {
        let mut path = path.trim_matches('/');
        loop {
            dirs.push(mount.join(path));
            match path.rsplit_once('/') {
                Some((parent, _)) => path = parent,
                None if path.is_empty() => break,
                None => path = "",
            }
        }
    };
    let base = PathBuf::from("sys/fs/cgroup");
    for (controllers, path) in groups {
        if path.split('/').any(|part| part == "..") {
            continue;
        }
        if controllers.is_empty() {
            add(base.clone(), path);
        } else if controllers.iter().any(|name| name == controller) {
            mounts.iter().for_each(|mount| add(base.join(mount), path));
        }
    }
    if groups.is_empty() {
        add(base.clone(), "");
        mounts.iter().for_each(|mount| add(base.join(mount), ""));
    }
    dirs
}

/// `/proc/self/cgroup`: controllers (none for version 2) and path.
fn parse_cgroups(text: &str) -> Vec<(Vec<String>, String)> {
    let parse = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = parts.next()?.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Some((controllers, parts.next()?.to_owned()))
    };
    text.lines().filter_map(parse).collect()
}

/// cgroup v2 `cpu.max`: `max 100000` or `150000 100000`.
fn parse_cpu_max(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    parse_cfs(quota, period)
}

/// cgroup v1 quota and period in microseconds; a negative quota is none.
fn parse_cfs(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (f64, f64) = (quota.trim().parse().ok()?, period.trim().parse().ok()?);
    (quota > 0.0 && period > 0.0 && quota.is_finite()).then(|| quota / period)
}

/// `memory.max` or `memory.limit_in_bytes`: none when it is `max` or not below the machine's memory.
fn parse_memory_limit(text: &str, host: u64) -> Option<u64> {
    text.trim().parse().ok().filter(|limit| *limit > 0 && *limit < host)
}

/// Bytes of memory of the machine, from `/proc/meminfo`.
fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Go's `GOMEMLIMIT`: bytes, or with B, KiB, MiB, GiB, TiB; `off` is none.
fn parse_go_memory_limit(text: &str) -> Option<u64> {
    let text = text.trim();
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("B", 0)];
    let (digits, shift) = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift))).unwrap_or((text, 0));
    digits.parse::<u64>().ok()?.checked_mul(1 << shift).filter(|bytes| *bytes > 0 && *bytes < i64::MAX as u64)
}

fn smallest(values: impl Iterator<Item = f64>) -> Option<f64> {
    values.fold(None, |least: Option<f64>, value| Some(least.map_or(value, |least| least.min(value))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Request};

    fn config() -> Config {
        config::load(&Request::default(), &|_| None).expect("the embedded defaults are right")
    }

    /// Detects in a root with these files, on a machine of 8 CPUs.
    fn run(files: &[(&str, &str)], env: &[(&str, &str)]) -> Resources {
        let root = tempfile::tempdir().expect("a temporary folder");
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("the folder is writable");
            std::fs::write(path, text).expect("the folder is writable");
        }
        let env = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        detect(root.path(), &env, 8, &config())
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:       16384000 kB\nMemFree: 1 kB\n");

    #[test]
    fn cgroup_v2_in_a_container() {
        let files = [
            MEMINFO,
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/memory.max", "1073741824\n"),
        ];
        assert_eq!(run(&files, &[]), Resources { cpus: 1.5, memory_bytes: 858_993_459, memory_is_limited: true });
    }

    #[test]
    fn cgroup_v2_the_smallest_ancestor_counts() {
        let files = [
            MEMINFO,
            ("proc/self/cgroup", "0::/kubepods/pod1/c1\n"),
            ("sys/fs/cgroup/kubepods/pod1/c1/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/kubepods/pod1/cpu.max", "200000 100000\n"),
            ("sys/fs/cgroup/kubepods/pod1/c1/memory.max", "max\n"),
            ("sys/fs/cgroup/kubepods/memory.max", "2000000000\n"),
        ];
        assert_eq!(run(&files, &[]), Resources { cpus: 2.0, memory_bytes: 1_600_000_000, memory_is_limited: true });
    }

    #[test]
    fn cgroup_v1() {
        let files = [
            MEMINFO,
            ("proc/self/cgroup", "11:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/docker/x\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "500000000\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(run(&files, &[]), Resources { cpus: 0.5, memory_bytes: 400_000_000, memory_is_limited: true });
    }

    #[test]
    fn no_limits_and_no_files() {
        assert_eq!(run(&[MEMINFO], &[]), Resources { cpus: 8.0, memory_bytes: 16_384_000 * 512, memory_is_limited: false });
        assert_eq!(run(&[], &[]), Resources { cpus: 8.0, memory_bytes: 1 << 30, memory_is_limited: false });
        let nonsense =
            [("proc/self/cgroup", "0::/../../x\nnonsense\n"), ("sys/fs/cgroup/cpu.max", "0 0\n"), ("sys/fs/cgroup/memory.max", "-5\n")];
        assert_eq!(run(&nonsense, &[("GOMAXPROCS", "-2"), ("GOMEMLIMIT", "lots")]).cpus, 8.0);
    }

    #[test]
    fn variables_of_go() {
        let resources = run(&[MEMINFO], &[("GOMAXPROCS", "3"), ("GOMEMLIMIT", "750MiB")]);
        assert_eq!(resources, Resources { cpus: 3.0, memory_bytes: 750 << 20, memory_is_limited: true });
        for (text, expected) in
            [("1000", Some(1000)), ("2GiB", Some(2 << 30)), ("5B", Some(5)), ("off", None), ("99999999TiB", None), ("-1", None)]
        {
            assert_eq!(parse_go_memory_limit(text), expected, "{text}");
        }
    }

    #[test]
    fn sizes_follow() {
        let sizes = |cpus: f64| Sizes::new(&Resources { cpus, memory_bytes: 800, memory_is_limited: true }, &config());
        assert_eq!((sizes(0.5).async_threads, sizes(0.5).dataflow_workers, sizes(0.5).block_encoders), (1, 1, 1));
        assert_eq!((sizes(7.2).async_threads, sizes(7.2).dataflow_workers, sizes(7.2).block_encoders), (8, 4, 4));
        assert_eq!((sizes(2.0).ingest_bytes, sizes(2.0).live_bytes, sizes(2.0).query_bytes), (100, 200, 200));
    }
}
