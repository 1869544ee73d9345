//! `rubato load`: sends realistic traces to any OTLP endpoint, measures, and knows exactly what was acknowledged.
//!
//! ```text
//!  producer thread: synthetic::Requests ──paced──► bounded channel ──► n requests in flight ──► endpoint
//!                                                                              │ acknowledged, refused or unknown
//!                                                       Ledger (exact truth) ◄─┘──► Statistics (rate, latency, errors)
//!                                                          │
//!                                              --truth FILE, --verify URL (reads the traces back and compares)
//! ```
//!
//! Spans are encoded straight to the wire and ahead of time, so that the tool takes little of the machine that it shares with the
//! server; what it takes is reported apart. At most `--concurrency` requests are in flight and as many wait. A request that was
//! refused in a way that allows it is sent again after the time that the server asks for, or with a growing pause if it names none.
//!
//! A request is *acknowledged* when the endpoint said so, *refused* when the endpoint said that it did not take it, and *unknown* when
//! the connection broke before an answer: the spans may or may not be stored. The process fails if a request was given up or if
//! `--verify` finds an acknowledged span missing or doubled.

mod endpoint;
mod latency;
mod ledger;
mod statistics;
mod verify;

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use storage::{
    clock::{Clock as _, SystemClock},
    synthetic::{Request, Requests, Settings},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use self::{
    endpoint::{Compression, Endpoint, Failure, Protocol},
    ledger::Ledger,
    statistics::Statistics,
};

/// Sends realistic traces to an OTLP endpoint and measures how it takes them
#[derive(Debug, clap::Args)]
pub(crate) struct Command {
    /// Where to send: scheme, host and port; for HTTP the path `/v1/traces` is added unless there is one
    #[arg(long, default_value = "http://127.0.0.1:4317")]
    endpoint: String,
    /// OTLP transport; by default HTTP for port 4318 or an endpoint with a path, else gRPC
    #[arg(long, value_enum)]
    protocol: Option<Protocol>,
    /// Spans per second; 0 sends as fast as the endpoint takes them
    #[arg(long, default_value_t = 10_000)]
    rate: u64,
    /// For how long to send, such as 30s or 5m
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    duration: Duration,
    /// Send at least this many spans, for however long that takes, instead of for a duration
    #[arg(long)]
    spans: Option<u64>,
    /// Requests in flight
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    /// Spans per request
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// Mean number of spans per trace
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    spans_per_trace: u32,
    /// The same seed sends the same traces; by default each run sends others
    #[arg(long)]
    seed: Option<u64>,
    /// Sent as `X-Scope-OrgID`
    #[arg(long)]
    tenant: Option<String>,
    /// Compression of the requests
    #[arg(long, value_enum, default_value_t = Compression::None)]
    compression: Compression,
    /// For how long to try a request again before giving it up
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    retry_for: Duration,
    /// Give up on an answer after this long
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
    /// Write to this file, as JSON, what was acknowledged
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
    /// Afterwards read traces back through the query API at this address, such as http://127.0.0.1:3200
    #[arg(long, value_name = "URL")]
    verify: Option<String>,
    /// How many of the acknowledged traces to read back, spread evenly; 0 reads all
    #[arg(long, default_value_t = 1000)]
    verify_traces: usize,
    /// For how long to wait until acknowledged spans can be read
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    verify_for: Duration,
}

/// Runs the command.
///
/// # Errors
/// The endpoint cannot be used, requests were given up, or acknowledged spans are missing or doubled.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    let seed = command.seed.unwrap_or_else(|| SystemClock.now().as_nanos() as u64);
    let endpoint = Endpoint::new(
        &command.endpoint,
        command.protocol,
        command.compression,
        command.tenant.as_deref(),
        command.timeout,
        usize::from(command.concurrency).div_ceil(4),
    )?;
    let bar = progress_bar(&command);
    bar.println(format!("sending to {} by {}, seed {seed}", command.endpoint, endpoint.protocol()));

    let stop = Arc::new(AtomicBool::new(false));
    let interrupted = tokio::spawn(stop_on_interrupt(Arc::clone(&stop)));
    let started = Instant::now();
    let cpu_before = statistics::own_cpu();
    let requests = produce(&command, seed, &stop);

    let mut ledger = Ledger::new();
    let mut statistics = Statistics::new();
    let sends = requests.map(|request| send(&endpoint, request, command.retry_for));
    let mut outcomes = std::pin::pin!(sends.buffer_unordered(usize::from(command.concurrency)));
    while let Some(outcome) = outcomes.next().await {
        statistics.record(&outcome);
        ledger.record(&outcome);
        bar.set_position(match command.spans {
            Some(_) => ledger.acknowledged().spans,
            None => started.elapsed().as_millis() as u64,
        });
        bar.set_message(statistics.line(started.elapsed()));
    }
    interrupted.abort();
    let elapsed = started.elapsed();
    statistics.own_cpu = statistics::own_cpu().zip(cpu_before).map(|(after, before)| after.saturating_sub(before));
    bar.finish_and_clear();

    let mut out = std::io::stdout().lock();
    statistics.print(&mut out, &ledger, elapsed).context("cannot print the report")?;
    drop(out);
    if let Some(path) = &command.truth {
        let file = std::fs::File::create(path).with_context(|| format!("cannot create \"{}\"", path.display()))?;
        let mut file = std::io::BufWriter::new(file);
        serde_json::to_writer(&mut file, &ledger.truth(seed, elapsed)).with_context(|| format!("cannot write \"{}\"", path.display()))?;
        file.flush().with_context(|| format!("cannot write \"{}\"", path.display()))?;
    }
    if let Some(url) = &command.verify {
        let settings = verify::Settings { traces: command.verify_traces, patience: command.verify_for, timeout: command.timeout };
        let outcome = verify::verify(url, command.tenant.as_deref(), &ledger, &settings).await?;
        writeln!(std::io::stdout(), "{outcome}").context("cannot print the report")?;
        if !outcome.is_good() {
            bail!("acknowledged spans are not as they were sent");
        }
    }
    if statistics.given_up > 0 {
        bail!("{} requests were given up", statistics.given_up);
    }
    if ledger.acknowledged().spans == 0 {
        bail!("no span was acknowledged");
    }
    Ok(())
}

