//! Log lines on stderr: logfmt or JSON, in Tempo's order of fields.
//!
//! `level=info ts=2025-01-02T03:04:05.678901234Z caller=rubato::app:133 msg="Starting Rubato" target=all`
//!
//! One event is one line is one write. The message is `msg`; an error field is `err` by convention of the call sites.

use std::{
    fmt::{self, Debug, Write as _},
    time::Duration,
};

use storage::clock::{Clock as _, SystemClock};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    Layer as _,
    filter::Targets,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

/// Our crates, whose events follow the configured level. Libraries are heard from warnings on.
const CRATES: &[&str] = &["rubato", "dataflow", "ingest", "query", "storage"];

/// Starts logging, for the rest of the process. A second call has no effect.
pub(crate) fn init(level: &str, json: bool) {
    let level = match level {
        "debug" => LevelFilter::DEBUG,
        "warn" => LevelFilter::WARN,
        "error" => LevelFilter::ERROR,
        _ => LevelFilter::INFO,
    };
    let filter = Targets::new().with_default(level.min(LevelFilter::WARN)).with_targets(CRATES.iter().map(|name| (*name, level)));
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).event_format(Lines { json }).with_filter(filter);
    // A subscriber is there already in tests that start logging twice; theirs stays.
    _ = tracing_subscriber::registry().with(layer).try_init();
}

/// Formats an event as a line.
struct Lines {
    json: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let caller = format!("{}:{}", metadata.module_path().unwrap_or(metadata.target()), metadata.line().unwrap_or(0));
        let line = line(self.json, *metadata.level(), SystemClock.now(), &caller, &fields.0);
        writer.write_str(&line)
    }
}

/// A field's value: text is quoted where needed, everything else is printed as it is.
#[derive(Debug, PartialEq)]
enum Shown {
    Text(String),
    Literal(String),
}

#[derive(Default)]
struct Fields(Vec<(&'static str, Shown)>);

impl Fields {
    fn push(&mut self, field: &Field, value: Shown) {
        // The message of a `tracing` macro has this name; it goes before the fields.
        if field.name() == "message" { self.0.insert(0, ("msg", value)) } else { self.0.push((field.name(), value)) }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.push(field, Shown::Text(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, Shown::Text(value.to_owned()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            _ = write!(text, ": {error}");
            cause = error.source();
        }
        self.push(field, Shown::Text(text));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, Shown::Literal(value.to_string()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, Shown::Literal(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, Shown::Literal(value.to_string()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        let finite = if value.is_finite() { Shown::Literal(value.to_string()) } else { Shown::Text(value.to_string()) };
        self.push(field, finite);
    }
}

fn line(json: bool, level: Level, now: Duration, caller: &str, fields: &[(&str, Shown)]) -> String {
    let level = match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        _ => "debug",
    };
    let ts = timestamp(now);
    let mut out = String::new();
    if json {
        _ = write!(out, "{{\"level\":\"{level}\",\"ts\":\"{ts}\",\"caller\":{}", quoted(caller));
        for (name, value) in fields {
            let value = match value {
                Shown::Text(text) => quoted(text),
                Shown::Literal(text) => text.clone(),
            };
            _ = write!(out, ",{}:{value}", quoted(name));
        }
        out.push('}');
    } else {
        _ = write!(out, "level={level} ts={ts} caller={caller}");
        for (name, value) in fields {
            match value {
                Shown::Text(text)
                    if text.is_empty() || text.chars().any(|c| c <= ' ' || matches!(c, '=' | '"' | '\u{7f}' | '\u{fffd}')) =>
                {
                    _ = write!(out, " {name}={}", quoted(text));
                }
                Shown::Text(text) | Shown::Literal(text) => _ = write!(out, " {name}={text}"),
            }
        }
    }
    out.push('\n');
    out
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A time since the Unix epoch as RFC 3339 in UTC, nanoseconds with trailing zeros cut.
pub(crate) fn timestamp(since_epoch: Duration) -> String {
    let (year, month, day) = date(since_epoch.as_secs() / 86_400);
    let second = since_epoch.as_secs() % 86_400;
    let mut out = format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60);
    if since_epoch.subsec_nanos() > 0 {
        let fraction = format!(".{:09}", since_epoch.subsec_nanos());
        out.push_str(fraction.trim_end_matches('0'));
    }
    out.push('Z');
    out
}

/// Year, month and day of a number of days since 1970-01-01: whole 400-year cycles first, the year beginning in March so that the leap day is its last.
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (cycle, day_of_cycle) = (shifted / 146_097, shifted % 146_097);
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (cycle * 400 + year_of_cycle + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps() {
        for (seconds, nanos, expected) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_400, 0, "2000-02-29T00:00:00Z"),
            (1_735_787_045, 678_901_234, "2025-01-02T03:04:05.678901234Z"),
            (1_735_689_599, 500_000_000, "2024-12-31T23:59:59.5Z"),
            (4_107_542_400, 10, "2100-03-01T00:00:00.00000001Z"),
        ] {
            assert_eq!(timestamp(Duration::new(seconds, nanos)), expected);
        }
    }

    #[test]
    fn lines() {
        let fields = [
            ("msg", Shown::Text("Starting Tempo".to_owned())),
            ("target", Shown::Text("all".to_owned())),
            ("n", Shown::Literal("5".to_owned())),
            ("err", Shown::Text("a \"b\"\n=".to_owned())),
            ("empty", Shown::Text(String::new())),
        ];
        assert_eq!(
            line(false, Level::INFO, Duration::ZERO, "rubato::app:1", &fields),
            "level=info ts=1970-01-01T00:00:00Z caller=rubato::app:1 msg=\"Starting Tempo\" target=all n=5 err=\"a \\\"b\\\"\\n=\" empty=\"\"\n"
        );
        let json = line(true, Level::WARN, Duration::ZERO, "rubato::app:1", &fields);
        let parsed: serde_json::Value = serde_json::from_str(&json).expect("a JSON object");
        assert_eq!((parsed["level"].as_str(), parsed["n"].as_i64(), parsed["err"].as_str()), (Some("warn"), Some(5), Some("a \"b\"\n=")));
        assert_eq!(json.matches('\n').count(), 1);
    }

    #[test]
    fn an_event_is_formatted_with_its_fields_in_order() {
        use std::sync::{Arc, Mutex};
        #[derive(Clone, Default)]
        struct Sink(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Sink {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().expect("one thread").extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let sink = Sink::default();
        let writer = sink.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).event_format(Lines { json: false });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let error = std::io::Error::other("disk on fire");
            tracing::warn!(tenant = "a b", count = 3, err = &error as &dyn std::error::Error, "it {}", "happened");
        });
        let text = String::from_utf8(sink.0.lock().expect("one thread").clone()).expect("text");
        assert!(text.starts_with("level=warn ts=20"), "{text}");
        assert!(text.ends_with(" msg=\"it happened\" tenant=\"a b\" count=3 err=\"disk on fire\"\n"), "{text}");
        assert!(text.contains(" caller=rubato::logging::tests:"), "{text}");
    }
}
