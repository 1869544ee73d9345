//! Durations as Tempo's API reads and shows them: Go's text form (`1m30s`, `1.5s`) and Prometheus' (`1d12h`).

use std::time::Duration;

/// Go's text form of a number of nanoseconds: `0s`, `1.5s`, `1h0m0s`, `-3ms`.
pub(crate) fn to_go(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let total = nanoseconds.unsigned_abs();
    let fraction = |whole: u64, digits: usize, value: u64| {
        let text = format!("{value:0digits$}");
        match text.trim_end_matches('0') {
            "" => whole.to_string(),
            rest => format!("{whole}.{rest}"),
        }
    };
    match total {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{total}ns"),
        1_000..1_000_000 => format!("{sign}{}µs", fraction(total / 1_000, 3, total % 1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", fraction(total / 1_000_000, 6, total % 1_000_000)),
        _ => {
            let (minutes, rest) = (total / 60_000_000_000, total % 60_000_000_000);
            let seconds = fraction(rest / 1_000_000_000, 9, rest % 1_000_000_000);
            match minutes {
                0 => format!("{sign}{seconds}s"),
                1..60 => format!("{sign}{minutes}m{seconds}s"),
                _ => format!("{sign}{}h{}m{seconds}s", minutes / 60, minutes % 60),
            }
        }
    }
}

/// Reads a Go duration that is not negative.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse_go(text: &str) -> Result<Duration, String> {
    let invalid = || format!("invalid duration {text:?}");
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(number_end);
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        total += number
            * match unit {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                "" => return Err(format!("missing unit in duration {text:?}")),
                unit => return Err(format!("unknown unit {unit:?} in duration {text:?}")),
            };
        rest = after;
    }
    if total >= 9.223_372_036_854_775e18 {
        return Err(invalid());
    }
    Ok(Duration::from_nanos(total as u64))
}

/// Reads a Prometheus duration: integers with the units `y w d h m s ms`, each at most once and in this order.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse_prometheus(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 7] =
        [("y", 31_536_000_000), ("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
    let invalid = || format!("not a valid duration string: {text:?}");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.is_empty() {
        return Err("empty duration string".to_owned());
    }
    let mut allowed = UNITS.as_slice();
    let mut rest = text;
    let mut milliseconds = 0u64;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
        let (number, after) = rest.split_at(number_end);
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let position = allowed.iter().position(|(name, _)| *name == unit).ok_or_else(invalid)?;
        let (_, size) = allowed[position];
        allowed = &allowed[position + 1..];
        milliseconds = number.checked_mul(size).and_then(|part| milliseconds.checked_add(part)).ok_or("duration out of range")?;
        rest = after;
    }
    // The range of Go's durations.
    if milliseconds > 9_223_372_036_854 {
        return Err("duration out of range".to_owned());
    }
    Ok(Duration::from_millis(milliseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_shown_as_go_does() {
        for (nanoseconds, text) in [
            (0, "0s"),
            (7, "7ns"),
            (1_500, "1.5µs"),
            (3_000_000, "3ms"),
            (1_500_000_000, "1.5s"),
            (100_000_000_000, "1m40s"),
            (604_800_000_000_000, "168h0m0s"),
            (-2_000_000, "-2ms"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(to_go(nanoseconds), text);
        }
    }

    #[test]
    fn go_durations_are_read() {
        for (text, milliseconds) in [("100ms", 100), ("1m30s", 90_000), ("1.5h", 5_400_000), ("0", 0), ("+2s", 2_000), (".5s", 500)] {
            assert_eq!(parse_go(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "5", "-5s", "1d", "s", "1..5s", "9999999h", "é"] {
            assert!(parse_go(text).is_err(), "{text}");
        }
    }

    #[test]
    fn prometheus_durations_are_read() {
        for (text, seconds) in [("1h", 3_600), ("1d12h", 129_600), ("2w", 1_209_600), ("0", 0)] {
            assert_eq!(parse_prometheus(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "1", "1.5h", "1h1d", "1h1h", "-1h", "300y", "99999999999999999999s", "h", "é"] {
            assert!(parse_prometheus(text).is_err(), "{text}");
        }
    }
}
