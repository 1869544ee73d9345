//! Limits by tenant at run time: the per-tenant file, re-read while the process runs.
//!
//! ```text
//!  file ──every period──► expand, parse, check, validate ──ok──► new table (swapped in at once), metric = 1
//!                                                   └─error──► the last good table stays, metric = 0
//!  limits(tenant): exact name ──► "*" ──► defaults
//!                  and over them what the tenant has set for itself, if it may
//! ```
//!
//! A tenant's entry replaces all defaults; nothing is merged, but what tenants set for themselves is. An error at start is fatal, later ones are not.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus::{GaugeVec, Opts, Registry};
use sha2::{Digest as _, Sha256};

use super::{
    check::check,
    document::{self, Data, Node, Problem},
    expand,
    generator::Generator,
    limits::{self, Limits},
    render_problems, schema,
    settings::Settings,
};

/// Where per-tenant limits come from.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The limits of tenants without an entry.
    pub(crate) defaults: Arc<Limits>,
    /// The file that they are in.
    pub(crate) settings: Settings,
    /// What tenants' overrides of the metrics-generator are over.
    pub(crate) generator: Arc<Generator>,
    /// The per-tenant file.
    pub(crate) file: Option<PathBuf>,
    /// How often it is read again.
    pub(crate) period: Duration,
    /// Whether environment variables are expanded in it.
    pub(crate) expand_env: bool,
}

/// A tenant's entry.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// What it means.
    pub(crate) limits: Arc<Limits>,
    /// What was written.
    pub(crate) settings: Settings,
}

/// All entries by tenant, `*` among them.
pub(crate) type Entries = BTreeMap<String, Entry>;

/// The limits of all tenants.
#[derive(Debug)]
pub(crate) struct Overrides {
    source: Source,
    entries: RwLock<Arc<Entries>>,
    /// What tenants have set for themselves, with the limits that follow.
    own: RwLock<Arc<Entries>>,
    /// Grows with every change of the entries.
    version: AtomicU64,
    metrics: Option<Metrics>,
}

#[derive(Debug)]
struct Metrics {
    successful: GaugeVec,
    hash: GaugeVec,
    overrides: GaugeVec,
}

