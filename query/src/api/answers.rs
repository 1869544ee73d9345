//! From a question to the message that answers it, whatever protocol carries either.
//!
//! ```text
//!  HTTP: URL, headers ──┐                                               ┌──► JSON, protobuf, LLM text
//!                       ├─► Asked (tenants, parameters) ─► Api ─► message
//!  gRPC: request ───────┘                                               └──► packets of a stream
//! ```
//!
//! A gRPC request is read as the parameters of the URL that asks the same, as Tempo does it: so both protocols check the same things in the
//! same order and refuse with the same words.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{extract::Query, http::Uri};
use futures::{StreamExt as _, stream::BoxStream};
use http::HeaderMap;
use opentelemetry_proto::tonic::trace::v1::TracesData;
use storage::id::Tenant;

use super::{
    ApiSettings,
    error::ApiError,
    params::{self, Params, ScopeParam},
    tenant::{self, Tenancy},
};
use crate::{
    engine::{self, Engine, FoundTrace, NamesRequest, QueryError, SearchRequest, Streaming, TagName, TimeRange, ValuesRequest},
    metrics::{Op, Running},
    proto, traceql,
};

/// Shortest time between two pieces of an answer, as in Tempo.
pub(crate) const DIFFERENCES: Duration = Duration::from_millis(500);

/// An answer in pieces.
pub(crate) type Messages<M> = BoxStream<'static, Result<M, ApiError>>;

/// The query API without a protocol.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) engine: Arc<Engine>,
    pub(crate) settings: ApiSettings,
}

/// What every query needs to know of its request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Whose data, at least one.
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) params: Params,
}

impl Api {
    pub(crate) fn tenancy(&self) -> Tenancy {
        Tenancy { enabled: self.settings.multitenancy_enabled, federation: self.settings.multi_tenant_queries_enabled }
    }

