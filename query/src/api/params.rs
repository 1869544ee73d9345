//! Reads the parameters of requests. The texts of the errors are Tempo's, and some clients match them.

use std::{fmt::Display, str::FromStr, time::Duration};

use uuid::Uuid;

use super::{ApiSettings, error::ApiError};
use crate::{
    duration,
    engine::{Condition, LegacyTags, SearchRequest, TagScope, TimeRange, TraceRequest},
    traceql,
};

/// Seconds that a query without a range looks back when the newest data are cut off.
const LOOKBACK: u64 = 15 * 60;

/// The parameters of a request, in the order in which they were given.
#[derive(Clone, Debug, Default)]
pub(crate) struct Params(Vec<(String, String)>);

impl Params {
    pub(crate) fn new(pairs: Vec<(String, String)>) -> Self {
        Self(pairs)
    }

    /// The parameters as a query string.
    pub(crate) fn to_query(&self) -> String {
        form_urlencoded::Serializer::new(String::new()).extend_pairs(&self.0).finish()
    }

    /// Adds the members of a JSON object: texts, numbers and booleans. What the query string says wins.
    pub(crate) fn add_json(&mut self, body: &[u8]) -> Result<(), ApiError> {
        let invalid = |what: &dyn Display| ApiError::bad_request(format!("invalid request body: {what}"));
        let members: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(body).map_err(|error| invalid(&error))?;
        for (name, value) in members {
            let text = match value {
                serde_json::Value::String(text) => text,
                serde_json::Value::Number(number) => number.to_string(),
                serde_json::Value::Bool(value) => value.to_string(),
                serde_json::Value::Null => continue,
                serde_json::Value::Array(_) | serde_json::Value::Object(_) => {
                    return Err(invalid(&format_args!("\"{name}\" must be a text or a number")));
                }
            };
            self.0.push((name, text));
        }
        Ok(())
    }

    /// The first value of that name; an empty one counts as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.iter().find(|(key, _)| key == name)?;
        (!value.1.is_empty()).then_some(value.1.as_str())
    }

    fn parse<T: FromStr>(&self, name: &str, label: &str) -> Result<Option<T>, ApiError> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        let value =
            text.parse().map_err(|_| ApiError::bad_request(format!("invalid {label}: parsing {text:?}: {}", number_error(text))))?;
        Ok(Some(value))
    }

    /// A number for which nonsense counts as absent.
    pub(crate) fn lenient(&self, name: &str) -> usize {
        self.get(name).and_then(|text| text.parse::<u32>().ok()).map_or(0, |number| number as usize)
    }
}

pub(super) fn number_error(text: &str) -> &'static str {
    let digits = text.strip_prefix('+').unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) { "value out of range" } else { "invalid syntax" }
}

/// The parameters of a trace lookup, apart from the id.
pub(crate) fn trace(id: &str, params: &Params) -> Result<TraceRequest, ApiError> {
    let id = storage::id::TraceId::from_hex(id).map_err(|invalid| ApiError::bad_request(invalid.to_string()))?;
    match params.get("mode") {
        None | Some("all" | "blocks" | "external") => {}
        // Tempo's components ask each other with this mode and look at nothing else.
        Some("ingesters") => return Ok(TraceRequest { id, range: None }),
        Some(mode) => return Err(ApiError::bad_request(format!("invalid value for mode {mode}"))),
    }
    for (name, label) in [("blockStart", "blockstart"), ("blockEnd", "blockEnd")] {
        if let Some(text) = params.get(name) {
            Uuid::try_parse(text).map_err(|error| ApiError::bad_request(format!("invalid value for {label}: {error}")))?;
        }
    }
    let start = params.parse::<i64>("start", "start")?.unwrap_or(0);
    let end = params.parse::<i64>("end", "end")?.unwrap_or(0);
    if start != 0 && end != 0 && end <= start {
        return Err(start_after_end(start, end));
    }
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    let range = (start != 0 || end != 0).then(|| TimeRange { start: seconds(start), end: if end == 0 { u64::MAX } else { seconds(end) } });
    Ok(TraceRequest { id, range })
}

fn start_after_end(start: impl Display, end: impl Display) -> ApiError {
    ApiError::bad_request(format!("http parameter start must be before end. received start={start} end={end}"))
}

