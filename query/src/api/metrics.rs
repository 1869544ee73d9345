//! `/api/metrics/query_range` and `/api/metrics/query`: their parameters, and the way to the engine.
//!
//! Times come in four forms: seconds or nanoseconds as integers, seconds as a decimal number, RFC 3339. Unlike in Tempo the newest 30 seconds
//! are not hidden by default: they are counted as far as there is data.

use std::{sync::Arc, time::Duration};

use axum::{extract::State, http::Uri, response::Response};
use futures::{StreamExt as _, stream::BoxStream};
use http::HeaderMap;

use super::{
    ApiSettings,
    answers::{Api, Asked, DIFFERENCES},
    error::ApiError,
    format::{JSON, with_type},
    json::ToJson as _,
    params::{self, Params},
};
use crate::{
    duration,
    metrics::Op,
    proto,
    traceql::{self, ErrorClass},
    traceql_metrics::{self, MetricsError, MetricsRequest, Window},
};

const SECOND: u64 = 1_000_000_000;
/// How far back a query looks that doesn't say.
const DEFAULT_SINCE: Duration = Duration::from_secs(3600);

/// Whether many values per series are asked for, or one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Range,
    Instant,
}

impl Api {
    /// Answers `/api/metrics/query_range`.
    pub(crate) async fn query_range(&self, asked: &Asked) -> Result<proto::QueryRangeResponse, ApiError> {
        let request = self.checked(asked, Op::Metrics, self.metrics_request(asked, Kind::Range))?;
        let bytes = |answer: &proto::QueryRangeResponse| answer.metrics.as_ref().map_or(0, |metrics| metrics.inspected_bytes);
        self.count(&asked.tenants, Op::Metrics, bytes, self.engine.query_range(&asked.tenants, request)).await
    }

    /// Answers a range query in pieces: how far it is with the samples that are known for good, and all of it at the end.
    pub(crate) fn query_range_stream(self: &Arc<Self>, asked: Asked) -> BoxStream<'static, Result<proto::QueryRangeResponse, ApiError>> {
        match self.checked(&asked, Op::Metrics, self.metrics_request(&asked, Kind::Range)) {
            Ok(request) => {
                let messages = self.engine.query_range_stream(asked.tenants.clone(), request, DIFFERENCES);
                let bytes = |answer: &proto::QueryRangeResponse| answer.metrics.as_ref().map_or(0, |metrics| metrics.inspected_bytes);
                self.count_stream(asked.tenants, Op::Metrics, bytes, messages)
            }
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
        }
    }

    /// Answers `/api/metrics/query`.
    pub(crate) async fn query_instant(&self, asked: &Asked) -> Result<proto::QueryInstantResponse, ApiError> {
        let request = self.checked(asked, Op::Metrics, self.metrics_request(asked, Kind::Instant))?;
        let bytes = |answer: &proto::QueryInstantResponse| answer.metrics.as_ref().map_or(0, |metrics| metrics.inspected_bytes);
        self.count(&asked.tenants, Op::Metrics, bytes, self.engine.query_instant(&asked.tenants, request)).await
    }

    /// Answers an instant query in pieces: how far it is, and all of it at the end.
    pub(crate) fn query_instant_stream(
        self: &Arc<Self>,
        asked: Asked,
    ) -> BoxStream<'static, Result<proto::QueryInstantResponse, ApiError>> {
        match self.checked(&asked, Op::Metrics, self.metrics_request(&asked, Kind::Instant)) {
            Ok(request) => {
                let messages = self.engine.query_instant_stream(asked.tenants.clone(), request, DIFFERENCES);
                let bytes = |answer: &proto::QueryInstantResponse| answer.metrics.as_ref().map_or(0, |metrics| metrics.inspected_bytes);
                self.count_stream(asked.tenants, Op::Metrics, bytes, messages)
            }
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
        }
    }

    fn metrics_request(&self, asked: &Asked, kind: Kind) -> Result<Arc<MetricsRequest>, ApiError> {
        let limits = asked.tenants.iter().map(|tenant| self.engine.limits(tenant).max_metrics_duration);
        let longest = limits.filter(|limit| !limit.is_zero()).min().unwrap_or(self.settings.max_metrics_duration);
        request(&asked.params, kind, &self.settings, self.now(), longest).map(Arc::new)
    }
}

pub(super) async fn query_range(State(api): State<Arc<Api>>, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    let answer = api.query_range(&api.asked(&headers, &uri)?).await?;
    Ok(with_type(answer.to_json(), JSON))
}

