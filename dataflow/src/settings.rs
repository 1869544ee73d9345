//! What may be tuned. Plain data; the binary fills it from the configuration.

use std::time::Duration;

/// Settings of the dataflow.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Timely worker threads of this process.
    pub workers: usize,
    /// Length of a tick. Shorter costs more progress traffic, longer delays cuts.
    pub tick: Duration,
    /// A trace without a new span for this long is cut (`ingester.trace_idle_period`).
    pub trace_idle_period: Duration,
    /// A trace is cut this long after its first span even if it still grows (`ingester.trace_live_period`).
    pub trace_live_period: Duration,
    /// A trace is cut when its spans reach this many bytes.
    pub max_trace_live_bytes: usize,
    /// Identities of spans are remembered this long after their trace was cut, so that late replicas and repeats are dropped.
    pub duplicate_window: Duration,
    /// A block is cut when the OTLP bytes waiting for it reach this many (over all workers of the process, per tenant).
    pub max_block_bytes: usize,
    /// A block is cut when its first trace has waited this long (`ingester.max_block_duration`).
    pub max_block_duration: Duration,
    /// Ticks that may be fed beyond the slowest operator.
    pub window: u64,
    /// Bytes of spans that this process may hold in live traces, batches and uploads. Beyond, reading the log pauses.
    pub resident_bytes: usize,
    /// Commits are attempted this often.
    pub checkpoint_interval: Duration,
    /// Without new blocks, a commit is made at most this often: it saves reading at the next start and disk until then, and publishes
    /// the metrics-generator's series.
    pub commit_interval: Duration,
    /// In a cluster: blocks that hold spans of a member's log are remembered while that log may come back, at most this long after it was
    /// last read.
    pub absent_log_window: Duration,
    /// A series of the metrics-generator ends after this long without an observation (`metrics_generator.registry.stale_duration`).
    pub stale_duration: Duration,
    /// Blocks encoded at the same time.
    pub encoders: usize,
    /// Answers about recent data name the blocks that were committed this lately, so that whoever asks need not have heard of them: longer
    /// than anybody's list of blocks may be old.
    pub published_window: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workers: 1,
            tick: Duration::from_millis(250),
            trace_idle_period: Duration::from_secs(5),
            trace_live_period: Duration::from_secs(30),
            max_trace_live_bytes: 8 << 20,
            duplicate_window: Duration::from_secs(60),
            max_block_bytes: 32 << 20,
            max_block_duration: Duration::from_secs(30 * 60),
            window: 8,
            resident_bytes: 160 << 20,
            checkpoint_interval: Duration::from_secs(1),
            commit_interval: Duration::from_secs(5),
            absent_log_window: Duration::from_secs(24 * 60 * 60),
            stale_duration: Duration::from_secs(15 * 60),
            encoders: 1,
            published_window: Duration::from_secs(20 * 60),
        }
    }
}
