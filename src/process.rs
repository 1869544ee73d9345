//! The process as a thing to watch: `process_*` metrics from `/proc/self`, build facts, and the signals that end it.

use std::{fs, path::PathBuf, time::Duration};

use prometheus::{
    Gauge, GaugeVec, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use tokio::signal::unix::{SignalKind, signal};

/// The release of Tempo that the API is compatible with.
pub(crate) const COMPATIBLE_VERSION: &str = "2.10.8";
/// Our own release.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that this binary was built from, as the build was told.
pub(crate) fn revision() -> &'static str {
    option_env!("RUBATO_REVISION").unwrap_or("unknown")
}

/// The branch that this binary was built from, as the build was told.
pub(crate) fn branch() -> &'static str {
    option_env!("RUBATO_BRANCH").unwrap_or("unknown")
}

/// The text of `-version` and `/status/version`.
pub(crate) fn version_text() -> String {
    format!(
        "tempo, version {COMPATIBLE_VERSION} (branch: {}, revision: {})\n  build user:       \n  build date:       \n  rubato version:   {VERSION}\n  platform:         {}/{}\n",
        branch(),
        revision(),
        std::env::consts::OS,
        std::env::consts::ARCH,
    )
}

/// Waits for SIGINT or SIGTERM.
///
/// # Errors
/// The system refuses the handlers.
pub(crate) async fn stop_signal() -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Registers `tempo_build_info` and the `process_*` metrics. `started` is the time since the Unix epoch.
///
/// # Errors
/// A metric of the same name exists.
pub(crate) fn register(registry: &Registry, started: Duration) -> prometheus::Result<()> {
    let labels = ["branch", "goarch", "goos", "goversion", "revision", "tags", "version"];
    let build = GaugeVec::new(Opts::new("tempo_build_info", "Where this binary comes from; always 1."), &labels)?;
    build.with_label_values(&[branch(), std::env::consts::ARCH, std::env::consts::OS, "", revision(), "", COMPATIBLE_VERSION]).set(1.0);
    registry.register(Box::new(build))?;
    registry.register(Box::new(ProcessCollector::new(PathBuf::from("/proc/self"), started)?))
}

/// What `/proc/self` says, read when it is asked for.
#[derive(Debug, Default, PartialEq)]
struct Usage {
    cpu_seconds: f64,
    resident_bytes: f64,
    virtual_bytes: f64,
    anonymous_bytes: f64,
    threads: f64,
    open_files: f64,
    max_files: f64,
}

/// Clock ticks per second of `/proc/self/stat`: 100 on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

impl Usage {
    fn read(proc: &std::path::Path) -> Usage {
        let text = |name: &str| fs::read_to_string(proc.join(name)).unwrap_or_default();
        let mut usage = Usage::parse(&text("stat"), &text("status"), &text("limits"));
        #[expect(clippy::cast_precision_loss, reason = "a number of files")]
        let open = fs::read_dir(proc.join("fd")).map_or(0.0, |entries| entries.count() as f64);
        usage.open_files = open;
        usage
    }

    fn parse(stat: &str, status: &str, limits: &str) -> Usage {
        // The command in parentheses may hold spaces; the fields after it are counted from the state, field 3.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or(Vec::new(), |(_, rest)| rest.split_whitespace().collect());
        let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim_start_matches(':').split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) * 1024.0
        };
        let max_files = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        Usage {
            cpu_seconds: (field(14) + field(15)) / TICKS_PER_SECOND,
            resident_bytes: kib("VmRSS"),
            virtual_bytes: kib("VmSize"),
            anonymous_bytes: kib("RssAnon"),
            threads: field(20),
            open_files: 0.0,
            max_files: max_files.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0.0),
        }
    }
}

#[derive(Debug)]
struct ProcessCollector {
    proc: PathBuf,
    gauges: [Gauge; 8],
}

impl ProcessCollector {
    fn new(proc: PathBuf, started: Duration) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| Gauge::with_opts(Opts::new(name, help));
        let gauges = [
            gauge("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.")?,
            gauge("process_resident_memory_bytes", "Resident memory size in bytes.")?,
            gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.")?,
            gauge("go_memstats_heap_inuse_bytes", "Anonymous resident memory in bytes: what the allocator holds.")?,
            gauge("process_threads", "Number of OS threads.")?,
            gauge("process_open_fds", "Number of open file descriptors.")?,
            gauge("process_max_fds", "Maximum number of open file descriptors.")?,
            gauge("process_start_time_seconds", "Start time of the process since the Unix epoch in seconds.")?,
        ];
        gauges[7].set(started.as_secs_f64());
        Ok(Self { proc, gauges })
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges.iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let usage = Usage::read(&self.proc);
        let values = [
            usage.cpu_seconds,
            usage.resident_bytes,
            usage.virtual_bytes,
            usage.anonymous_bytes,
            usage.threads,
            usage.open_files,
            usage.max_files,
        ];
        for (gauge, value) in self.gauges.iter().zip(values) {
            gauge.set(value);
        }
        let mut families: Vec<MetricFamily> = self.gauges.iter().flat_map(Collector::collect).collect();
        // The time spent only grows: a counter, whose value the system keeps.
        if let Some(family) = families.first_mut() {
            let value = family.get_metric().first().map_or(0.0, |metric| metric.get_gauge().get_value());
            family.set_field_type(prometheus::proto::MetricType::COUNTER);
            for metric in family.mut_metric() {
                let mut counter = prometheus::proto::Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
        }
        families
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_from_the_files() {
        let stat = "12 (a ) b) S 1 2 3 4 5 6 7 8 9 10 250 150 0 0 20 0 9 0 100 1000 10\n";
        let status = "Name:\tx\nVmSize:\t    2048 kB\nVmRSS:\t    1024 kB\nRssAnon:\t     512 kB\n";
        let limits = "Limit  Soft  Hard  Units\nMax open files            1048576              1048576              files\n";
        let usage = Usage::parse(stat, status, limits);
        assert_eq!(
            usage,
            Usage {
                cpu_seconds: 4.0,
                resident_bytes: 1_048_576.0,
                virtual_bytes: 2_097_152.0,
                anonymous_bytes: 524_288.0,
                threads: 9.0,
                open_files: 0.0,
                max_files: 1_048_576.0
            }
        );
        assert_eq!(Usage::parse("", "", ""), Usage::default());
    }

    #[test]
    fn metrics_of_this_process() {
        let registry = Registry::new();
        register(&registry, Duration::from_secs(5)).expect("an empty registry");
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
        assert!(text.contains("# TYPE process_cpu_seconds_total counter\n"), "{text}");
        assert!(text.contains("process_start_time_seconds 5\n"), "{text}");
        assert!(text.contains("tempo_build_info{"), "{text}");
        let resident = text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes ")).expect("the metric");
        assert!(resident.parse::<f64>().expect("a number") > 1e6);
    }
}