pub(super) async fn query_instant(State(api): State<Arc<Api>>, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    let answer = api.query_instant(&api.asked(&headers, &uri)?).await?;
    Ok(with_type(answer.to_json(), JSON))
}

/// What the parameters of a metrics query ask for. A range must not be longer than `longest`; zero means any.
pub(super) fn request(
    params: &Params,
    kind: Kind,
    settings: &ApiSettings,
    now: Duration,
    longest: Duration,
) -> Result<MetricsRequest, ApiError> {
    let refuse = |error: &dyn std::fmt::Display| ApiError::bad_request(error.to_string());
    let query = query(params, settings.max_query_bytes)?;
    let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let end = time(params, "end")?.unwrap_or(now);
    let since = match params.get("since") {
        Some(text) => duration::parse_prometheus(text)
            .map_err(|error| ApiError::bad_request(format!("could not parse 'since' parameter: {error}")))?,
        None => DEFAULT_SINCE,
    };
    let since = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
    let start = time(params, "start")?.unwrap_or_else(|| end.min(now).saturating_sub(since));
    let step = step(params)?.filter(|_| kind == Kind::Range);
    let mut asked = traceql_metrics::Asked {
        start,
        end,
        step,
        exemplars: u32::try_from(params.lenient("exemplars")).unwrap_or(u32::MAX),
        max_series: u32::try_from(params.lenient("maxSeries")).unwrap_or(u32::MAX),
        instant: kind == Kind::Instant,
        aligned: false,
    };
    // Refused before the end is held back: a range that makes sense is not refused because it is new.
    let as_asked = MetricsRequest::new(Arc::clone(&query), asked, settings.metrics).map_err(|error| refuse(&error))?;
    if !longest.is_zero() && u128::from(end - start) > longest.as_nanos() {
        let longest = duration::to_go(i64::try_from(longest.as_nanos()).unwrap_or(i64::MAX));
        return Err(ApiError::bad_request(format!("metrics query time range exceeds the maximum allowed duration of {longest}")));
    }
    let cutoff = u64::try_from(settings.query_end_cutoff.as_nanos()).unwrap_or(u64::MAX);
    let newest = now.saturating_sub(cutoff);
    if cutoff == 0 || as_asked.window().bounds().1 <= newest {
        return Ok(as_asked);
    }
    match kind {
        Kind::Range => {
            let step = *asked.step.get_or_insert_with(|| Window::default_step(start, end));
            asked.end = newest - newest % step.max(1);
        }
        Kind::Instant => asked.end = newest,
    }
    MetricsRequest::new(query, asked, settings.metrics).map_err(|error| refuse(&error))
}

/// What the parameters of a part of a metrics query ask for, which whoever cut the query has checked and aligned.
pub(super) fn part_request(params: &Params, settings: &ApiSettings) -> Result<MetricsRequest, ApiError> {
    let required =
        |name: &str| time(params, name)?.filter(|time| *time > 0).ok_or_else(|| ApiError::bad_request(format!("{name} required")));
    let query = query(params, settings.max_query_bytes)?;
    let asked = traceql_metrics::Asked {
        start: required("start")?,
        end: required("end")?,
        step: Some(step(params)?.filter(|step| *step > 0).ok_or_else(|| ApiError::bad_request("step required"))?),
        exemplars: u32::try_from(params.lenient("exemplars")).unwrap_or(u32::MAX),
        max_series: u32::try_from(params.lenient("maxSeries")).unwrap_or(u32::MAX),
        instant: params.get("instant") == Some("true"),
        aligned: true,
    };
    MetricsRequest::new(query, asked, settings.metrics).map_err(|error| ApiError::bad_request(error.to_string()))
}

fn query(params: &Params, max_bytes: usize) -> Result<Arc<traceql::Query>, ApiError> {
    let text = params.get("q").or_else(|| params.get("query")).unwrap_or_default();
    params::check_query_size(text, max_bytes)?;
    let query = traceql::parse(text).map_err(|error| match error.class {
        ErrorClass::Parse => ApiError::bad_request(error.to_string()),
        ErrorClass::Validation | ErrorClass::Unsupported => ApiError::bad_request(format!("compiling query: {error}")),
    })?;
    if query.metrics().is_none() {
        return Err(ApiError::bad_request(MetricsError::NotMetrics.to_string()));
    }
    Ok(Arc::new(query))
}

