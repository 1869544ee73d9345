//! Scalars of the configuration language: how each kind is read, and how it is printed again.
//!
//! Two duration languages live side by side, as in Tempo: Go's (`1h30m`, a bare integer is nanoseconds) and Prometheus' (`1d12h`). Both are
//! kept as nanoseconds; the kind decides how they are printed.

use std::fmt::Write as _;

use super::{Settings, schema::Kind};

/// A value of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// Nothing.
    Null,
    /// A boolean.
    Bool(bool),
    /// A signed integer.
    Int(i64),
    /// An unsigned integer, or bytes.
    Uint(u64),
    /// A number.
    Float(f64),
    /// Text.
    Text(String),
    /// Nanoseconds.
    Duration(i64),
    /// A list.
    List(Vec<Value>),
    /// A map in written order.
    Map(Vec<(String, Value)>),
    /// A block of a list of blocks.
    Block(Box<Settings>),
}

/// Reads a scalar of a kind. `plain` says that the text wasn't quoted.
///
/// # Errors
/// What is wrong, for a message that names the key.
pub(crate) fn parse(kind: Kind, text: &str, plain: bool) -> Result<Value, String> {
    let cannot = || format!("cannot unmarshal {} `{text}` into {}", tag(text, plain), kind.name());
    match kind {
        Kind::Bool | Kind::OptionalBool => boolean(text).filter(|_| plain).map(Value::Bool).ok_or_else(cannot),
        Kind::Int => integer(text).filter(|_| plain).and_then(|n| i64::try_from(n).ok()).map(Value::Int).ok_or_else(cannot),
        Kind::Uint => integer(text).filter(|_| plain).and_then(|n| u64::try_from(n).ok()).map(Value::Uint).ok_or_else(cannot),
        Kind::Float => number(text).filter(|_| plain).map(Value::Float).ok_or_else(cannot),
        Kind::Text | Kind::Secret => Ok(Value::Text(text.to_owned())),
        Kind::Duration | Kind::OptionalDuration => duration(text).map(Value::Duration),
        Kind::PromDuration => prom_duration(text).map(Value::Duration),
        Kind::Size => size(text).map(Value::Uint),
        Kind::Level => match text {
            "debug" | "info" | "warn" | "error" => Ok(Value::Text(text.to_owned())),
            _ => Err(format!("unrecognized log level \"{text}\" (one of debug, info, warn, error)")),
        },
        Kind::Time if is_time(text) => Ok(Value::Text(text.to_owned())),
        Kind::Time => Err(format!("cannot parse `{text}` as a time of the form 2006-01-02T15:04:05Z")),
        Kind::Csv => Ok(Value::List(split(text).map(|item| Value::Text(item.to_owned())).collect())),
        Kind::Any => Ok(resolve(text, plain)),
        Kind::Strings | Kind::Floats | Kind::TextMap | Kind::BoolMap | Kind::List(_) | Kind::Include(_) | Kind::Set => Err(cannot()),
    }
}

/// Reads the default of a row: as [`parse`], and lists are comma-separated.
pub(crate) fn parse_default(kind: Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::OptionalBool | Kind::OptionalDuration | Kind::Any if text.is_empty() => Ok(Value::Null),
        Kind::Duration if text == "infinite" => Ok(Value::Duration(i64::MAX)),
        Kind::Strings => Ok(Value::List(split(text).map(|item| Value::Text(item.to_owned())).collect())),
        Kind::Floats => {
            let numbers: Option<Vec<_>> = split(text).map(|item| number(item).map(Value::Float)).collect();
            numbers.map(Value::List).ok_or_else(|| format!("`{text}` is no list of numbers"))
        }
        Kind::TextMap | Kind::BoolMap => Ok(Value::Map(Vec::new())),
        Kind::List(_) => Ok(Value::List(Vec::new())),
        Kind::Text if text == "${HOSTNAME}" => Ok(Value::Text(hostname())),
        _ => parse(kind, text, true),
    }
}

/// The zero value of a kind: what a key that a tenant's entry leaves out means.
pub(crate) fn zero(kind: Kind) -> Value {
    match kind {
        Kind::Bool => Value::Bool(false),
        Kind::Int => Value::Int(0),
        Kind::Uint | Kind::Size => Value::Uint(0),
        Kind::Float => Value::Float(0.0),
        Kind::Text | Kind::Secret | Kind::Level | Kind::Time => Value::Text(String::new()),
        Kind::Duration | Kind::PromDuration => Value::Duration(0),
        Kind::Csv | Kind::Strings | Kind::Floats | Kind::List(_) => Value::List(Vec::new()),
        Kind::TextMap | Kind::BoolMap => Value::Map(Vec::new()),
        Kind::OptionalBool | Kind::OptionalDuration | Kind::Any | Kind::Include(_) | Kind::Set => Value::Null,
    }
}

