//! The keys below `compactor` and `rubato.compactor`.
//!
//! The latter are Rubato's own: `min_input_blocks`, `max_input_blocks` and `max_compaction_level` as Tempo 3.0 names them;
//! `max_small_input_blocks` in place of `max_input_blocks` as long as the inputs are no more than `small_bytes` (0: never); a job of level 0
//! that could still grow waits `patience_cycles` times `compaction_cycle`, and four times longer on each further level (0: never); `jobs` at
//! the same time (0: decided by CPUs and memory); a claim of another compactor is given up for it after `claim_timeout`; unfinished uploads stay for
//! `garbage_age`.

use std::time::Duration;

use storage::compactor;

use super::Settings;

/// Compaction and retention.
#[derive(Clone, Debug)]
pub(crate) struct Compactor {
    /// Blocks are neither compacted nor deleted by this process.
    pub(crate) disabled: bool,
    /// Everything but what depends on the machine and on other keys.
    pub(crate) settings: compactor::Settings,
    /// Jobs at the same time; none is decided by CPUs and memory.
    pub(crate) jobs: Option<usize>,
}

/// Reads them.
pub(super) fn compactor(s: &Settings) -> Compactor {
    let tempo = |key: &str| format!("compactor.compaction.{key}");
    let ours = |key: &str| format!("rubato.compactor.{key}");
    let count = |path: String| s.count(&path);
    let nonzero = |duration: Duration, default: Duration| if duration.is_zero() { default } else { duration };
    let defaults = compactor::Settings::default();
    let cycle = s.duration(&tempo("compaction_cycle"));
    let patience = u32::try_from(s.number(&ours("patience_cycles"))).unwrap_or(u32::MAX);
    let selection = compactor::Selection {
        window: nonzero(s.duration(&tempo("compaction_window")), defaults.selection.window),
        max_objects: s.number(&tempo("max_compaction_objects")),
        max_bytes: s.number(&tempo("max_block_bytes")),
        min_inputs: count(ours("min_input_blocks")),
        max_inputs: count(ours("max_input_blocks")),
        max_level: u32::try_from(s.number(&ours("max_compaction_level"))).unwrap_or(u32::MAX),
        small_bytes: s.number(&ours("small_bytes")),
        max_small_inputs: count(ours("max_small_input_blocks")),
        patience: cycle.saturating_mul(patience),
    };
    let concurrency = count(tempo("retention_concurrency"));
    let settings = compactor::Settings {
        selection,
        // A cycle of nothing at all would list and plan without end.
        cycle: cycle.max(Duration::from_millis(100)),
        max_time_per_tenant: s.duration(&tempo("max_time_per_tenant")),
        block_retention: s.duration(&tempo("block_retention")),
        compacted_block_retention: s.duration(&tempo("compacted_block_retention")),
        retention_concurrency: if concurrency == 0 { defaults.retention_concurrency } else { concurrency },
        retention_interval: nonzero(s.duration("storage.trace.blocklist_poll"), defaults.retention_interval),
        claim_timeout: s.duration(&ours("claim_timeout")),
        garbage_age: s.duration(&ours("garbage_age")),
        // Two processes of one host differ by their ports.
        instance: format!("{}:{}", s.text("compactor.ring.instance_id"), s.number("server.http_listen_port")),
        ..defaults
    };
    Compactor { disabled: s.flag("compactor.disabled"), settings, jobs: Some(count(ours("jobs"))).filter(|jobs| *jobs > 0) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Request, parse};

    #[test]
    fn every_key_arrives() {
        let text = "
compactor:
  disabled: true
  ring: {instance_id: c-1}
  compaction: {compaction_window: 30m, max_compaction_objects: 7, max_block_bytes: 8, block_retention: 3h, compacted_block_retention: 15m,
    retention_concurrency: 0, max_time_per_tenant: 1m, compaction_cycle: 10s}
rubato:
  compactor: {min_input_blocks: 3, max_input_blocks: 5, max_compaction_level: 6, small_bytes: 1MiB, max_small_input_blocks: 9,
    patience_cycles: 2, jobs: 4, claim_timeout: 5m, garbage_age: 1h}
overrides: {defaults: {compaction: {block_retention: 1h, compaction_window: 5m, compaction_disabled: true}}}
";
        let config = parse(text, &Request::default()).expect("right keys");
        assert_eq!(config.unused_keys(), [""; 0]);
        let (compactor, minutes) = (&config.compactor, |minutes: u64| Duration::from_secs(minutes * 60));
        assert!(compactor.disabled);
        assert_eq!(compactor.jobs, Some(4));
        let settings = &compactor.settings;
        let selection = &settings.selection;
        assert_eq!((selection.window, selection.max_objects, selection.max_bytes), (minutes(30), 7, 8));
        assert_eq!((selection.min_inputs, selection.max_inputs, selection.max_level), (3, 5, 6));
        assert_eq!((selection.small_bytes, selection.max_small_inputs, selection.patience), (1 << 20, 9, Duration::from_secs(20)));
        assert_eq!((settings.block_retention, settings.compacted_block_retention), (minutes(180), minutes(15)));
        assert_eq!(
            (settings.retention_concurrency, settings.max_time_per_tenant, settings.cycle),
            (10, minutes(1), Duration::from_secs(10))
        );
        assert_eq!((settings.claim_timeout, settings.garbage_age, settings.instance.as_str()), (minutes(5), minutes(60), "c-1:3200"));
        let limits = &config.overrides.defaults;
        assert_eq!((limits.block_retention, limits.compaction_window, limits.compaction_disabled), (minutes(60), minutes(5), true));
    }
}