impl Overrides {
    /// Reads the file, if there is one, and registers the metrics.
    ///
    /// # Errors
    /// A file that can't be read or is wrong.
    pub(crate) fn new(source: Source, registry: &Registry) -> anyhow::Result<Self> {
        let gauge = |name: &str, help: &str, labels: &[&str]| -> anyhow::Result<GaugeVec> {
            let gauge = GaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let defaults = gauge("tempo_limits_defaults", "Default limits of tenants.", &["limit_name"])?;
        for (name, value) in source.defaults.gauges() {
            defaults.with_label_values(&[name]).set(value);
        }
        let metrics = match &source.file {
            None => None,
            Some(_) => Some(Metrics {
                successful: gauge(
                    "tempo_runtime_config_last_reload_successful",
                    "Whether the last reload of the per-tenant file succeeded.",
                    &["config"],
                )?,
                hash: gauge("tempo_runtime_config_hash", "The per-tenant file that holds, as the label sha256.", &["config", "sha256"])?,
                overrides: gauge("tempo_limits_overrides", "Limits of tenants with an entry of their own.", &["limit_name", "user"])?,
            }),
        };
        let overrides = Self { source, entries: RwLock::default(), own: RwLock::default(), version: AtomicU64::new(0), metrics };
        overrides.reload().map_err(|why| anyhow::anyhow!("failed to load runtime config: {why}"))?;
        Ok(overrides)
    }

    /// The limits of a tenant.
    pub(crate) fn limits(&self, tenant: &str) -> Arc<Limits> {
        if let Some(own) = self.own().get(tenant) {
            return Arc::clone(&own.limits);
        }
        let entries = self.entries();
        let entry = entries.get(tenant).or_else(|| entries.get("*"));
        entry.map_or_else(|| Arc::clone(&self.source.defaults), |entry| Arc::clone(&entry.limits))
    }

    /// The entries that hold now.
    pub(crate) fn entries(&self) -> Arc<Entries> {
        Arc::clone(&self.entries.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What tenants have set for themselves.
    pub(crate) fn own(&self) -> Arc<Entries> {
        Arc::clone(&self.own.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces what tenants have set for themselves.
    pub(crate) fn set_own(&self, settings: impl IntoIterator<Item = (String, Settings)>) {
        let entries = self.entries();
        let entry = |(tenant, settings): (String, Settings)| {
            let runtime = entries.get(&tenant).or_else(|| entries.get("*")).map(|entry| &entry.settings);
            let limits = Limits::of_user(&settings, runtime, &self.source.settings, &self.source.generator);
            (tenant, Entry { limits: Arc::new(limits), settings })
        };
        let own: Entries = settings.into_iter().map(entry).collect();
        let is_changed = {
            let mut current = self.own.write().unwrap_or_else(PoisonError::into_inner);
            let is_changed = !current.iter().map(limits_of).eq(own.iter().map(limits_of));
            *current = Arc::new(own);
            is_changed
        };
        if is_changed {
            self.version.fetch_add(1, Ordering::Release);
        }
    }

    /// All that holds of what a tenant may set for itself, if it had set this.
    pub(crate) fn merged(&self, tenant: &str, own: &Settings) -> Settings {
        let entries = self.entries();
        let runtime = entries.get(tenant).or_else(|| entries.get("*")).map(|entry| &entry.settings);
        let mut merged = Settings::new(schema::user());
        for leaf in schema::user().leaves() {
            merged.set(&leaf.path, limits::of_user(own, runtime, &self.source.settings, &leaf.path), 0);
        }
        merged
    }

    /// Grows whenever limits have changed.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether there is a file, and how often it should be read.
    pub(crate) fn reload_period(&self) -> Option<Duration> {
        self.source.file.as_ref().map(|_| self.source.period.max(Duration::from_millis(10)))
    }

    /// Reads the file again. On an error the entries stay as they are.
    ///
    /// # Errors
    /// A file that can't be read or is wrong.
    pub(crate) fn reload(&self) -> Result<(), String> {
        let Some(path) = &self.source.file else { return Ok(()) };
        let read = || {
            let text = std::fs::read_to_string(path).map_err(|error| format!("failed to read {}: {error}", path.display()))?;
            let entries = parse(&text, self.source.expand_env, &self.source.generator, &|name| std::env::var(name).ok());
            Ok((entries.map_err(|why| format!("{}: {why}", path.display()))?, sha256(&text)))
        };
        let outcome: Result<(Entries, String), String> = read();
        if let Some(metrics) = &self.metrics {
            metrics.successful.with_label_values(&["overrides"]).set(if outcome.is_ok() { 1.0 } else { 0.0 });
        }
        let (entries, hash) = outcome?;
        if let Some(metrics) = &self.metrics {
            metrics.hash.reset();
            metrics.hash.with_label_values(&["overrides", hash.as_str()]).set(1.0);
            metrics.overrides.reset();
            for (tenant, entry) in &entries {
                for (name, value) in entry.limits.gauges() {
                    metrics.overrides.with_label_values(&[name, tenant.as_str()]).set(value);
                }
                if entry.limits.disable_collection {
                    metrics.overrides.with_label_values(&["metrics_generator_dry_run_enabled", tenant.as_str()]).set(1.0);
                }
            }
        }
        let is_changed = {
            let mut current = self.entries.write().unwrap_or_else(PoisonError::into_inner);
            let is_changed = !current.iter().map(limits_of).eq(entries.iter().map(limits_of));
            *current = Arc::new(entries);
            is_changed
        };
        if is_changed {
            self.version.fetch_add(1, Ordering::Release);
        }
        // They are over the entries.
        let own = self.own();
        self.set_own(own.iter().map(|(tenant, entry)| (tenant.clone(), entry.settings.clone())));
        Ok(())
    }
}

fn limits_of<'a>((tenant, entry): (&'a String, &'a Entry)) -> (&'a str, &'a Limits) {
    (tenant, &entry.limits)
}

/// Reads the text of a per-tenant file.
fn parse(text: &str, expand_env: bool, generator: &Generator, env: &dyn Fn(&str) -> Option<String>) -> Result<Entries, String> {
    let expanded =
        if expand_env { expand::expand(text, env).map_err(|why| format!("failed to expand env vars: {why}"))? } else { text.to_owned() };
    let failed = |problems: &[Problem]| format!("yaml: unmarshal errors:{}", render_problems(problems));
    let node = document::parse(&expanded).map_err(|problems| failed(&problems))?;
    let (mut entries, mut problems) = (Entries::new(), Vec::new());
    match node.as_ref().map(|node| &node.data) {
        None => {}
        Some(Data::Map(top)) => {
            for entry in top {
                match (&*entry.key, &entry.value) {
                    ("overrides", node) if node.is_null() => {}
                    ("overrides", Node { data: Data::Map(tenants), .. }) => {
                        for tenant in tenants {
                            let parsed = parse_entry(&tenant.key, &tenant.value, generator, &mut problems);
                            entries.insert(tenant.key.clone(), parsed);
                        }
                    }
                    ("overrides", node) => problems
                        .push(Problem::new(node.line, format!("cannot unmarshal {} into map of tenants (field overrides)", node.tag()))),
                    (key, _) => problems.push(Problem::new(
                        entry.line,
                        format!("field {key} not found in type per-tenant overrides (the only key is \"overrides\")"),
                    )),
                }
            }
        }
        Some(_) => problems.push(Problem::new(1, "cannot unmarshal the document into per-tenant overrides")),
    }
    problems.sort();
    if problems.is_empty() { Ok(entries) } else { Err(failed(&problems)) }
}

fn parse_entry(tenant: &str, node: &Node, generator: &Generator, problems: &mut Vec<Problem>) -> Entry {
    let name = format!("overrides.{tenant}");
    let mut checked = check(&schema::tenant(), Some(node), &name);
    problems.append(&mut checked.problems);
    let mut settings = checked.settings;
    limits::translate_legacy(&mut settings, "", "", problems);
    limits::validate(&settings, "", &name, problems);
    Entry { limits: Arc::new(Limits::entry(&settings, generator)), settings }
}

/// The hash of a text, in hexadecimal digits.
fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Result<Entries, String> {
        parse(text, true, &Generator::default(), &|name| (name == "RATE").then(|| "77".to_owned()))
    }

    #[test]
    fn an_entry_replaces_all_defaults() {
        let entries = entries("overrides:\n  a: {ingestion: {max_traces_per_user: 5}}\n  b:\n    ingestion_rate_limit_bytes: ${RATE}\n    max_search_duration: 1d\n  '*':\n")
            .expect("the file is right");
        let a = &entries["a"];
        assert_eq!((a.limits.max_traces_per_user, a.limits.rate_limit_bytes, a.limits.retry_info_enabled), (5, 0, false));
        let b = &entries["b"];
        assert_eq!((b.limits.rate_limit_bytes, b.limits.max_search_duration), (77, Duration::from_secs(86_400)));
        assert_eq!(entries["*"].limits.burst_size_bytes, 0);
    }

    #[test]
    fn mistakes() {
        let error = entries("overrides:\n  a: {ingestion: {rate_limit: 5}, max_bytes_per_trace: 1}\n  b: {metrics_generator: {processors: [spanmetrics]}}\nx: 1\n").expect_err("wrong");
        assert_eq!(
            error,
            "yaml: unmarshal errors:\n  line 2: field rate_limit not found in type overrides.a.ingestion\n  line 3: \
             overrides.b.metrics_generator.processors: unknown processor \"spanmetrics\" (one of service-graphs, span-metrics, span-metrics-count, \
             span-metrics-latency, span-metrics-size, local-blocks, host-info)\n  line 4: field x not found in type per-tenant overrides (the only key is \
             \"overrides\")"
        );
        let error = entries("overrides:\n  a:\n    ingestion: {rate_limit_bytes: 5}\n    max_bytes_per_trace: 1\n").expect_err("mixed");
        assert_eq!(
            error,
            "yaml: unmarshal errors:\n  line 4: field max_bytes_per_trace of the legacy overrides format cannot stand beside ingestion.rate_limit_bytes: \
             write global.max_bytes_per_trace"
        );
    }

    #[test]
    fn reload_keeps_the_last_good_file() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("overrides.yaml");
        let write = |text: &str| std::fs::write(&path, text).expect("the folder is writable");
        let registry = Registry::new();
        let generator = Arc::new(Generator::default());
        let settings = Settings::new(schema::file());
        let defaults = Arc::new(Limits::defaults(&settings, &generator));
        let source = Source { defaults, settings, generator, file: Some(path.clone()), period: Duration::from_secs(10), expand_env: false };

        assert!(Overrides::new(source.clone(), &Registry::new()).is_err(), "an error at start is fatal");
        write("overrides:\n  a: {ingestion: {rate_limit_bytes: 1}}\n");
        let overrides = Overrides::new(source, &registry).expect("the file is right");
        assert_eq!(overrides.limits("a").rate_limit_bytes, 1);
        assert_eq!(overrides.limits("b").rate_limit_bytes, 15_000_000);

        write("overrides:\n  a: {ingestion: {rate_limit_byte: 2}}\n");
        assert!(overrides.reload().is_err());
        assert_eq!(overrides.limits("a").rate_limit_bytes, 1);
        assert_eq!((successful(&registry), overrides.version()), (0.0, 1));
        write("overrides: {a: {ingestion: {rate_limit_bytes: 1}}} # the same\n");
        overrides.reload().expect("the file is right");
        assert_eq!(overrides.version(), 1, "nothing has changed");

        write("overrides:\n  a: {ingestion: {rate_limit_bytes: 2}}\n  '*': {ingestion: {rate_limit_bytes: 3}}\n");
        overrides.reload().expect("the file is right again");
        assert_eq!((overrides.limits("a").rate_limit_bytes, overrides.limits("b").rate_limit_bytes), (2, 3));
        assert_eq!((successful(&registry), overrides.version()), (1.0, 2));
        let families = registry.gather();
        let hash = families.iter().find(|family| family.name() == "tempo_runtime_config_hash").expect("registered");
        assert_eq!(hash.get_metric().len(), 1, "of the file that holds");
        assert_eq!(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    fn successful(registry: &Registry) -> f64 {
        let families = registry.gather();
        let family = families.iter().find(|family| family.name() == "tempo_runtime_config_last_reload_successful").expect("registered");
        family.get_metric()[0].get_gauge().get_value()
    }
}