/// Whether a plain scalar means null.
pub(crate) fn is_null(text: &str, plain: bool) -> bool {
    plain && matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// The YAML tag of a scalar, for messages.
fn tag(text: &str, plain: bool) -> &'static str {
    match resolve(text, plain) {
        Value::Null => "!!null",
        Value::Bool(_) => "!!bool",
        Value::Int(_) | Value::Uint(_) => "!!int",
        Value::Float(_) => "!!float",
        _ => "!!str",
    }
}

/// What a scalar is when nothing says what it should be.
pub(crate) fn resolve(text: &str, plain: bool) -> Value {
    if !plain {
        return Value::Text(text.to_owned());
    }
    if is_null(text, plain) {
        return Value::Null;
    }
    if let ("true" | "True" | "TRUE" | "false" | "False" | "FALSE", Some(value)) = (text, boolean(text)) {
        return Value::Bool(value);
    }
    if text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.')) {
        if let Some(value) = whole(text).and_then(|n| i64::try_from(n).ok()) {
            return Value::Int(value);
        }
        if let Some(value) = number(text) {
            return Value::Float(value);
        }
    }
    Value::Text(text.to_owned())
}

/// YAML 1.1 booleans.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => Some(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => Some(false),
        _ => None,
    }
}

/// Integers of YAML 1.1: decimal, 0x, 0o and leading 0, 0b, underscores.
fn whole(text: &str) -> Option<i128> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if digits.starts_with('_') || digits.starts_with('+') || digits.starts_with('-') {
        return None;
    }
    let digits = digits.replace('_', "");
    let parsed = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => i128::from_str_radix(&digits[2..], 16),
        [b'0', b'o' | b'O', ..] => i128::from_str_radix(&digits[2..], 8),
        [b'0', b'b' | b'B', ..] => i128::from_str_radix(&digits[2..], 2),
        [b'0', _, ..] if digits.bytes().all(|digit| digit.is_ascii_digit()) => i128::from_str_radix(&digits[1..], 8),
        _ => digits.parse(),
    };
    parsed.ok().map(|value| if negative { -value } else { value })
}

/// An integer, or a float literal cut to one.
fn integer(text: &str) -> Option<i128> {
    whole(text).or_else(|| {
        let value = number(text)?.trunc();
        #[expect(clippy::cast_possible_truncation, reason = "bounded on the line before")]
        (value.abs() < 1e19).then_some(value as i128)
    })
}

fn number(text: &str) -> Option<f64> {
    match text {
        ".inf" | "+.inf" | ".Inf" => Some(f64::INFINITY),
        "-.inf" | "-.Inf" => Some(f64::NEG_INFINITY),
        ".nan" | ".NaN" => Some(f64::NAN),
        _ if text.bytes().any(|byte| byte.is_ascii_digit()) && !text.contains(['i', 'n', 'I', 'N']) =>
        {
            #[expect(clippy::cast_precision_loss, reason = "a float key given as an integer")]
            text.replace('_', "").parse().ok().or_else(|| whole(text).map(|value| value as f64))
        }
        _ => None,
    }
}

/// Items of a comma-separated string, trimmed, without empty ones.
pub(crate) fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

