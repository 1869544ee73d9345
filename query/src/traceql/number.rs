//! Numbers and durations as Go writes and reads them.

/// Nanoseconds of the units that only Prometheus' durations have.
const DAY: i128 = 24 * HOUR;
const HOUR: i128 = 60 * MINUTE;
const MINUTE: i128 = 60 * SECOND;
const SECOND: i128 = 1_000_000_000;
const MILLISECOND: i128 = 1_000_000;

/// The extent of a number at the beginning of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    /// Its bytes.
    pub(super) length: usize,
    /// Whether it has a point or an exponent.
    pub(super) is_float: bool,
}

/// Finds where the number ends that `text` begins with, by the rules of Go's scanner.
pub(super) fn scan(text: &str) -> Result<Scanned, String> {
    let bytes = text.as_bytes();
    let byte = |index: usize| bytes.get(index).copied().unwrap_or_default();
    let mut index = 0;
    let mut radix: u32 = 10;
    if byte(0) == b'0' {
        radix = match byte(1) | 0x20 {
            b'x' => 16,
            b'o' => 8,
            b'b' => 2,
            _ => 10,
        };
        if radix != 10 {
            index = 2;
        }
    }
    let is_digit = |b: u8| b == b'_' || if radix == 16 { b.is_ascii_hexdigit() } else { b.is_ascii_digit() };
    let mut is_float = false;
    while is_digit(byte(index)) {
        index += 1;
    }
    if byte(index) == b'.' && matches!(radix, 10 | 16) {
        is_float = true;
        index += 1;
        while is_digit(byte(index)) {
            index += 1;
        }
    }
    let exponent = byte(index) | 0x20;
    if (radix == 10 && exponent == b'e') || (radix == 16 && exponent == b'p') {
        is_float = true;
        index += 1;
        if matches!(byte(index), b'+' | b'-') {
            index += 1;
        }
        if !byte(index).is_ascii_digit() {
            return Err("exponent has no digits".to_owned());
        }
        while byte(index).is_ascii_digit() {
            index += 1;
        }
    } else if radix == 16 && is_float {
        return Err("hexadecimal float without p exponent".to_owned());
    }
    Ok(Scanned { length: index, is_float })
}

/// Reads a decimal integer.
pub(super) fn parse_int(text: &str) -> Result<i64, String> {
    if text.len() > 1 && text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()) && text.bytes().any(|b| b > b'7') {
        return Err(format!("invalid digit in octal number {text}"));
    }
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("integer {text} is not decimal"));
    }
    text.parse().map_err(|_| format!("integer {text} is out of range"))
}

/// Reads a float, decimal or hexadecimal.
pub(super) fn parse_float(text: &str) -> Result<f64, String> {
    let value = if text.starts_with("0x") || text.starts_with("0X") {
        parse_hex_float(&text[2..])
    } else if text.contains('_') {
        None
    } else {
        text.parse().ok()
    };
    match value {
        Some(value) if f64::is_finite(value) => Ok(value),
        Some(_) => Err(format!("float {text} is out of range")),
        None => Err(format!("invalid float {text}")),
    }
}

fn parse_hex_float(text: &str) -> Option<f64> {
    let (mantissa, exponent) = text.split_once(['p', 'P'])?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    // Sixteen digits are more than a double holds.
    let digits: String = whole.chars().chain(fraction.chars()).collect();
    let significant = digits.trim_start_matches('0');
    if digits.is_empty() || significant.len() > 16 {
        return None;
    }
    let value = if significant.is_empty() { 0 } else { u64::from_str_radix(significant, 16).ok()? };
    let exponent: i32 = exponent.parse().ok()?;
    let shift = exponent.checked_sub(i32::try_from(fraction.len()).ok()?.checked_mul(4)?)?;
    Some(value as f64 * 2f64.powi(shift))
}

/// Reads a duration: Prometheus' form first, then Go's. `None` when it is neither or out of range.
pub(super) fn parse_duration(text: &str) -> Option<i64> {
    if text.is_empty() {
        return None;
    }
    parse_prometheus_duration(text).or_else(|| parse_go_duration(text))
}