/// What became of a request.
#[derive(Debug)]
struct Outcome {
    request: Request,
    /// Of the attempt that was acknowledged.
    latency: Option<Duration>,
    /// Every attempt that failed.
    failures: Vec<Failure>,
}

impl Outcome {
    fn is_acknowledged(&self) -> bool {
        self.latency.is_some()
    }

    /// Whether some attempt may have been taken though nobody said so.
    fn is_unknown(&self) -> bool {
        !self.is_acknowledged() && self.failures.iter().any(|failure| failure.maybe_taken)
    }
}

async fn send(endpoint: &Endpoint, request: Request, retry_for: Duration) -> Outcome {
    let first = Instant::now();
    let mut outcome = Outcome { request, latency: None, failures: Vec::new() };
    let mut pause = Duration::from_millis(100);
    loop {
        let started = Instant::now();
        match endpoint.send(outcome.request.body.clone()).await {
            Ok(()) => {
                outcome.latency = Some(started.elapsed());
                return outcome;
            }
            Err(failure) => {
                let wait = failure.retry_after.unwrap_or(pause);
                let again = failure.retryable && first.elapsed() + wait < retry_for;
                outcome.failures.push(failure);
                if !again {
                    return outcome;
                }
                tokio::time::sleep(wait).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
        }
    }
}

/// Starts the thread that generates requests, at the pace asked for. It ends by itself, also when the receiver is dropped.
fn produce(command: &Command, seed: u64, stop: &Arc<AtomicBool>) -> ReceiverStream<Request> {
    let settings = Settings {
        seed,
        base_time_ns: SystemClock.now().as_nanos() as u64,
        trace_interval_ns: 1_000_000_000 * u64::from(command.spans_per_trace) / command.rate.max(1).max(10_000),
        spans_per_trace: command.spans_per_trace as usize,
        spans_per_request: command.batch as usize,
        ..Settings::default()
    };
    let (sender, receiver) = mpsc::channel(usize::from(command.concurrency));
    let (rate, spans, duration) = (command.rate, command.spans, command.duration);
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let mut requests = Requests::new(settings, None);
        let started = Instant::now();
        let mut produced = 0;
        loop {
            let enough = match spans {
                Some(spans) => produced >= spans,
                None => started.elapsed() >= duration,
            };
            if enough || stop.load(Ordering::Relaxed) {
                // Traces of which some spans were sent are completed.
                requests.stop();
            }
            requests.set_time(SystemClock.now().as_nanos() as u64);
            let Some(request) = requests.next() else { return };
            produced += request.spans as u64;
            if sender.blocking_send(request).is_err() {
                return;
            }
            if rate > 0 {
                let due = Duration::from_nanos((u128::from(produced) * 1_000_000_000 / u128::from(rate)) as u64);
                std::thread::sleep(due.saturating_sub(started.elapsed()));
            }
        }
    });
    ReceiverStream::new(receiver)
}

async fn stop_on_interrupt(stop: Arc<AtomicBool>) {
    if tokio::signal::ctrl_c().await.is_ok() {
        stop.store(true, Ordering::Relaxed);
    }
}

fn progress_bar(command: &Command) -> ProgressBar {
    let length = command.spans.unwrap_or(command.duration.as_millis() as u64);
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(length) } else { ProgressBar::hidden() };
    let template = "{elapsed_precise} [{wide_bar}] {percent:>3}% {msg}";
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Reads `300ms`, `30s`, `5m`, `1h` and sums of them such as `1m30s`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is not a duration such as 300ms, 30s, 5m or 1h30m");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u32 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let each = match &rest[..unit] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(wrong()),
        };
        total = each.checked_mul(number).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = &rest[unit..];
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_in_the_configuration() {
        assert_eq!(parse_duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(parse_duration("1h30m5s"), Ok(Duration::from_secs(5405)));
        for wrong in ["", "5", "s", "5d", "-1s", "1s 2s", "99999999999s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
