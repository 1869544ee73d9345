//! Tempo's HTTP API for queries, as an axum router.
//!
//! ```text
//!  request ─► tenant ─► parameters ─► deny list ─► engine ─► JSON or protobuf ─► gzip
//! ```
//!
//! Handlers translate and nothing else: what is read and how is the engine's affair. Methods are not restricted, as in Tempo, and parameters
//! come from the query string; `/api/search` also takes them as the JSON object of a body, for queries that are too long for a URL.
//!
//! What differs from Tempo, on purpose: the newest 30 seconds are not hidden, and a search without a range covers all recent data and the
//! blocks of the last hour.

mod compress;
mod error;
mod json;
mod params;
mod tenant;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, Query, Request, State},
    http::Uri,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, TracesData};
use prost::Message;
use regex::Regex;
use serde::Serialize;
use storage::id::Tenant;

use self::{
    error::ApiError,
    json::ToJson,
    params::{Params, ScopeParam},
    tenant::Tenancy,
};
use crate::{
    engine::{self, Engine, NamesRequest, QueryError, TagName, TimeRange, ValuesRequest},
    metrics::{Op, RouteName},
    proto,
};

/// Longest body of a search.
const MAX_BODY_BYTES: usize = 1 << 20;

/// Settings of the API.
#[derive(Clone, Debug)]
pub struct ApiSettings {
    /// Put before every path, such as `/tempo`; empty for none.
    pub http_api_prefix: String,
    /// Whether requests name their tenant.
    pub multitenancy_enabled: bool,
    /// Whether a request may name several tenants.
    pub multi_tenant_queries_enabled: bool,
    /// Longest time for a request, answered by 503; zero means any. The engine has deadlines of its own.
    pub api_timeout: Duration,
    /// Requests whose URL matches one of these are refused.
    pub url_deny_list: Vec<Regex>,
    /// Traces that a search returns when it does not say.
    pub default_result_limit: usize,
    /// Most traces that a search may ask for; 0 means any number.
    pub max_result_limit: usize,
    /// Spans per spanset when a search does not say.
    pub default_spans_per_spanset: usize,
    /// Most spans per spanset that a search may ask for; 0 means any number.
    pub max_spans_per_spanset: usize,
    /// Longest range of a search or tag query, unless the tenant has its own limit; zero means any.
    pub max_search_duration: Duration,
    /// Longest TraceQL query in bytes; 0 means any.
    pub max_query_bytes: usize,
    /// Shown at `/api/status/buildinfo`.
    pub build: BuildInfo,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            http_api_prefix: String::new(),
            multitenancy_enabled: false,
            multi_tenant_queries_enabled: true,
            api_timeout: Duration::ZERO,
            url_deny_list: Vec::new(),
            default_result_limit: 20,
            max_result_limit: 262_144,
            default_spans_per_spanset: 3,
            max_spans_per_spanset: 100,
            max_search_duration: Duration::from_secs(168 * 3600),
            max_query_bytes: crate::traceql::DEFAULT_MAX_QUERY_BYTES,
            build: BuildInfo::default(),
        }
    }
}

/// Where the binary comes from. Grafana reads `version` as semver and switches features on from 2.7.0 on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildInfo {
    /// Release that is compatible with Tempo's of the same number.
    pub version: String,
    /// Commit.
    pub revision: String,
    /// Branch.
    pub branch: String,
    /// Who built it.
    pub build_user: String,
    /// When it was built.
    pub build_date: String,
    /// The compiler; the name is that of the protocol.
    pub go_version: String,
}

#[derive(Debug)]
struct Api {
    engine: Arc<Engine>,
    settings: ApiSettings,
}

/// The routes below `/api`. `/ready`, `/status` and `/metrics` are the binary's.
pub fn router(engine: Arc<Engine>, settings: ApiSettings) -> Router {
    let prefix = match settings.http_api_prefix.trim_matches('/') {
        "" => String::new(),
        prefix => format!("/{prefix}"),
    };
    let path = |path: &str| format!("{prefix}{path}");
    let api = Arc::new(Api { engine, settings });
    Router::new()
        .route(&path("/api/traces/{traceID}"), any(trace_v1))
        .route(&path("/api/v2/traces/{traceID}"), any(trace_v2))
        .route(&path("/api/search"), any(search))
        .route(&path("/api/search/tags"), any(tags_v1))
        .route(&path("/api/v2/search/tags"), any(tags_v2))
        // A tag may contain slashes, and `/values` ends the path, which no template of the router can say.
        .route(&path("/api/search/tag/{*rest}"), any(values_v1))
        .route(&path("/api/v2/search/tag/{*rest}"), any(values_v2))
        .layer(middleware::from_fn_with_state(Arc::clone(&api), guard))
        .layer(middleware::from_fn(compress::gzip))
        .route(&path("/api/echo"), any(echo))
        .route(&path("/api/status/buildinfo"), get(build_info))
        .with_state(api)
}