fn parse_prometheus_duration(text: &str) -> Option<i64> {
    let mut units =
        [("y", 365 * DAY), ("w", 7 * DAY), ("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND), ("ms", MILLISECOND)].into_iter();
    let mut rest = text;
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let (amount, unit, tail) = split_part(rest)?;
        let amount: i64 = amount.parse().ok()?;
        let (_, size) = units.find(|(name, _)| *name == unit)?;
        total = total.checked_add(i128::from(amount) * size)?;
        rest = tail;
    }
    i64::try_from(total).ok()
}

fn parse_go_duration(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let (amount, unit, tail) = split_part(rest)?;
        let size = match unit {
            "h" => HOUR,
            "m" => MINUTE,
            "s" => SECOND,
            "ms" => MILLISECOND,
            "us" | "µs" => 1000,
            "ns" => 1,
            _ => return None,
        };
        let (whole, fraction) = amount.split_once('.').unwrap_or((amount, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(i128::from(whole) * size)?;
        // More digits than a nanosecond of an hour has do not count.
        let kept = &fraction[..fraction.len().min(15)];
        if !kept.is_empty() {
            let digits: i128 = kept.parse().ok()?;
            total = total.checked_add(digits * size / 10i128.pow(kept.len() as u32))?;
        }
        rest = tail;
    }
    i64::try_from(total).ok()
}

/// Splits `1.5h30m` into `1.5`, `h`, `30m`.
fn split_part(text: &str) -> Option<(&str, &str, &str)> {
    let amount_end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).filter(|end| *end > 0)?;
    let (amount, rest) = text.split_at(amount_end);
    let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
    let (unit, tail) = rest.split_at(unit_end);
    Some((amount, unit, tail))
}

/// Writes nanoseconds as Go does: `1h0m0s`, `1.5s`, `100ms`, `0s`.
pub(super) fn format_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let total = nanos.unsigned_abs();
    let with_fraction = |unit: u64, width: usize| {
        let whole = total / unit;
        let fraction = format!("{:0width$}", total % unit);
        match fraction.trim_end_matches('0') {
            "" => whole.to_string(),
            digits => format!("{whole}.{digits}"),
        }
    };
    match total {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{total}ns"),
        1_000..1_000_000 => format!("{sign}{}µs", with_fraction(1_000, 3)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", with_fraction(1_000_000, 6)),
        _ => {
            let minutes = total / 60_000_000_000;
            let rest = total % 60_000_000_000;
            let fraction = format!("{:09}", rest % 1_000_000_000);
            let seconds = match fraction.trim_end_matches('0') {
                "" => (rest / 1_000_000_000).to_string(),
                digits => format!("{}.{digits}", rest / 1_000_000_000),
            };
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

/// Writes a float in Go's shortest `%g` form: with an exponent below 1e-4 and from 1e6 on.
pub(super) fn format_float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..6).contains(&exponent) {
        format!("{value}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_go_does() {
        for (value, text) in
            [(0.5, "0.5"), (20.0, "20"), (1e9, "1e+09"), (123_456.5, "123456.5"), (3e-7, "3e-07"), (1e100, "1e+100"), (-0.0001, "-0.0001")]
        {
            assert_eq!(format_float(value), text);
        }
    }

    #[test]
    fn durations_are_written_as_go_does() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (100_000_000, "100ms"),
            (1_500_000_000, "1.5s"),
            (-100_000_000_000, "-1m40s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(format_duration(nanos), text);
            assert_eq!(parse_duration(text.trim_start_matches('-')), Some(nanos.abs()));
        }
    }

    #[test]
    fn durations_are_prometheus_or_go() {
        for good in ["1d12h", "1w2d", "1.5s", ".5s", "30m1h", "1s1s", "1ns1us", "100000h"] {
            assert!(parse_duration(good).is_some(), "{good}");
        }
        for bad in ["1.5d", "1d1.5h", "1M", "1min", "1sec", "1m30", "1e3s", "300y", "1μs", "", "1", ".s"] {
            assert!(parse_duration(bad).is_none(), "{bad}");
        }
    }
}