    /// What an HTTP request asks for.
    pub(crate) fn asked(&self, headers: &HeaderMap, uri: &Uri) -> Result<Asked, ApiError> {
        let tenants = self.tenancy().tenants(headers)?;
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|error| ApiError::bad_request(error.to_string()))?;
        Ok(Asked { tenants, params: Params::new(pairs) })
    }

    /// Refuses what the operator has forbidden.
    pub(crate) fn check_url(&self, url: &str) -> Result<(), ApiError> {
        if self.settings.url_deny_list.iter().any(|denied| denied.is_match(url)) {
            return Err(ApiError::bad_request(format!(
                "Invalid request {url}. This query has been identified as one that destabilizes our system. Contact your system administrator \
                 for more information"
            )));
        }
        Ok(())
    }

    pub(crate) fn now(&self) -> Duration {
        self.engine.clock().now()
    }

    fn range(&self, asked: &Asked) -> Result<Option<TimeRange>, ApiError> {
        let range = params::range(&asked.params, self.now(), self.settings.query_end_cutoff)?;
        for tenant in &asked.tenants {
            params::check_range(range, self.engine.limits(tenant).max_search_duration, self.settings.max_search_duration)?;
        }
        Ok(range)
    }

    fn running(&self, tenants: &[Tenant], op: Op) -> Running {
        self.engine.metrics().running(&tenant::label(tenants), op, self.settings.slos.of(op))
    }

    /// A query that is refused before it runs counts, too.
    pub(super) fn checked<T>(&self, asked: &Asked, op: Op, request: Result<T, ApiError>) -> Result<T, ApiError> {
        request.inspect_err(|_| self.running(&asked.tenants, op).completed(Some(0)))
    }

    /// Runs a query and counts it.
    pub(crate) async fn count<T>(
        &self,
        tenants: &[Tenant],
        op: Op,
        bytes: impl FnOnce(&T) -> u64,
        query: impl Future<Output = Result<T, QueryError>>,
    ) -> Result<T, ApiError> {
        let running = self.running(tenants, op);
        let result = query.await.map_err(ApiError::from);
        self.ended(running, tenants, op, result.as_ref().map(bytes));
        result
    }

    /// Counts a query whose answer comes in pieces. `bytes` are those that it has read until then.
    pub(crate) fn count_stream<T: Send + 'static>(
        self: &Arc<Self>,
        tenants: Vec<Tenant>,
        op: Op,
        bytes: fn(&T) -> u64,
        messages: Streaming<T>,
    ) -> BoxStream<'static, Result<T, ApiError>> {
        let running = Some(self.running(&tenants, op));
        let api = Arc::clone(self);
        let next = move |(mut messages, mut running, mut read): (Streaming<T>, Option<Running>, u64)| {
            let (api, tenants) = (Arc::clone(&api), tenants.clone());
            async move {
                let message = messages.next().await.map(|message| message.map_err(ApiError::from));
                match &message {
                    Some(Ok(message)) => read = bytes(message),
                    Some(Err(error)) => running.take().into_iter().for_each(|running| api.ended(running, &tenants, op, Err(error))),
                    None => running.take().into_iter().for_each(|running| api.ended(running, &tenants, op, Ok(read))),
                }
                message.map(|message| (message, (messages, running, read)))
            }
        };
        futures::stream::unfold((messages, running, 0), next).boxed()
    }

    /// Counts the end of a query, and the bytes that it has read.
    fn ended(&self, running: Running, tenants: &[Tenant], op: Op, outcome: Result<u64, &ApiError>) {
        match outcome {
            Ok(bytes) => {
                running.completed(Some(bytes));
                self.engine.metrics().inspected(&tenant::label(tenants), op, bytes);
            }
            // What the client did wrong is within any objective.
            Err(error) => running.completed((error.status().as_u16() < 500).then_some(0)),
        }
    }

    /// A trace as it was found, perhaps cut.
    pub(crate) async fn find(&self, asked: &Asked, id: &str) -> Result<FoundTrace, ApiError> {
        let request = self.checked(asked, Op::Traces, params::trace(id, &asked.params))?;
        let query = self.engine.trace(&asked.tenants, request);
        self.count(&asked.tenants, Op::Traces, |found| found.inspected_bytes, query).await
    }

    /// Answers `/api/v2/traces/{traceID}`.
    pub(crate) async fn trace(&self, asked: &Asked, id: &str) -> Result<proto::TraceByIdResponse, ApiError> {
        let found = self.find(asked, id).await?;
        Ok(show_trace(found))
    }

    /// Answers `/api/search`.
    pub(crate) async fn search(&self, asked: &Asked) -> Result<proto::SearchResponse, ApiError> {
        let request = self.checked(asked, Op::Search, self.search_request(asked))?;
        self.count(&asked.tenants, Op::Search, search_bytes, self.engine.search(&asked.tenants, request)).await
    }

    /// Answers a search in pieces: what was found since the last one, and all of it at the end.
    pub(crate) fn search_stream(self: &Arc<Self>, asked: Asked) -> BoxStream<'static, Result<proto::SearchResponse, ApiError>> {
        match self.checked(&asked, Op::Search, self.search_request(&asked)) {
            Ok(request) => {
                let messages = self.engine.search_stream(asked.tenants.clone(), request, DIFFERENCES);
                self.count_stream(asked.tenants, Op::Search, search_bytes, messages)
            }
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
        }
    }

    fn search_request(&self, asked: &Asked) -> Result<SearchRequest, ApiError> {
        let mut request = params::search(&asked.params, &self.settings)?;
        request.range = self.range(asked)?;
        Ok(request)
    }

    /// Answers `/api/search/tags`.
    pub(crate) async fn tag_names(&self, asked: &Asked) -> Result<proto::SearchTagsResponse, ApiError> {
        let (scope, query) = self.checked(asked, Op::Metadata, self.names_query(asked, false))?;
        let tags = self.names(asked, query).await?;
        Ok(show_names(scope, asked.params.lenient("limit"), tags))
    }

    /// Answers `/api/search/tags` in pieces: what was found since the last one, and all of it at the end.
    pub(crate) fn tag_names_stream(self: &Arc<Self>, asked: Asked) -> Messages<proto::SearchTagsResponse> {
        let limit = asked.params.lenient("limit");
        self.names_stream(asked, false, move |scope, tags| show_names(scope, limit, tags))
    }

    /// Answers `/api/v2/search/tags`.
    pub(crate) async fn tag_names_by_scope(&self, asked: &Asked) -> Result<proto::SearchTagsV2Response, ApiError> {
        let (scope, query) = self.checked(asked, Op::Metadata, self.names_query(asked, true))?;
        let tags = self.names(asked, query).await?;
        Ok(show_names_by_scope(scope, tags))
    }

    /// Answers `/api/v2/search/tags` in pieces.
    pub(crate) fn tag_names_by_scope_stream(self: &Arc<Self>, asked: Asked) -> Messages<proto::SearchTagsV2Response> {
        self.names_stream(asked, true, show_names_by_scope)
    }

    /// What names are asked for; nothing beside those that are known without looking, if the scope says so.
    pub(super) fn names_query(&self, asked: &Asked, with_filter: bool) -> Result<(ScopeParam, Option<NamesRequest>), ApiError> {
        let scope = params::scope(&asked.params)?;
        let range = self.range(asked)?;
        let only = match scope {
            ScopeParam::Intrinsic | ScopeParam::Trace => return Ok((scope, None)),
            ScopeParam::All => None,
            ScopeParam::Only(scope) => Some(scope),
        };
        let filter = if with_filter { self.filter(asked, 1)? } else { None };
        let (max_per_scope, max_stale) = (asked.params.lenient("limit"), asked.params.lenient("maxStaleValues"));
        Ok((scope, Some(NamesRequest { scope: only, filter, range, max_per_scope, max_stale })))
    }

    pub(super) async fn names(&self, asked: &Asked, query: Option<NamesRequest>) -> Result<engine::Tags, ApiError> {
        let Some(query) = query else { return Ok(nothing()) };
        let query = self.engine.tag_names(&asked.tenants, query);
        self.count(&asked.tenants, Op::Metadata, |tags| tags.inspected_bytes, query).await
    }

    fn names_stream<M: Send + 'static>(
        self: &Arc<Self>,
        asked: Asked,
        with_filter: bool,
        show: impl Fn(ScopeParam, engine::Tags) -> M + Send + 'static,
    ) -> Messages<M> {
        match self.checked(&asked, Op::Metadata, self.names_query(&asked, with_filter)) {
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
            Ok((scope, None)) => futures::stream::iter([Ok(show(scope, nothing()))]).boxed(),
            Ok((scope, Some(query))) => {
                let messages = self.engine.tag_names_stream(asked.tenants.clone(), query, DIFFERENCES);
                let messages = self.count_stream(asked.tenants, Op::Metadata, |tags| tags.inspected_bytes, messages);
                messages.map(move |message| message.map(|tags| show(scope, tags))).boxed()
            }
        }
    }

    /// Answers `/api/search/tag/{tag}/values`.
    pub(crate) async fn tag_values(&self, asked: &Asked, tag: &str) -> Result<proto::SearchTagValuesResponse, ApiError> {
        match known_values(tag)? {
            Some(known) => Ok(known),
            None => {
                let query = self.checked(asked, Op::Metadata, self.values_query(asked, untyped(tag), None))?;
                Ok(show_values(self.values(asked, query).await?))
            }
        }
    }

    /// Answers `/api/search/tag/{tag}/values` in pieces.
    pub(crate) fn tag_values_stream(self: &Arc<Self>, asked: Asked, tag: &str) -> Messages<proto::SearchTagValuesResponse> {
        match known_values(tag) {
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
            Ok(Some(known)) => futures::stream::iter([Ok(known)]).boxed(),
            Ok(None) => {
                let query = self.values_query(&asked, untyped(tag), None);
                self.values_stream(asked, query, show_values)
            }
        }
    }

    /// Answers `/api/v2/search/tag/{tag}/values`.
    pub(crate) async fn typed_tag_values(&self, asked: &Asked, tag: &str) -> Result<proto::SearchTagValuesV2Response, ApiError> {
        let query = self.checked(asked, Op::Metadata, self.typed_values_query(asked, tag))?;
        Ok(show_typed_values(self.values(asked, query).await?))
    }

    /// Answers `/api/v2/search/tag/{tag}/values` in pieces.
    pub(crate) fn typed_tag_values_stream(self: &Arc<Self>, asked: Asked, tag: &str) -> Messages<proto::SearchTagValuesV2Response> {
        let query = self.typed_values_query(&asked, tag);
        self.values_stream(asked, query, show_typed_values)
    }

    fn typed_values_query(&self, asked: &Asked, tag: &str) -> Result<ValuesRequest, ApiError> {
        if tag.is_empty() {
            return Err(ApiError::bad_request("please provide a non-empty tagName"));
        }
        let unknown = || ApiError::bad_request(format!("please provide a valid tagName: failed to parse identifier {tag}"));
        let name = TagName::parse(tag).ok_or_else(unknown)?;
        // An attribute without scope is looked for as one of a span and as one of a resource.
        let groups = if matches!(name, TagName::Attribute { scope: None, .. }) { 2 } else { 1 };
        let filter = self.filter(asked, groups)?;
        self.values_query(asked, name, filter)
    }

    fn values_query(&self, asked: &Asked, tag: TagName, filter: Option<traceql::Filter>) -> Result<ValuesRequest, ApiError> {
        let range = self.range(asked)?;
        let (max_values, max_stale) = (asked.params.lenient("limit"), asked.params.lenient("maxStaleValues"));
        Ok(ValuesRequest { tag, filter, range, max_values, max_stale })
    }

    async fn values(&self, asked: &Asked, query: ValuesRequest) -> Result<engine::Tags, ApiError> {
        let query = self.engine.tag_values(&asked.tenants, query);
        self.count(&asked.tenants, Op::Metadata, |tags| tags.inspected_bytes, query).await
    }

    fn values_stream<M: Send + 'static>(
        self: &Arc<Self>,
        asked: Asked,
        query: Result<ValuesRequest, ApiError>,
        show: fn(engine::Tags) -> M,
    ) -> Messages<M> {
        match self.checked(&asked, Op::Metadata, query) {
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
            Ok(query) => {
                let messages = self.engine.tag_values_stream(asked.tenants.clone(), query, DIFFERENCES);
                let messages = self.count_stream(asked.tenants, Op::Metadata, |tags| tags.inspected_bytes, messages);
                messages.map(move |message| message.map(show)).boxed()
            }
        }
    }

    /// The filter of a tag query, each of whose alternatives counts `weight` times.
    fn filter(&self, asked: &Asked, weight: usize) -> Result<Option<traceql::Filter>, ApiError> {
        let filter = params::tag_filter(&asked.params, self.settings.max_query_bytes);
        let limit = self.settings.max_condition_groups;
        if limit > 0 && filter.as_ref().is_some_and(|filter| filter.condition_groups().saturating_mul(weight) > limit) {
            return Err(ApiError::bad_request(format!(
                "maximum condition groups reached (limit: {limit}). Reduce the number of OR conditions in the query"
            )));
        }
        Ok(filter)
    }
}