async fn echo() -> Response {
    let mut response = Response::new(Body::from("echo\n"));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

async fn build_info(State(api): State<Arc<Api>>) -> Response {
    match serde_json::to_vec(&api.settings.build) {
        Ok(body) => with_type(body, JSON),
        Err(error) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// What holds for all queries: the deny list and the time limit.
async fn guard(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let url = request.uri().to_string();
    if api.settings.url_deny_list.iter().any(|denied| denied.is_match(&url)) {
        return ApiError::bad_request(format!(
            "Invalid request {url}. This query has been identified as one that destabilizes our system. Contact your system administrator for \
             more information"
        ))
        .into_response();
    }
    let response = next.run(request);
    if api.settings.api_timeout.is_zero() {
        return response.await;
    }
    let timed_out =
        || ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unable to process request in the configured timeout").into_response();
    tokio::time::timeout(api.settings.api_timeout, response).await.unwrap_or_else(|_| timed_out())
}

/// What every query needs to know of its request.
struct Asked {
    tenants: Vec<Tenant>,
    params: Params,
    format: Format,
}

impl Api {
    fn asked(&self, headers: &HeaderMap, uri: &Uri) -> Result<Asked, ApiError> {
        let tenancy = Tenancy { enabled: self.settings.multitenancy_enabled, federation: self.settings.multi_tenant_queries_enabled };
        let tenants = tenancy.tenants(headers)?;
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|error| ApiError::bad_request(error.to_string()))?;
        Ok(Asked { tenants, params: Params::new(pairs), format: Format::of(headers) })
    }

    fn now(&self) -> Duration {
        self.engine.clock().now()
    }

    fn check_range(&self, tenants: &[Tenant], range: Option<TimeRange>) -> Result<(), ApiError> {
        tenants.iter().try_for_each(|tenant| {
            params::check_range(range, self.engine.limits(tenant).max_search_duration, self.settings.max_search_duration)
        })
    }

    /// Runs a query and counts it.
    async fn count<T>(
        &self,
        tenants: &[Tenant],
        op: Op,
        bytes: impl FnOnce(&T) -> u64,
        query: impl Future<Output = Result<T, QueryError>>,
    ) -> Result<T, ApiError> {
        let label = tenant::label(tenants);
        let running = self.engine.metrics().running(&label, op);
        let result = query.await;
        running.completed();
        if let Ok(answer) = &result {
            self.engine.metrics().inspected(&label, op, bytes(answer));
        }
        Ok(result?)
    }

    async fn find(&self, id: &str, asked: &Asked) -> Result<engine::FoundTrace, ApiError> {
        let request = params::trace(id, &asked.params)?;
        let query = self.engine.trace(&asked.tenants, request);
        self.count(&asked.tenants, Op::Traces, |found| found.inspected_bytes, query).await
    }

    fn names_request(&self, asked: &Asked, with_filter: bool) -> Result<(ScopeParam, NamesRequest), ApiError> {
        let scope = params::scope(&asked.params)?;
        let range = params::range(&asked.params, self.now())?;
        self.check_range(&asked.tenants, range)?;
        let only = if let ScopeParam::Only(scope) = scope { Some(scope) } else { None };
        let filter = if with_filter { params::tag_filter(&asked.params, self.settings.max_query_bytes) } else { None };
        let limit = asked.params.lenient("limit");
        Ok((scope, NamesRequest { scope: only, filter, range, max_per_scope: limit, max_stale: asked.params.lenient("maxStaleValues") }))
    }

    async fn names(&self, asked: &Asked, scope: ScopeParam, request: NamesRequest) -> Result<engine::Tags, ApiError> {
        match scope {
            ScopeParam::Intrinsic | ScopeParam::Trace => Ok(engine::Tags::default()),
            ScopeParam::All | ScopeParam::Only(_) => {
                let query = self.engine.tag_names(&asked.tenants, request);
                self.count(&asked.tenants, Op::Metadata, |tags| tags.inspected_bytes, query).await
            }
        }
    }

    async fn values(&self, asked: &Asked, tag: TagName, with_filter: bool) -> Result<engine::Tags, ApiError> {
        let range = params::range(&asked.params, self.now())?;
        self.check_range(&asked.tenants, range)?;
        let filter = if with_filter { params::tag_filter(&asked.params, self.settings.max_query_bytes) } else { None };
        let max_values = asked.params.lenient("limit");
        let request = ValuesRequest { tag, filter, range, max_values, max_stale: asked.params.lenient("maxStaleValues") };
        self.count(&asked.tenants, Op::Metadata, |tags| tags.inspected_bytes, self.engine.tag_values(&asked.tenants, request)).await
    }
}

/// A whole trace as `/api/v2/traces/{traceID}` answers in JSON.
pub fn trace_json(resource_spans: Vec<ResourceSpans>) -> Vec<u8> {
    proto::TraceByIdResponse { trace: Some(TracesData { resource_spans }), ..proto::TraceByIdResponse::default() }.to_json()
}

async fn trace_v1(State(api): State<Arc<Api>>, Path(id): Path<String>, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    let asked = api.asked(&headers, &uri)?;
    let found = api.find(&id, &asked).await?;
    if found.truncated {
        return Err(QueryError::TraceTooLarge { max_bytes: found.max_bytes }.into());
    }
    if found.resource_spans.is_empty() {
        return Ok(StatusCode::NOT_FOUND.into_response());
    }
    Ok(match asked.format {
        Format::Protobuf => with_type(TracesData { resource_spans: found.resource_spans }.encode_to_vec(), PROTOBUF),
        Format::Json => with_type(json::batches(&found.resource_spans), JSON),
    })
}

async fn trace_v2(State(api): State<Arc<Api>>, Path(id): Path<String>, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    let asked = api.asked(&headers, &uri)?;
    let found = api.find(&id, &asked).await?;
    let message = if found.truncated {
        format!("Trace exceeds maximum size of {} bytes, a partial trace is returned", found.max_bytes)
    } else {
        String::new()
    };
    let status = if found.truncated { proto::PartialStatus::Partial } else { proto::PartialStatus::Complete };
    let answer = proto::TraceByIdResponse {
        trace: Some(TracesData { resource_spans: found.resource_spans }),
        metrics: Some(proto::TraceByIdMetrics { inspected_bytes: found.inspected_bytes }),
        status: status.into(),
        message,
    };
    Ok(asked.format.show(&answer))
}

async fn search(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let mut asked = api.asked(&parts.headers, &parts.uri)?;
    let body = axum::body::to_bytes(body, MAX_BODY_BYTES)
        .await
        .map_err(|_| ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "http: request body too large"))?;
    // Forms and anything else are ignored.
    if body.trim_ascii_start().starts_with(b"{") {
        asked.params.add_json(&body)?;
    }
    let request = params::search(&asked.params, &api.settings, api.now())?;
    api.check_range(&asked.tenants, request.range)?;
    let bytes = |answer: &proto::SearchResponse| answer.metrics.as_ref().map_or(0, |metrics| metrics.inspected_bytes);
    let answer = api.count(&asked.tenants, Op::Search, bytes, api.engine.search(&asked.tenants, request)).await?;
    Ok(asked.format.show(&answer))
}

async fn tags_v1(State(api): State<Arc<Api>>, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    let asked = api.asked(&headers, &uri)?;
    let (scope, request) = api.names_request(&asked, false)?;
    let limit = request.max_per_scope;
    let tags = api.names(&asked, scope, request).await?;
    let mut names: Vec<String> = match scope {
        ScopeParam::Intrinsic => engine::INTRINSICS.into_iter().map(str::to_owned).collect(),
        _ => tags.groups.into_values().flatten().collect(),
    };
    names.sort();
    names.dedup();
    names.truncate(if limit == 0 { usize::MAX } else { limit });
    Ok(asked.format.show(&proto::SearchTagsResponse { tag_names: names, metrics: Some(metadata(tags.inspected_bytes)) }))
}

async fn tags_v2(State(api): State<Arc<Api>>, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    let asked = api.asked(&headers, &uri)?;
    let (scope, request) = api.names_request(&asked, true)?;
    let tags = api.names(&asked, scope, request).await?;
    let group = |name: &str, tags: Vec<String>| proto::SearchTagsV2Scope { name: name.to_owned(), tags };
    let mut scopes: Vec<_> = tags.groups.into_iter().map(|(scope, names)| group(scope, names.into_iter().collect())).collect();
    if matches!(scope, ScopeParam::All | ScopeParam::Intrinsic) {
        scopes.push(group("intrinsic", engine::INTRINSICS.into_iter().map(str::to_owned).collect()));
    }
    Ok(asked.format.show(&proto::SearchTagsV2Response { scopes, metrics: Some(metadata(tags.inspected_bytes)) }))
}

async fn values_v1(State(api): State<Arc<Api>>, Path(rest): Path<String>, uri: Uri, headers: HeaderMap) -> Response {
    let Some(tag) = tag_of(&rest) else {
        return not_found();
    };
    let answer = async {
        let asked = api.asked(&headers, &uri)?;
        if tag.is_empty() {
            return Err(ApiError::bad_request("please provide a non-empty tagName"));
        }
        let fixed: Option<&[&str]> = match tag {
            "status.code" => Some(&["unset", "ok", "error"]),
            "error" => Some(&["true"]),
            _ => None,
        };
        let (tag_values, inspected_bytes) = match fixed {
            Some(values) => (values.iter().map(|value| (*value).to_owned()).collect(), 0),
            None => {
                let tags = api.values(&asked, TagName::Attribute { scope: None, name: tag.to_owned() }, false).await?;
                let mut values: Vec<String> = tags.groups.into_values().flatten().collect();
                values.sort();
                values.dedup();
                (values, tags.inspected_bytes)
            }
        };
        Ok(asked.format.show(&proto::SearchTagValuesResponse { tag_values, metrics: Some(metadata(inspected_bytes)) }))
    };
    named(answer.await.into_response(), &api, "/api/search/tag/{tagName}/values")
}

async fn values_v2(State(api): State<Arc<Api>>, Path(rest): Path<String>, uri: Uri, headers: HeaderMap) -> Response {
    let Some(tag) = tag_of(&rest) else {
        return not_found();
    };
    let answer = async {
        let asked = api.asked(&headers, &uri)?;
        if tag.is_empty() {
            return Err(ApiError::bad_request("please provide a non-empty tagName"));
        }
        let unknown = || ApiError::bad_request(format!("please provide a valid tagName: failed to parse identifier {tag}"));
        let name = TagName::parse(tag).ok_or_else(unknown)?;
        let tags = api.values(&asked, name, true).await?;
        let of_type = |(kind, values): (&str, std::collections::BTreeSet<String>)| {
            let kind = kind.to_owned();
            values.into_iter().map(move |value| proto::TagValue { r#type: kind.clone(), value }).collect::<Vec<_>>()
        };
        let tag_values = tags.groups.into_iter().flat_map(of_type).collect();
        Ok(asked.format.show(&proto::SearchTagValuesV2Response { tag_values, metrics: Some(metadata(tags.inspected_bytes)) }))
    };
    named(answer.await.into_response(), &api, "/api/v2/search/tag/{tagName}/values")
}

/// The tag of a path that ends in `/values`.
fn tag_of(rest: &str) -> Option<&str> {
    rest.strip_suffix("/values").or((rest == "values").then_some(""))
}

fn not_found() -> Response {
    let mut response = ApiError::early(StatusCode::NOT_FOUND, "404 page not found").into_response();
    response.extensions_mut().insert(RouteName("notfound".to_owned()));
    response
}

fn named(mut response: Response, api: &Api, template: &str) -> Response {
    let name = crate::metrics::route_name(&format!("{}{template}", api.settings.http_api_prefix));
    response.extensions_mut().insert(RouteName(name));
    response
}

fn metadata(inspected_bytes: u64) -> proto::MetadataMetrics {
    proto::MetadataMetrics { inspected_bytes, ..proto::MetadataMetrics::default() }
}

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/protobuf";

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Protobuf,
}

impl Format {
    /// What `Accept` names first by Tempo's order, which is not that of the header.
    fn of(headers: &HeaderMap) -> Self {
        let mut accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        if accepted.any(|value| value.contains(PROTOBUF)) { Self::Protobuf } else { Self::Json }
    }

    fn show<M: Message + ToJson>(self, message: &M) -> Response {
        match self {
            Self::Json => with_type(message.to_json(), JSON),
            Self::Protobuf => with_type(message.encode_to_vec(), PROTOBUF),
        }
    }
}

fn with_type(body: Vec<u8>, content_type: &'static str) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