const GO_UNITS: &[(&str, f64)] = &[("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// A Go duration in nanoseconds: `1h30m`, `-1.5s`, `0`, or a bare integer of nanoseconds.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn duration(text: &str) -> Result<i64, String> {
    let invalid = |why: &str| format!("invalid duration \"{text}\"{why}");
    if let Some(nanos) = whole(text) {
        return i64::try_from(nanos).map_err(|_| invalid(": out of range"));
    }
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest.is_empty() {
        return Err(invalid(""));
    }
    // Whole parts are summed as integers: a float holds only 53 bits of nanoseconds.
    let (mut nanos, mut fractions) = (0_i128, 0.0);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(|| invalid(": missing unit"))?;
        let (amount, tail) = rest.split_at(end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let Some((_, scale)) = GO_UNITS.iter().find(|(name, _)| *name == unit) else {
            let hint = if matches!(unit, "d" | "w" | "y") { " (write days as hours: 24h)" } else { "" };
            return Err(invalid(&format!(": unknown unit \"{unit}\"{hint}")));
        };
        #[expect(clippy::cast_possible_truncation, reason = "the scales are whole numbers below 2^53")]
        match amount.parse::<i128>() {
            Ok(whole) => {
                nanos =
                    whole.checked_mul(*scale as i128).and_then(|part| nanos.checked_add(part)).ok_or_else(|| invalid(": out of range"))?
            }
            Err(_) => fractions += amount.parse::<f64>().map_err(|_| invalid(""))? * scale,
        }
        rest = tail;
    }
    #[expect(clippy::cast_possible_truncation, reason = "saturates, and the sum is checked")]
    let nanos = nanos.saturating_add((fractions + 0.5).floor() as i128);
    i64::try_from(if sign < 0.0 { -nanos } else { nanos }).map_err(|_| invalid(": out of range"))
}

const PROM_UNITS: &[(&str, i128)] = &[
    ("y", 365 * 86_400_000_000_000),
    ("w", 7 * 86_400_000_000_000),
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
];

/// A Prometheus duration in nanoseconds: `1y2w3d4h5m6s7ms` in that order, integers only, or `0`.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn prom_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("not a valid duration string: \"{text}\"");
    if text == "0" {
        return Ok(0);
    }
    let (mut rest, mut nanos, mut from) = (text, 0_i128, 0);
    if rest.is_empty() {
        return Err("empty duration string".to_owned());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
        let (amount, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let index = PROM_UNITS.iter().position(|(name, _)| *name == unit).filter(|index| *index >= from).ok_or_else(invalid)?;
        let amount: i128 = amount.parse().map_err(|_| invalid())?;
        nanos = amount.checked_mul(PROM_UNITS[index].1).and_then(|part| nanos.checked_add(part)).ok_or_else(invalid)?;
        (from, rest) = (index + 1, tail);
    }
    i64::try_from(nanos).map_err(|_| "duration out of range".to_owned())
}

const SIZE_UNITS: &[(&str, u64)] =
    &[("EiB", 1 << 60), ("PiB", 1 << 50), ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Bytes with base-2 units: `63KiB1023B`, `16MiB`, `1.5GiB`, `0B`. Also the short `16Mi` and `16MB`, both base 2.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let invalid = |why: &str| format!("invalid size \"{text}\": {why}");
    let (mut rest, mut bytes) = (text, 0_u64);
    if rest.is_empty() {
        return Err(invalid("empty"));
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(|| invalid("a unit is required, such as 16MiB"))?;
        let (amount, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let long = match unit {
            "B" => "B".to_owned(),
            _ if unit.ends_with("iB") => unit.to_owned(),
            _ => format!("{}iB", unit.trim_end_matches(['B', 'i'])),
        };
        let scale = SIZE_UNITS.iter().find(|(name, _)| *name == long).ok_or_else(|| invalid(&format!("unknown unit \"{unit}\"")))?.1;
        let part = match amount.parse::<u64>() {
            Ok(amount) => amount.checked_mul(scale),
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a fraction of a unit; bounded"
            )]
            Err(_) => {
                amount.parse::<f64>().ok().map(|amount| amount * scale as f64).filter(|bytes| *bytes < 1e19).map(|bytes| bytes as u64)
            }
        };
        bytes = part.and_then(|part| bytes.checked_add(part)).ok_or_else(|| invalid("out of range"))?;
        rest = tail;
    }
    Ok(bytes)
}

/// Prints nanoseconds as Go does: `1h30m0s`, `250ms`, `0s`.
pub(crate) fn format_duration(nanos: i64) -> String {
    let total = nanos.unsigned_abs();
    let mut out = String::from(if nanos < 0 { "-" } else { "" });
    let sub = |value: u64, scale: u64, unit: &str| {
        let fraction = format!("{:0width$}", value % scale, width = scale.ilog10() as usize);
        let fraction = fraction.trim_end_matches('0');
        let dot = if fraction.is_empty() { "" } else { "." };
        format!("{}{dot}{fraction}{unit}", value / scale)
    };
    match total {
        0 => out.push_str("0s"),
        1..1_000 => _ = write!(out, "{total}ns"),
        1_000..1_000_000 => out.push_str(&sub(total, 1_000, "µs")),
        1_000_000..1_000_000_000 => out.push_str(&sub(total, 1_000_000, "ms")),
        _ => {
            let (minutes, rest) = (total / 60_000_000_000, total % 60_000_000_000);
            if minutes >= 60 {
                _ = write!(out, "{}h", minutes / 60);
            }
            if minutes > 0 {
                _ = write!(out, "{}m", minutes % 60);
            }
            let seconds = if rest == 0 { "0s".to_owned() } else { sub(rest, 1_000_000_000, "s") };
            out.push_str(&seconds);
        }
    }
    out
}