/// The range that searches and tag queries ask for; `None` when they do not say. What is younger than `cutoff` is left out.
pub(crate) fn range(params: &Params, now: Duration, cutoff: Duration) -> Result<Option<TimeRange>, ApiError> {
    // Rounded up, so that the newest spans are in.
    let seconds = |time: Duration| time.as_secs() + u64::from(time.subsec_nanos() > 0);
    let newest = seconds(now.saturating_sub(cutoff));
    let start = params.parse::<u32>("start", "start")?.unwrap_or(0);
    let end = params.parse::<u32>("end", "end")?.unwrap_or(0);
    if let Some(since) = params.get("since") {
        let since = duration::parse_prometheus(since)
            .map_err(|error| ApiError::bad_request(format!("error parsing date range: could not parse 'since' parameter: {error}")))?;
        // Both are rounded in the same way, so that the length stays what was asked for.
        return Ok(Some(TimeRange { start: seconds(now.saturating_sub(cutoff).saturating_sub(since)), end: newest }));
    }
    match (start, end) {
        (0, 0) if cutoff.is_zero() => Ok(None),
        (0, 0) => Ok(Some(TimeRange { start: newest.saturating_sub(LOOKBACK), end: newest })),
        (0, _) => Err(ApiError::bad_request("error parsing date range: only one of start and end provided: must provide both or neither")),
        (start, end) if end <= start => Err(start_after_end(start, end)),
        (start, end) if cutoff.is_zero() => Ok(Some(TimeRange { start: start.into(), end: end.into() })),
        (start, end) => {
            let end = u64::from(end).min(newest);
            let start = u64::from(start);
            Ok(Some(TimeRange { start: if start > end { newest.saturating_sub(LOOKBACK) } else { start }, end }))
        }
    }
}

/// Checks the length of a range against the tenant's limit, or else the API's; zero means none.
pub(crate) fn check_range(range: Option<TimeRange>, tenant_limit: Duration, limit: Duration) -> Result<(), ApiError> {
    let limit = if tenant_limit.is_zero() { limit } else { tenant_limit };
    match range {
        Some(TimeRange { start, end }) if !limit.is_zero() && end.saturating_sub(start) > limit.as_secs() => {
            let limit = duration::to_go(i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX));
            Err(ApiError::bad_request(format!("range specified by start and end exceeds {limit}. received start={start} end={end}")))
        }
        _ => Ok(()),
    }
}

/// The parameters of a search, apart from its range.
pub(crate) fn search(params: &Params, settings: &ApiSettings) -> Result<SearchRequest, ApiError> {
    let query = params.get("q");
    let tags = params.get("tags");
    if query.is_some() && tags.is_some() {
        return Err(ApiError::bad_request("invalid request: can't specify tags and q in the same query"));
    }
    let tags = LegacyTags::parse(tags.unwrap_or_default()).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let min_duration = go_duration(params, "minDuration")?;
    let max_duration = go_duration(params, "maxDuration")?;
    if !max_duration.is_zero() && max_duration < min_duration {
        return Err(ApiError::bad_request("invalid maxDuration: must be greater than minDuration"));
    }
    let limit = match params.parse::<u32>("limit", "limit")? {
        Some(0) => return Err(ApiError::bad_request("invalid limit: must be a positive number")),
        Some(limit) => limit as usize,
        None => settings.default_result_limit,
    };
    let asked_spans = params.parse::<u32>("spss", "spss")?.unwrap_or(0) as usize;
    if settings.max_result_limit > 0 && limit > settings.max_result_limit {
        return Err(ApiError::bad_request(format!("limit {limit} exceeds max limit {}", settings.max_result_limit)));
    }
    if settings.max_spans_per_spanset > 0 && asked_spans > settings.max_spans_per_spanset {
        return Err(ApiError::bad_request(format!(
            "spans per span set exceeds {}. received {asked_spans}",
            settings.max_spans_per_spanset
        )));
    }
    let condition = match query {
        Some(query) => Condition::TraceQl(traceql_query(query, settings.max_query_bytes)?),
        None => Condition::Tags { tags, min_duration, max_duration },
    };
    let spans_per_spanset = if asked_spans == 0 { settings.default_spans_per_spanset } else { asked_spans };
    Ok(SearchRequest { condition, range: None, limit, spans_per_spanset })
}

/// Checks the length of a query; zero means that any will do.
pub(crate) fn check_query_size(query: &str, max_bytes: usize) -> Result<(), ApiError> {
    if max_bytes > 0 && query.len() > max_bytes {
        return Err(ApiError::bad_request(format!(
            "TraceQL expression exceeds the configured maximum size of {max_bytes} bytes, reduce the query expression size or contact your \
             system administrator"
        )));
    }
    Ok(())
}

fn traceql_query(query: &str, max_bytes: usize) -> Result<traceql::Query, ApiError> {
    check_query_size(query, max_bytes)?;
    traceql::parse(query).map_err(|error| ApiError::bad_request(format!("invalid TraceQL query: {error}")))
}

