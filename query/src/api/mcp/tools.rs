//! The tools, and the queries that they stand for.

use std::time::Duration;

use serde_json::{Map, Value, json};
use storage::id::Tenant;

use super::docs;
use crate::{
    api::{
        answers::{Api, Asked},
        json::ToJson as _,
        llm, metrics,
        params::Params,
    },
    traceql,
};

pub(super) const DOCS_TRACEQL: &str = "docs-traceql";
pub(super) const DOCS_CONFIG: &str = "docs-config";

/// How far back a query looks that does not say.
const LOOKBACK: Duration = Duration::from_secs(3600);

/// A tool.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tool {
    pub(super) name: &'static str,
    about: &'static str,
    /// Name, what it is, whether it is required.
    arguments: &'static [(&'static str, &'static str, bool)],
    /// What it answers with, for `_meta`.
    pub(super) result: &'static str,
    pub(super) encoding: &'static str,
}

const TIMES: [(&str, &str, bool); 2] = [
    ("start", "Begin of the range as RFC 3339, such as 2026-01-31T12:00:00Z. An hour before the end if absent.", false),
    ("end", "End of the range as RFC 3339. Now if absent.", false),
];

const TOOLS: [Tool; 8] = [
    Tool {
        name: "traceql-search",
        about: "Searches traces with a TraceQL query without metrics functions. Answers with the traces and the spans in them that match.",
        arguments: &[("query", "The TraceQL query, such as { status = error }.", true), TIMES[0], TIMES[1]],
        result: "search-results",
        encoding: "json",
    },
    Tool {
        name: "traceql-metrics-instant",
        about: "Computes one value per series over a range with a TraceQL metrics query. Answers with few numbers: prefer it to a range query \
                unless the course over time matters.",
        arguments: &[("query", "The TraceQL metrics query, such as { status = error } | rate().", true), TIMES[0], TIMES[1]],
        result: "metrics-instant",
        encoding: "json",
    },
    Tool {
        name: "traceql-metrics-range",
        about: "Computes series over time with a TraceQL metrics query.",
        arguments: &[("query", "The TraceQL metrics query, such as { status = error } | rate().", true), TIMES[0], TIMES[1]],
        result: "metrics-range",
        encoding: "json",
    },
    Tool {
        name: "get-trace",
        about: "Reads a whole trace by its id.",
        arguments: &[("trace_id", "The id in hexadecimal.", true)],
        result: "trace",
        encoding: "json",
    },
    Tool {
        name: "get-attribute-names",
        about: "Lists the names of attributes that spans have, by scope. Ask before you write a query.",
        arguments: &[("scope", "Only this scope: span, resource, event, link, instrumentation or intrinsic. All if absent.", false)],
        result: "attribute-names",
        encoding: "json",
    },
    Tool {
        name: "get-attribute-values",
        about: "Lists the values of an attribute.",
        arguments: &[
            ("name", "The attribute with its scope, such as resource.service.name, or an intrinsic, such as name.", true),
            ("filter-query", "Only values of spans that this TraceQL filter selects, such as { status = error }.", false),
        ],
        result: "attribute-values",
        encoding: "json",
    },
    Tool {
        name: DOCS_TRACEQL,
        about: "Explains TraceQL.",
        arguments: &[("name", "What about it.", true)],
        result: "documentation",
        encoding: "markdown",
    },
    Tool {
        name: DOCS_CONFIG,
        about: "Explains the configuration of this server.",
        arguments: &[("name", "What about it.", true)],
        result: "documentation",
        encoding: "markdown",
    },
];

/// Names of the texts that a tool shows; the first page of TraceQL is there as a resource only.
fn documents(tool: &str) -> Vec<&'static str> {
    docs::of_tool(tool).map(|document| document.name).filter(|name| *name != "query").collect()
}

/// As `tools/list` shows them.
pub(super) fn list() -> Vec<Value> {
    let shown = |tool: &Tool| {
        let property = |(name, about, _): &(&str, &str, bool)| {
            let mut property = json!({"type": "string", "description": about});
            if matches!(tool.name, DOCS_TRACEQL | DOCS_CONFIG) {
                property["enum"] = json!(documents(tool.name));
            }
            ((*name).to_owned(), property)
        };
        let required: Vec<_> = tool.arguments.iter().filter(|(_, _, required)| *required).map(|(name, ..)| *name).collect();
        let properties: Map<String, Value> = tool.arguments.iter().map(property).collect();
        json!({
            "name": tool.name,
            "description": tool.about,
            "inputSchema": {"type": "object", "properties": properties, "required": required},
            "annotations": {"readOnlyHint": true, "destructiveHint": false, "idempotentHint": true, "openWorldHint": false},
        })
    };
    TOOLS.iter().map(shown).collect()
}

pub(super) fn by_name(name: &str) -> Option<&'static Tool> {
    TOOLS.iter().find(|tool| tool.name == name)
}

/// What a tool was called with.
struct Arguments<'a>(&'a Map<String, Value>);

