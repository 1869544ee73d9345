//! `/api/mcp`: queries as tools for language models, by the Model Context Protocol over streamable HTTP.
//!
//! ```text
//!  POST ─► tenant ─► origin, headers ─► JSON-RPC ─┬─► initialize, ping, lists     known
//!                                                 ├─► tools/call ─► tools ─► Api  a query, as over HTTP
//!                                                 └─► resources/read ─► docs      known
//! ```
//!
//! Spoken are the revisions 2025-03-26 to 2025-11-25. There are no sessions and no streams: every answer is one JSON object, a GET is answered by
//! 405, as these revisions provide, and what is sent without being asked for (notifications, responses) is accepted and means nothing. So any
//! process may answer any request. Who asks by a later revision, which begins without `initialize`, hears 400 and falls back to these.
//!
//! *Invariants:* all tools only read; a tool sees what its request's tenant sees; a tool that fails says why in its result, so that the model can
//! read it, and only what is wrong with the protocol is an error of JSON-RPC.

mod docs;
mod tools;

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use serde_json::{Value, json};

use super::{
    answers::Api,
    error::ApiError,
    format::{JSON, with_type},
    handlers,
};

/// The revisions that are spoken, newest first.
const VERSIONS: [&str; 3] = ["2025-11-25", "2025-06-18", "2025-03-26"];

/// The one revision whose messages may come several at once.
const BATCHES: &str = "2025-03-26";

/// Most messages of a batch.
const MAX_BATCH: usize = 20;

const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");

const PARSE_ERROR: i64 = -32_700;
const INVALID_REQUEST: i64 = -32_600;
const METHOD_NOT_FOUND: i64 = -32_601;
const INVALID_PARAMS: i64 = -32_602;
const RESOURCE_NOT_FOUND: i64 = -32_002;

/// What a language model should know first.
const INSTRUCTIONS: &str = "Distributed traces, queried with TraceQL. Ask get-attribute-names and get-attribute-values what there is, search \
                            with traceql-search, count and measure with the traceql-metrics tools, and read whole traces with get-trace. \
                            docs-traceql explains the language.";

/// An error of JSON-RPC.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RpcError {
    code: i64,
    message: String,
}

impl RpcError {
    fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    fn answer(&self, id: &Value) -> Value {
        json!({"jsonrpc": "2.0", "id": id, "error": {"code": self.code, "message": self.message}})
    }
}

/// The one route.
pub(super) async fn serve(State(api): State<Arc<Api>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let tenants = match api.tenancy().tenants(&parts.headers) {
        Ok(tenants) => tenants,
        Err(refused) => return refused.into_response(),
    };
    if let Err(refused) = check(&parts.method, &parts.uri, &parts.headers) {
        return refused.into_response();
    }
    let body = match axum::body::to_bytes(body, handlers::MAX_BODY_BYTES).await {
        Ok(body) => body,
        Err(error) => return handlers::unreadable(error).into_response(),
    };
    let server = Server { api, tenants };
    let version = parts.headers.get(PROTOCOL_VERSION).and_then(|value| value.to_str().ok()).unwrap_or(BATCHES);
    match serde_json::from_slice::<Value>(&body) {
        Err(error) => wrong(&RpcError::new(PARSE_ERROR, format!("not JSON: {error}")), &Value::Null),
        Ok(Value::Array(messages)) if version == BATCHES => server.batch(messages).await,
        Ok(Value::Array(_)) => wrong(&RpcError::new(INVALID_REQUEST, "messages come one at a time"), &Value::Null),
        Ok(message) => match server.message(message).await {
            Ok(Some(answer)) => answer_with(&answer),
            Ok(None) => StatusCode::ACCEPTED.into_response(),
            Err((error, id)) => wrong(&error, &id),
        },
    }
}

/// What is asked of the HTTP request.
fn check(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name: &HeaderName| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    // A page of another site must not ask in the name of whoever looks at it.
    if let Some(origin) = text(&header::ORIGIN) {
        let host = text(&header::HOST).or_else(|| uri.authority().map(ToString::to_string));
        let from = origin.split_once("://").map(|(_, authority)| authority);
        if from.is_none() || from != host.as_deref() {
            return Err(Refusal(StatusCode::FORBIDDEN, format!("origin \"{origin}\" is not this server\n")));
        }
    }
    if method != Method::POST {
        return Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, "messages are sent by POST\n".to_owned()));
    }
    if let Some(version) = text(&PROTOCOL_VERSION)
        && !VERSIONS.contains(&version.as_str())
    {
        let text = format!("protocol version \"{version}\" is not supported, supported are {}\n", VERSIONS.join(", "));
        return Err(Refusal(StatusCode::BAD_REQUEST, text));
    }
    let accepts = |value: &String| ["application/json", "application/*", "*/*"].iter().any(|kind| value.contains(kind));
    if text(&header::ACCEPT).is_some_and(|value| !accepts(&value)) {
        return Err(Refusal(StatusCode::NOT_ACCEPTABLE, "answers are application/json\n".to_owned()));
    }
    let is_json = |value: &String| value.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(JSON));
    if !text(&header::CONTENT_TYPE).is_some_and(|value| is_json(&value)) {
        return Err(Refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, "messages are application/json\n".to_owned()));
    }
    Ok(())
}