fn go_duration(params: &Params, name: &str) -> Result<Duration, ApiError> {
    let text = params.get(name).unwrap_or("0");
    duration::parse_go(text).map_err(|error| ApiError::bad_request(format!("invalid {name}: {error}")))
}

/// Which names `scope` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScopeParam {
    /// Attributes of all scopes, and intrinsics where they are shown unasked.
    All,
    /// Attributes of one scope.
    Only(TagScope),
    /// Intrinsics.
    Intrinsic,
    /// A scope that is valid and holds no attributes.
    Trace,
}

/// The `scope` parameter.
pub(crate) fn scope(params: &Params) -> Result<ScopeParam, ApiError> {
    match params.get("scope") {
        None | Some("none") => Ok(ScopeParam::All),
        Some("intrinsic") => Ok(ScopeParam::Intrinsic),
        Some("trace") => Ok(ScopeParam::Trace),
        Some(name) => {
            TagScope::from_name(name).map(ScopeParam::Only).ok_or_else(|| ApiError::bad_request(format!("invalid scope: {name}")))
        }
    }
}

/// The `q` parameter of the second version of the tag endpoints: half-typed text is no error. Text of an unreasonable size is not even read.
pub(crate) fn tag_filter(params: &Params, max_bytes: usize) -> Option<traceql::Filter> {
    params.get("q").filter(|query| max_bytes == 0 || query.len() <= max_bytes).and_then(traceql::tag_filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_700_000_000);

    fn params(pairs: &[(&str, &str)]) -> Params {
        Params::new(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[track_caller]
    fn refused<T: std::fmt::Debug>(result: Result<T, ApiError>, text: &str) {
        assert_eq!(result.expect_err("refused"), ApiError::bad_request(text));
    }

    #[test]
    fn the_first_value_counts_and_an_empty_one_is_absent() {
        assert_eq!(params(&[("a", "1"), ("a", "2")]).get("a"), Some("1"));
        assert_eq!(params(&[("a", "")]).get("a"), None);
        assert_eq!(params(&[]).get("a"), None);
    }

    #[test]
    fn a_json_body_is_an_alternative() {
        let mut given = params(&[("limit", "5")]);
        given.add_json(br#"{"limit": 20, "minDuration": "1s", "spss": null}"#).expect("JSON");
        assert_eq!((given.get("limit"), given.get("minDuration"), given.get("spss")), (Some("5"), Some("1s"), None));
        refused(given.add_json(br#"{"q": []}"#), "invalid request body: \"q\" must be a text or a number");
        assert!(given.add_json(b"[]").is_err() && given.add_json(b"{").is_err());
    }

    #[test]
    fn trace_parameters_are_checked() {
        let ok = trace("A1", &params(&[("start", "5"), ("blockStart", "00000000-0000-0000-0000-000000000000")])).expect("valid");
        assert_eq!((ok.id.to_short_hex(), ok.range), ("a1".to_owned(), Some(TimeRange { start: 5, end: u64::MAX })));
        assert_eq!(trace("1", &params(&[])).expect("valid").range, None);
        refused(trace("xyz", &params(&[])), "trace IDs can only contain hex characters: invalid character 'x' at position 0");
        refused(trace(&"a".repeat(33), &params(&[])), "trace IDs can't be larger than 128 bits");
        refused(trace("1", &params(&[("mode", "some")])), "invalid value for mode some");
        refused(trace("1", &params(&[("start", "x")])), "invalid start: parsing \"x\": invalid syntax");
        refused(trace("1", &params(&[("end", "1.5")])), "invalid end: parsing \"1.5\": invalid syntax");
        refused(trace("1", &params(&[("start", "9"), ("end", "9")])), "http parameter start must be before end. received start=9 end=9");
        for (name, beginning) in [("blockStart", "invalid value for blockstart: "), ("blockEnd", "invalid value for blockEnd: ")] {
            let error = trace("1", &params(&[(name, "nonsense")])).expect_err("refused");
            assert!(format!("{error:?}").contains(beginning), "{error:?}");
        }
        assert!(trace("1", &params(&[("mode", "ingesters"), ("start", "x")])).is_ok());
    }

    #[test]
    fn ranges_are_checked() {
        assert_eq!(range(&params(&[]), NOW, Duration::ZERO), Ok(None));
        assert_eq!(range(&params(&[("start", "10"), ("end", "20")]), NOW, Duration::ZERO), Ok(Some(TimeRange { start: 10, end: 20 })));
        let since = range(&params(&[("since", "1h"), ("start", "1"), ("end", "2")]), NOW, Duration::ZERO);
        assert_eq!(since, Ok(Some(TimeRange { start: 1_699_996_400, end: 1_700_000_000 })));
        refused(
            range(&params(&[("start", "10")]), NOW, Duration::ZERO),
            "http parameter start must be before end. received start=10 end=0",
        );
        refused(
            range(&params(&[("end", "10")]), NOW, Duration::ZERO),
            "error parsing date range: only one of start and end provided: must provide both or neither",
        );
        refused(
            range(&params(&[("start", "5000000000")]), NOW, Duration::ZERO),
            "invalid start: parsing \"5000000000\": value out of range",
        );
        refused(
            range(&params(&[("since", "1x")]), NOW, Duration::ZERO),
            "error parsing date range: could not parse 'since' parameter: not a valid duration string: \"1x\"",
        );
        let week = Duration::from_secs(168 * 3600);
        let long = Some(TimeRange { start: 1, end: 700_000 });
        refused(check_range(long, Duration::ZERO, week), "range specified by start and end exceeds 168h0m0s. received start=1 end=700000");
        refused(
            check_range(long, Duration::from_secs(60), week),
            "range specified by start and end exceeds 1m0s. received start=1 end=700000",
        );
        assert_eq!(check_range(long, Duration::ZERO, Duration::ZERO), Ok(()));
        assert_eq!(check_range(None, Duration::ZERO, week), Ok(()));
    }

    #[test]
    fn a_cutoff_hides_the_newest() {
        let cutoff = Duration::from_secs(30);
        let now = NOW.as_secs();
        let range = |pairs: &[(&str, String)]| {
            let pairs: Vec<_> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
            range(&params(&pairs), NOW, cutoff).expect("valid").expect("a range")
        };
        let times = |start: u64, end: u64| [("start", start.to_string()), ("end", end.to_string())];
        assert_eq!(range(&[]), TimeRange { start: now - 930, end: now - 30 });
        assert_eq!(range(&[("since", "1h".to_owned())]), TimeRange { start: now - 3630, end: now - 30 });
        assert_eq!(range(&times(now - 100, now)), TimeRange { start: now - 100, end: now - 30 });
        assert_eq!(range(&times(now - 100, now - 50)), TimeRange { start: now - 100, end: now - 50 });
        assert_eq!(range(&times(now - 10, now)), TimeRange { start: now - 930, end: now - 30 });
    }

    #[test]
    fn search_parameters_are_checked() {
        let search = |pairs: &[(&str, &str)]| search(&params(pairs), &ApiSettings::default());
        let defaults = search(&[]).expect("valid");
        assert_eq!((defaults.limit, defaults.spans_per_spanset, defaults.range), (20, 3, None));
        assert_eq!(search(&[("spss", "0"), ("limit", "7")]).expect("valid").spans_per_spanset, 3);
        for (pairs, text) in [
            (&[("q", "{}"), ("tags", "a=b")][..], "invalid request: can't specify tags and q in the same query"),
            (&[("tags", "a=b a=c")], "invalid tags: tag a has been set twice"),
            (&[("minDuration", "5")], "invalid minDuration: missing unit in duration \"5\""),
            (&[("maxDuration", "1y")], "invalid maxDuration: unknown unit \"y\" in duration \"1y\""),
            (&[("minDuration", "2s"), ("maxDuration", "1s")], "invalid maxDuration: must be greater than minDuration"),
            (&[("limit", "-1")], "invalid limit: parsing \"-1\": invalid syntax"),
            (&[("limit", "0")], "invalid limit: must be a positive number"),
            (&[("limit", "262145")], "limit 262145 exceeds max limit 262144"),
            (&[("spss", "x")], "invalid spss: parsing \"x\": invalid syntax"),
            (&[("spss", "101")], "spans per span set exceeds 100. received 101"),
        ] {
            refused(search(pairs), text);
        }
        refused(
            search(&[("q", &"x".repeat(131_073))]),
            "TraceQL expression exceeds the configured maximum size of 131072 bytes, reduce the query expression size or contact your system \
             administrator",
        );
        let error = search(&[("q", "{ .a = ")]).expect_err("refused");
        assert!(format!("{error:?}").contains("invalid TraceQL query: "), "{error:?}");
    }

    #[test]
    fn scopes_are_checked() {
        assert_eq!(scope(&params(&[("scope", "resource")])), Ok(ScopeParam::Only(TagScope::Resource)));
        assert_eq!(scope(&params(&[("scope", "none")])), Ok(ScopeParam::All));
        assert_eq!(scope(&params(&[("scope", "intrinsic")])), Ok(ScopeParam::Intrinsic));
        refused(scope(&params(&[("scope", "spam")])), "invalid scope: spam");
    }
}