impl Arguments<'_> {
    fn get(&self, name: &str) -> Result<Option<&str>, String> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok((!text.is_empty()).then_some(text.as_str())),
            Some(_) => Err(format!("argument \"{name}\" must be a text")),
        }
    }

    fn required(&self, name: &str) -> Result<&str, String> {
        self.get(name)?.ok_or_else(|| format!("argument \"{name}\" is required"))
    }

    /// The range in Unix nanoseconds.
    fn range(&self, now: Duration) -> Result<(u64, u64), String> {
        let time = |name: &str| {
            let wrong = |text: &str| format!("argument \"{name}\" is no time of RFC 3339: {text:?}");
            self.get(name)?.map(|text| metrics::parse_rfc3339(text).ok_or_else(|| wrong(text))).transpose()
        };
        let (start, end) = (time("start")?, time("end")?);
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let end = end.unwrap_or_else(|| nanos(now));
        let start = start.unwrap_or_else(|| end.saturating_sub(nanos(LOOKBACK)));
        if start >= end { Err("the start must be before the end".to_owned()) } else { Ok((start, end)) }
    }
}

/// Runs a tool. The error is for the model to read, as is the answer.
pub(super) async fn run(api: &Api, tenants: &[Tenant], tool: &Tool, arguments: &Map<String, Value>) -> Result<String, String> {
    let arguments = Arguments(arguments);
    let said = |error: crate::api::error::ApiError| error.text().to_owned();
    let asked = |path: &str, params: &[(&str, String)]| {
        let params = Params::new(params.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect());
        let prefix = api.settings.http_api_prefix.trim_end_matches('/');
        api.check_url(&format!("{prefix}{path}?{}", params.to_query())).map_err(said)?;
        Ok::<_, String>(Asked { tenants: tenants.to_vec(), params })
    };
    let text = |json: Vec<u8>| String::from_utf8_lossy(&json).into_owned();
    match tool.name {
        "traceql-search" => {
            let query = of_class(tool, arguments.required("query")?)?;
            let (start, end) = arguments.range(api.now())?;
            // Rounded up, so that the newest spans are in.
            let range = [("start", (start / SECOND).to_string()), ("end", end.div_ceil(SECOND).to_string())];
            let asked = asked("/api/search", &[&[("q", query.to_owned())], &range[..]].concat())?;
            api.search(&asked).await.map(|answer| text(answer.to_json())).map_err(said)
        }
        "traceql-metrics-instant" | "traceql-metrics-range" => {
            let query = of_class(tool, arguments.required("query")?)?;
            let (start, end) = arguments.range(api.now())?;
            let params = [("q", query.to_owned()), ("start", format!("{start:011}")), ("end", format!("{end:011}"))];
            if tool.name == "traceql-metrics-range" {
                let asked = asked("/api/metrics/query_range", &params)?;
                return api.query_range(&asked).await.map(|answer| text(answer.to_json())).map_err(said);
            }
            let asked = asked("/api/metrics/query", &params)?;
            api.query_instant(&asked).await.map(|answer| text(answer.to_json())).map_err(said)
        }
        "get-trace" => {
            let id = arguments.required("trace_id")?;
            let asked = asked(&format!("/api/v2/traces/{id}"), &[])?;
            let answer = api.trace(&asked, id).await.map_err(said)?;
            let is_found = answer.trace.as_ref().is_some_and(|trace| !trace.resource_spans.is_empty());
            if is_found { Ok(llm::trace(&answer).to_string()) } else { Err(format!("trace {id} was not found")) }
        }
        "get-attribute-names" => {
            let scope = arguments.get("scope")?.unwrap_or_default().to_owned();
            let asked = asked("/api/v2/search/tags", &[("scope", scope)])?;
            api.tag_names_by_scope(&asked).await.map(|answer| text(answer.to_json())).map_err(said)
        }
        "get-attribute-values" => {
            let name = arguments.required("name")?;
            let filter = arguments.get("filter-query")?.unwrap_or_default();
            // Editors send half-typed filters, which then do not count. A model is told.
            if !filter.is_empty() {
                traceql::parse(filter).map_err(|error| format!("filter-query: invalid TraceQL query: {error}"))?;
            }
            let asked = asked(&format!("/api/v2/search/tag/{name}/values"), &[("q", filter.to_owned())])?;
            api.typed_tag_values(&asked, name).await.map(|answer| llm::values(&answer).to_string()).map_err(said)
        }
        _ => {
            let name = arguments.required("name")?;
            let known = documents(tool.name);
            let document = docs::of_tool(tool.name).find(|document| document.name == name && known.contains(&name));
            document.map(|document| document.text.to_owned()).ok_or_else(|| format!("there is no \"{name}\", only {}", known.join(", ")))
        }
    }
}

const SECOND: u64 = 1_000_000_000;

/// A query for this tool: a search has no metrics function, a metrics query has one.
fn of_class<'q>(tool: &Tool, query: &'q str) -> Result<&'q str, String> {
    // One that does not parse is refused by the query itself, with Tempo's words.
    let Ok(parsed) = traceql::parse(query) else { return Ok(query) };
    match (parsed.metrics().is_some(), tool.name) {
        (true, "traceql-search") => {
            Err("this is a TraceQL metrics query: use the tool traceql-metrics-instant or traceql-metrics-range".to_owned())
        }
        (false, "traceql-metrics-instant" | "traceql-metrics-range") => {
            Err("this is not a TraceQL metrics query: use the tool traceql-search, or add a function such as rate()".to_owned())
        }
        _ => Ok(query),
    }
}