/// An HTTP request that is none of the protocol.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(status, text) = self;
        let mut response = ApiError::new(status, text).into_response();
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        response
    }
}

fn answer_with(answer: &Value) -> Response {
    with_type(answer.to_string().into_bytes(), JSON)
}

/// The answer to what is no request.
fn wrong(error: &RpcError, id: &Value) -> Response {
    let mut response = answer_with(&error.answer(id));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

/// What answers the messages of one HTTP request.
struct Server {
    api: Arc<Api>,
    tenants: Vec<storage::id::Tenant>,
}

impl Server {
    async fn batch(&self, messages: Vec<Value>) -> Response {
        if messages.is_empty() || messages.len() > MAX_BATCH {
            return wrong(&RpcError::new(INVALID_REQUEST, format!("a batch has 1 to {MAX_BATCH} messages")), &Value::Null);
        }
        let mut answers = Vec::new();
        for message in messages {
            match self.message(message).await {
                Ok(answer) => answers.extend(answer),
                Err((error, id)) => answers.push(error.answer(&id)),
            }
        }
        if answers.is_empty() { StatusCode::ACCEPTED.into_response() } else { answer_with(&Value::Array(answers)) }
    }

    /// The answer to a message; none to what is no request. The error is that it is no message.
    async fn message(&self, message: Value) -> Result<Option<Value>, (RpcError, Value)> {
        let id = message.get("id").cloned();
        let invalid = |what: &str| (RpcError::new(INVALID_REQUEST, what), id.clone().filter(is_id).unwrap_or(Value::Null));
        if message.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
            return Err(invalid("not a message of JSON-RPC 2.0"));
        }
        let method = match message.get("method") {
            Some(Value::String(method)) => method,
            Some(_) => return Err(invalid("method must be a text")),
            // To a question that this server never asks.
            None if message.get("result").is_some() || message.get("error").is_some() => return Ok(None),
            None => return Err(invalid("a method, a result or an error is required")),
        };
        let Some(id) = &id else { return Ok(None) };
        if !is_id(id) {
            return Err(invalid("id must be a text or an integer"));
        }
        let params = message.get("params").unwrap_or(&Value::Null);
        Ok(Some(match self.request(method, params).await {
            Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
            Err(error) => error.answer(id),
        }))
    }

    async fn request(&self, method: &str, params: &Value) -> Result<Value, RpcError> {
        match method {
            "initialize" => initialize(params),
            "ping" => Ok(json!({})),
            "tools/list" => Ok(json!({"tools": tools::list()})),
            "tools/call" => self.call(params).await,
            "resources/list" => Ok(json!({"resources": docs::DOCUMENTS.map(|document| json!({
                "uri": document.uri, "name": document.uri, "description": document.about, "mimeType": "text/markdown",
            }))})),
            "resources/templates/list" => Ok(json!({"resourceTemplates": []})),
            "resources/read" => read(params),
            other => Err(RpcError::new(METHOD_NOT_FOUND, format!("method not found: {other}"))),
        }
    }

    async fn call(&self, params: &Value) -> Result<Value, RpcError> {
        let name = params.get("name").and_then(Value::as_str).ok_or_else(|| RpcError::new(INVALID_PARAMS, "name of a tool is required"))?;
        let tool = tools::by_name(name).ok_or_else(|| RpcError::new(INVALID_PARAMS, format!("unknown tool: {name}")))?;
        let none = serde_json::Map::new();
        let arguments = match params.get("arguments") {
            None | Some(Value::Null) => &none,
            Some(Value::Object(arguments)) => arguments,
            Some(_) => return Err(RpcError::new(INVALID_PARAMS, "arguments must be an object")),
        };
        self.api.engine.metrics().mcp_call(tool.name);
        Ok(match tools::run(&self.api, &self.tenants, tool, arguments).await {
            Ok(text) => json!({
                "content": [{"type": "text", "text": text}],
                "_meta": {"type": tool.result, "encoding": tool.encoding, "version": "1"},
            }),
            Err(text) => json!({"content": [{"type": "text", "text": text}], "isError": true}),
        })
    }
}

fn is_id(id: &Value) -> bool {
    id.is_string() || id.is_i64() || id.is_u64()
}

fn initialize(params: &Value) -> Result<Value, RpcError> {
    let asked = params.get("protocolVersion").and_then(Value::as_str);
    let asked = asked.ok_or_else(|| RpcError::new(INVALID_PARAMS, "protocolVersion is required"))?;
    // The client leaves if it cannot speak what it is offered.
    let version = VERSIONS.into_iter().find(|version| *version == asked).unwrap_or(VERSIONS[0]);
    Ok(json!({
        "protocolVersion": version,
        "capabilities": {"tools": {}, "resources": {}},
        "serverInfo": {"name": "tempo", "version": "0.1.0"},
        "instructions": INSTRUCTIONS,
    }))
}

fn read(params: &Value) -> Result<Value, RpcError> {
    let uri = params.get("uri").and_then(Value::as_str).ok_or_else(|| RpcError::new(INVALID_PARAMS, "uri is required"))?;
    let document = docs::DOCUMENTS.iter().find(|document| document.uri == uri);
    let document = document.ok_or_else(|| RpcError::new(RESOURCE_NOT_FOUND, format!("resource not found: {uri}")))?;
    Ok(json!({"contents": [{"uri": uri, "mimeType": "text/markdown", "text": document.text}]}))
}