/// A time in Unix nanoseconds.
fn time(params: &Params, name: &str) -> Result<Option<u64>, ApiError> {
    let Some(text) = params.get(name) else {
        return Ok(None);
    };
    let time = parse_time(text).ok_or_else(|| {
        ApiError::bad_request(format!("could not parse '{name}' parameter: {text:?} is neither a Unix time nor a time of RFC 3339"))
    });
    time.map(Some)
}

fn parse_time(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        let number: u64 = text.parse().ok()?;
        return if text.len() <= 10 { number.checked_mul(SECOND) } else { Some(number) };
    }
    if text.contains('.')
        && let Ok(seconds) = text.parse::<f64>()
    {
        let milliseconds = (seconds * 1e3).round();
        return (0.0..1e16).contains(&milliseconds).then_some(milliseconds as u64).and_then(|number| number.checked_mul(1_000_000));
    }
    parse_rfc3339(text)
}

/// `2023-11-14T22:13:20Z`, with or without a fraction, `Z` or an offset.
pub(super) fn parse_rfc3339(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let is = |at: usize, expected: &[u8]| text.as_bytes().get(at).is_some_and(|byte| expected.contains(byte));
    if !(is(4, b"-") && is(7, b"-") && is(10, b"Tt") && is(13, b":") && is(16, b":")) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_of_month = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=days_of_month).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=9).contains(&digits) {
            return None;
        }
        nanos = format!("{:0<9}", &fraction[..digits]).parse::<i64>().ok()?;
        rest = &fraction[digits..];
    }
    let offset = match rest.as_bytes() {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let at = text.len() - 5;
            let (hours, minutes) = (number(at, at + 2)?, number(at + 3, at + 5)?);
            let offset = hours * 3600 + minutes * 60;
            if *sign == b'-' { -offset } else { offset }
        }
        _ => return None,
    };
    // Days since 1970-01-01 of the Gregorian calendar, years beginning in March.
    let (years, months) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * years + years / 4 - years / 100 + years / 400 + (153 * months + 2) / 5 + day - 1 - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - offset;
    u64::try_from(seconds.checked_mul(SECOND as i64)?.checked_add(nanos)?).ok()
}