/// Prints nanoseconds as Prometheus does: `1d12h`, `0s`. Below a millisecond nothing is left.
pub(crate) fn format_prom_duration(nanos: i64) -> String {
    let mut rest = i128::from(nanos).max(0);
    let mut out = String::new();
    for (unit, scale) in PROM_UNITS {
        // Prometheus prints years and weeks only when nothing is left below them.
        let exact_only = matches!(*unit, "y" | "w");
        if rest >= *scale && !(exact_only && rest % scale != 0) {
            _ = write!(out, "{}{unit}", rest / scale);
            rest %= scale;
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

/// Prints bytes with base-2 units: `63KiB1023B`.
pub(crate) fn format_size(mut bytes: u64) -> String {
    let mut out = String::new();
    for (unit, scale) in SIZE_UNITS {
        if bytes >= *scale {
            _ = write!(out, "{}{unit}", bytes / scale);
            bytes %= scale;
        }
    }
    if out.is_empty() { "0B".to_owned() } else { out }
}

/// `2006-01-02T15:04:05Z`, with fractions or an offset.
fn is_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    let shape = b"dddd-dd-ddTdd:dd:dd";
    bytes.len() > shape.len()
        && bytes.iter().zip(shape).all(|(byte, shape)| if *shape == b'd' { byte.is_ascii_digit() } else { byte == shape })
        && (text.ends_with('Z') || text[shape.len()..].contains(['+', '-']))
}

/// The name of this machine, `localhost` when it has none.
fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".to_owned() } else { name.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations() {
        for (text, nanos, printed) in [
            ("300ms", 300_000_000, "300ms"),
            ("1.5h", 5_400_000_000_000, "1h30m0s"),
            ("2h45m", 9_900_000_000_000, "2h45m0s"),
            ("0", 0, "0s"),
            ("30", 30, "30ns"),
            ("-5s", -5_000_000_000, "-5s"),
            ("1us", 1_000, "1µs"),
            ("1500us", 1_500_000, "1.5ms"),
            ("1m1.25s", 61_250_000_000, "1m1.25s"),
            ("2562047h47m16.854775807s", i64::MAX, "2562047h47m16.854775807s"),
        ] {
            assert_eq!(duration(text), Ok(nanos), "{text}");
            assert_eq!(format_duration(nanos), printed);
        }
        assert_eq!(duration("5d"), Err("invalid duration \"5d\": unknown unit \"d\" (write days as hours: 24h)".to_owned()));
        for text in ["", "-", "1", "s", "1x", "1.2.3s", "9999999999h", "1s2"] {
            assert!(duration(text).is_err() || text == "1", "{text}");
        }
    }

    #[test]
    fn prometheus_durations() {
        for (text, seconds, printed) in
            [("1d12h", 129_600, "1d12h"), ("2w", 1_209_600, "2w"), ("0", 0, "0s"), ("90m", 5400, "1h30m"), ("1y", 31_536_000, "1y")]
        {
            assert_eq!(prom_duration(text), Ok(seconds * 1_000_000_000), "{text}");
            assert_eq!(format_prom_duration(seconds * 1_000_000_000), printed);
        }
        for text in ["", "5", "1.5h", "1m1h", "-5s", "1ns", "99999999999y"] {
            assert!(prom_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes, printed) in [
            ("63KiB1023B", 65_535, "63KiB1023B"),
            ("16MiB", 16 << 20, "16MiB"),
            ("0B", 0, "0B"),
            ("1.5GiB", 3 << 29, "1GiB512MiB"),
            ("2Gi", 2 << 30, "2GiB"),
            ("4MB", 4 << 20, "4MiB"),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
            assert_eq!(format_size(bytes), printed);
        }
        for text in ["", "5", "5XiB", "99999EiB", "KiB", "B"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn integers_are_those_of_yaml_1_1() {
        for (text, expected) in
            [("5_000", 5000), ("0x10", 16), ("0o17", 15), ("017", 15), ("0b101", 5), ("50e5", 5_000_000), ("-3", -3), ("2.9", 2)]
        {
            assert_eq!(parse(Kind::Int, text, true), Ok(Value::Int(expected)), "{text}");
        }
        assert_eq!(parse(Kind::Uint, "-3", true), Err("cannot unmarshal !!int `-3` into uint".to_owned()));
        assert_eq!(parse(Kind::Int, "5", false), Err("cannot unmarshal !!str `5` into int".to_owned()));
        assert_eq!(parse(Kind::Int, "1e30", true), Err("cannot unmarshal !!float `1e30` into int".to_owned()));
        assert_eq!(parse(Kind::Bool, "1", true), Err("cannot unmarshal !!int `1` into bool".to_owned()));
        for (text, expected) in [("yes", true), ("On", true), ("off", false), ("NO", false)] {
            assert_eq!(parse(Kind::Bool, text, true), Ok(Value::Bool(expected)));
        }
    }

    #[test]
    fn strange_scalars_are_errors_and_not_panics() {
        for text in ["-", "+", "_", "0x", "0b", "0o", ".", "-.", "é", "1é", "-é", "0é", "+-1", "1__", "١"] {
            for kind in
                [Kind::Int, Kind::Uint, Kind::Float, Kind::Duration, Kind::PromDuration, Kind::Size, Kind::Time, Kind::Any, Kind::Level]
            {
                _ = parse(kind, text, true);
            }
        }
    }
}