/// A trace, and why it is not whole, if it isn't.
pub(super) fn show_trace(found: FoundTrace) -> proto::TraceByIdResponse {
    let (status, message) = if found.truncated {
        let message = format!("Trace exceeds maximum size of {} bytes, a partial trace is returned", found.max_bytes);
        (proto::PartialStatus::Partial, message)
    } else if found.incomplete {
        (proto::PartialStatus::Partial, format!("Recent spans may be missing: {}", engine::INCOMPLETE))
    } else {
        (proto::PartialStatus::Complete, String::new())
    };
    proto::TraceByIdResponse {
        trace: Some(TracesData { resource_spans: found.resource_spans }),
        metrics: Some(proto::TraceByIdMetrics { inspected_bytes: found.inspected_bytes }),
        status: status.into(),
        message,
    }
}

/// Nothing was looked for.
fn nothing() -> engine::Tags {
    engine::Tags { is_whole: true, ..engine::Tags::default() }
}

pub(super) fn show_names(scope: ScopeParam, limit: usize, tags: engine::Tags) -> proto::SearchTagsResponse {
    let mut tag_names: Vec<String> = match scope {
        ScopeParam::Intrinsic => intrinsics(),
        ScopeParam::All | ScopeParam::Only(_) | ScopeParam::Trace => tags.groups.into_values().flatten().collect(),
    };
    tag_names.sort();
    tag_names.dedup();
    // Which ones are kept is known at the end only.
    let limit = match limit {
        0 => usize::MAX,
        _ if !tags.is_whole => 0,
        limit => limit,
    };
    tag_names.truncate(limit);
    proto::SearchTagsResponse { tag_names, metrics: metadata(tags.inspected_bytes) }
}