/// The step in nanoseconds.
fn step(params: &Params) -> Result<Option<u64>, ApiError> {
    let Some(text) = params.get("step") else {
        return Ok(None);
    };
    let nanos = match text.parse::<f64>() {
        Ok(seconds) => (seconds * 1e9 < i64::MAX as f64 && seconds >= 0.0).then_some((seconds * 1e9).round() as u64),
        Err(_) => duration::parse_go(text).ok().and_then(|step| u64::try_from(step.as_nanos()).ok()),
    };
    nanos.map(Some).ok_or_else(|| ApiError::bad_request(format!("cannot parse {text:?} to a valid duration")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_700_000_000);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn ask(kind: Kind, pairs: &[(&str, &str)]) -> Result<MetricsRequest, ApiError> {
        let params = Params::new(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect());
        request(&params, kind, &ApiSettings::default(), NOW, DAY)
    }

    fn range(pairs: &[(&str, &str)]) -> Result<MetricsRequest, ApiError> {
        ask(Kind::Range, &[pairs, &[("q", "{} | rate()")]].concat())
    }

    #[track_caller]
    fn refused(result: Result<MetricsRequest, ApiError>, text: &str) {
        assert_eq!(result.expect_err("refused"), ApiError::bad_request(text));
    }

    #[test]
    fn times_come_in_four_forms() {
        let second = 1_700_000_000 * SECOND;
        for (text, time) in [
            ("1700000000", second),
            ("1700000000000000001", second + 1),
            ("1700000000.5", second + SECOND / 2),
            ("1700000000.0004", second),
            ("2023-11-14T22:13:20Z", second),
            ("2023-11-14T22:13:20.25Z", second + SECOND / 4),
            ("2023-11-15T00:13:20+02:00", second),
            ("2023-11-14T21:43:20.000000001-00:30", second + 1),
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600 * SECOND),
            ("2024-12-31T23:59:59Z", 1_735_689_599 * SECOND),
        ] {
            assert_eq!(parse_time(text), Some(time), "{text}");
        }
        for text in
            ["", "x", "-1", "1.5.5", "-1.5", "NaN", "2023-11-14", "2023-02-29T00:00:00Z", "2023-13-01T00:00:00Z", "2023-11-14T22:13:20"]
        {
            assert_eq!(parse_time(text), None, "{text}");
        }
        for text in
            ["99999999999999999999", "2023-11-14T22:13:20.Z", "2023-11-14T22:13:20+0200", "1950-01-01T00:00:00Z", "9999-01-01T00:00:00Z"]
        {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    #[test]
    fn an_hour_until_now_when_nothing_is_said() {
        let asked = *range(&[]).expect("valid").asked();
        assert_eq!((asked.start, asked.end, asked.step), (1_699_996_400 * SECOND, 1_700_000_000 * SECOND, None));
        let since = *range(&[("since", "2m"), ("end", "1699990000")]).expect("valid").asked();
        assert_eq!((since.start, since.end), (1_699_989_880 * SECOND, 1_699_990_000 * SECOND));
        let both = *range(&[("since", "2m"), ("start", "1699999000")]).expect("valid").asked();
        assert_eq!(both.start, 1_699_999_000 * SECOND, "since is of no meaning beside start");
        let alias = ask(Kind::Range, &[("query", "{} | count_over_time()")]).expect("valid");
        assert_eq!(alias.query().to_string(), "{ true } | count_over_time()");
    }

    #[test]
    fn steps_are_seconds_or_durations() {
        let step = |text: &str| range(&[("step", text)]).map(|request| request.asked().step);
        for (text, nanos) in [("15", 15 * SECOND), ("0.5", SECOND / 2), ("15s", 15 * SECOND), ("1m30s", 90 * SECOND)] {
            assert_eq!(step(text), Ok(Some(nanos)), "{text}");
        }
        for text in ["1d", "x", "-5", "inf", "NaN", "-5s", "1e300"] {
            assert_eq!(step(text), Err(ApiError::bad_request(format!("cannot parse {text:?} to a valid duration"))), "{text}");
        }
        refused(range(&[("step", "0")]), "step of 0s is too small, minimum step for given range is 360ms");
        refused(range(&[("step", "1ms")]), "step of 1ms is too small, minimum step for given range is 360ms");
    }

    #[test]
    fn refusals_have_tempos_words() {
        let at = |start, end| range(&[("start", start), ("end", end)]);
        refused(at("1699999999", "1699999998"), "end must be greater than start");
        refused(at("1699999980", "1699999980"), "end must be greater than start");
        refused(at("1699000000", "1699999998"), "metrics query time range exceeds the maximum allowed duration of 24h0m0s");
        refused(ask(Kind::Instant, &[("q", "{} | rate()"), ("start", "5"), ("end", "5")]), "end must be greater than start");
        refused(ask(Kind::Range, &[("q", "{}")]), "not a metrics query");
        refused(range(&[("start", "soon")]), "could not parse 'start' parameter: \"soon\" is neither a Unix time nor a time of RFC 3339");
        refused(range(&[("since", "1x")]), "could not parse 'since' parameter: not a valid duration string: \"1x\"");
        let text = |query: &str| format!("{:?}", ask(Kind::Range, &[("q", query)]).expect_err("refused"));
        assert!(text("{ 1 = \"x\" } | rate()").contains("compiling query: "), "{}", text("{ 1 = \"x\" } | rate()"));
        assert!(!text("{ | rate()").contains("compiling"), "{}", text("{ | rate()"));
        assert!(text("{} | rate() by (.a,.b,.c,.d,.e,.f)").contains("compiling query: "));
        refused(
            range(&[("query", &"x".repeat(131_073)), ("q", &"x".repeat(131_073))]),
            "TraceQL expression exceeds the configured maximum size of 131072 bytes, reduce the query expression size or contact your system \
             administrator",
        );
    }

    #[test]
    fn the_end_is_held_back_if_that_is_configured() {
        let settings = ApiSettings { query_end_cutoff: Duration::from_secs(30), ..ApiSettings::default() };
        let params =
            |pairs: &[(&str, &str)]| Params::new(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect());
        let pairs = [("q", "{} | rate()"), ("start", "1699999000"), ("end", "1700000000"), ("step", "60")];
        let range = request(&params(&pairs), Kind::Range, &settings, NOW, DAY).expect("valid");
        let (_, high) = range.window().bounds();
        assert_eq!(high, 1_699_999_920 * SECOND, "rounded down to the step");
        let instant = request(&params(&pairs), Kind::Instant, &settings, NOW, DAY).expect("valid");
        assert_eq!(instant.window().bounds(), (1_699_999_000 * SECOND, 1_699_999_970 * SECOND));
        let old = request(&params(&[pairs[0], pairs[1], ("end", "1699999500"), pairs[3]]), Kind::Range, &settings, NOW, DAY);
        assert_eq!(old.expect("valid").window().bounds().1, 1_699_999_500 * SECOND);
    }
}