pub(super) fn show_names_by_scope(scope: ScopeParam, tags: engine::Tags) -> proto::SearchTagsV2Response {
    let group = |name: &str, tags: Vec<String>| proto::SearchTagsV2Scope { name: name.to_owned(), tags };
    let mut scopes: Vec<_> = tags.groups.into_iter().map(|(scope, names)| group(scope, names.into_iter().collect())).collect();
    if tags.is_whole && matches!(scope, ScopeParam::All | ScopeParam::Intrinsic) {
        scopes.push(group("intrinsic", intrinsics()));
    }
    proto::SearchTagsV2Response { scopes, metrics: metadata(tags.inspected_bytes) }
}

fn untyped(tag: &str) -> TagName {
    TagName::Attribute { scope: None, name: tag.to_owned() }
}

/// The values of tags that are none.
fn known_values(tag: &str) -> Result<Option<proto::SearchTagValuesResponse>, ApiError> {
    let known: &[&str] = match tag {
        "" => return Err(ApiError::bad_request("please provide a non-empty tagName")),
        "status.code" => &["unset", "ok", "error"],
        "error" => &["true"],
        _ => return Ok(None),
    };
    let tag_values = known.iter().map(|value| (*value).to_owned()).collect();
    Ok(Some(proto::SearchTagValuesResponse { tag_values, metrics: metadata(0) }))
}

fn show_values(tags: engine::Tags) -> proto::SearchTagValuesResponse {
    let values: BTreeSet<String> = tags.groups.into_values().flatten().collect();
    proto::SearchTagValuesResponse { tag_values: values.into_iter().collect(), metrics: metadata(tags.inspected_bytes) }
}

fn show_typed_values(tags: engine::Tags) -> proto::SearchTagValuesV2Response {
    let of_type = |(kind, values): (&'static str, BTreeSet<String>)| {
        values.into_iter().map(move |value| proto::TagValue { r#type: kind.to_owned(), value })
    };
    let tag_values = tags.groups.into_iter().flat_map(of_type).collect();
    proto::SearchTagValuesV2Response { tag_values, metrics: metadata(tags.inspected_bytes) }
}

fn search_bytes(answer: &proto::SearchResponse) -> u64 {
    answer.metrics.as_ref().map_or(0, |metrics| metrics.inspected_bytes)
}

fn intrinsics() -> Vec<String> {
    engine::INTRINSICS.into_iter().map(str::to_owned).collect()
}

fn metadata(inspected_bytes: u64) -> Option<proto::MetadataMetrics> {
    Some(proto::MetadataMetrics { inspected_bytes, ..proto::MetadataMetrics::default() })
}
