//! What a querier answers below `/querier`: the jobs that Tempo's query-frontend cuts queries into.
//!
//! ```text
//!  blockID, startPage, pagesToSearch ─► some row groups of one block ─┐
//!  no blockID, mode=recent            ─► recent data                  ├─► Engine::about(Part) ─► a part of the answer
//!  mode=blocks, blockStart, blockEnd  ─► blocks between two ids      ─┘
//! ```
//!
//! Answers are parts: whoever asks puts them together, so that intrinsics are not added to names of tags, metrics are not finished, spans with
//! shared ids stay as they are, and jobs and blocks are not counted. What the parameters say of a block (`size`, `footerSize`, `dc`, …) must
//! make sense but is not believed: the block is read by its own description, which is shared with queries that know better.

use std::{ops::RangeInclusive, sync::Arc};

use axum::{
    Router,
    extract::{Path, State},
    http::Uri,
    middleware,
    response::{IntoResponse, Response},
    routing::any,
};
use http::{HeaderMap, StatusCode, header};
use prost::Message;
use storage::{
    backend::Store,
    id::{BlockId, Tenant},
};

use super::{
    ApiSettings,
    answers::{self, Api, Asked},
    compress,
    error::ApiError,
    format::{Format, PROTOBUF},
    handlers::{named, not_found, tag_of},
    json::ToJson,
    metrics,
    params::{self, Params, ScopeParam},
};
use crate::{
    engine::{Engine, FoundTrace, QueryError, part::Part},
    job::BlockPart,
    proto,
};

/// The API of a querier.
#[derive(Debug)]
struct Querier {
    /// Over all data.
    api: Api,
    store: Store,
}

/// The routes below `/querier`, which answer jobs of Tempo's query-frontend, for one tenant each. Blocks that the engine's list lacks are
/// looked up in the store.
///
/// # Errors
/// None in practice: metrics are registered where nobody looks.
pub fn querier_router(engine: &Engine, store: Store, settings: &ApiSettings) -> prometheus::Result<Router> {
    let prefix = match settings.http_api_prefix.trim_matches('/') {
        "" => "/querier".to_owned(),
        prefix => format!("/querier/{prefix}"),
    };
    // What may be asked for was decided before the query was cut.
    let settings = ApiSettings {
        http_api_prefix: prefix.clone(),
        multi_tenant_queries_enabled: false,
        url_deny_list: Vec::new(),
        max_result_limit: 0,
        max_spans_per_spanset: 0,
        max_search_duration: std::time::Duration::ZERO,
        query_end_cutoff: std::time::Duration::ZERO,
        ..settings.clone()
    };
    let api = Api { engine: Arc::new(engine.uncounted()?), settings };
    let path = |path: &str| format!("{prefix}{path}");
    Ok(Router::new()
        .route(&path("/api/traces/{traceID}"), any(trace_v1))
        .route(&path("/api/v2/traces/{traceID}"), any(trace_v2))
        .route(&path("/api/search"), any(search))
        .route(&path("/api/metrics/query_range"), any(query_range))
        .route(&path("/api/search/tags"), any(tags_v1))
        .route(&path("/api/v2/search/tags"), any(tags_v2))
        .route(&path("/api/search/tag/{*rest}"), any(values_v1))
        .route(&path("/api/v2/search/tag/{*rest}"), any(values_v2))
        .layer(middleware::from_fn(compress::gzip))
        .with_state(Arc::new(Querier { api, store })))
}

impl Querier {
    fn asked(&self, headers: &HeaderMap, uri: &Uri) -> Result<(Tenant, Asked), ApiError> {
        let asked = self.api.asked(headers, uri)?;
        let tenant = asked.tenants.first().cloned().ok_or_else(|| ApiError::early(StatusCode::UNAUTHORIZED, "no org id"))?;
        Ok((tenant, asked))
    }

    fn about(&self, part: Part) -> Api {
        Api { engine: Arc::new(self.api.engine.about(part)), settings: self.api.settings.clone() }
    }

    /// What a search or tag query is about: row groups of a block, or recent data.
    async fn searched(&self, tenant: &Tenant, params: &Params, records: Records) -> Result<Api, ApiError> {
        let part = match pages(params, records)? {
            Some(pages) => Part::RowGroups(self.block(tenant, pages).await?),
            None => Part::Recent,
        };
        Ok(self.about(part))
    }

    /// The block of a job, by its own description.
    async fn block(&self, tenant: &Tenant, pages: Pages) -> Result<BlockPart, ApiError> {
        let Pages { block, first, number } = pages;
        let row_groups = first..first.saturating_add(number);
        if let Some(meta) = self.api.engine.listed(tenant, block) {
            return Ok(BlockPart { meta, row_groups });
        }
        let failed = |text: String| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, text);
        let meta = self.store.meta(tenant, block).await.map_err(|error| failed(error.to_string()))?;
        let meta = meta.ok_or_else(|| failed(format!("block \"{block}\" of tenant \"{tenant}\" does not exist")))?;
        Ok(BlockPart { meta: Arc::new(meta), row_groups })
    }

    async fn trace(&self, headers: &HeaderMap, uri: &Uri, id: &str) -> Result<FoundTrace, ApiError> {
        let (tenant, asked) = self.asked(headers, uri)?;
        let request = params::trace(id, &asked.params)?;
        let engine = match asked.params.get("mode") {
            Some("ingesters") => self.api.engine.about(Part::Recent),
            Some("blocks") => self.api.engine.about(Part::Blocks(block_ids(&asked.params)?)),
            Some("external") => return Ok(self.api.engine.external_trace(&tenant, request).await?),
            _ => self.api.engine.about(Part::RecentAndBlocks(block_ids(&asked.params)?)),
        };
        Ok(engine.stored_trace(&asked.tenants, request).await?)
    }
}

/// Which row groups a job is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pages {
    block: BlockId,
    first: u32,
    number: u32,
}

/// Whether a job on a block says how long the index of the block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Records {
    Given,
    /// Jobs of metrics queries do not, and may be about blocks without an end.
    Absent,
}

/// The row groups of a job; nothing if it is none on a block.
fn pages(params: &Params, records: Records) -> Result<Option<Pages>, ApiError> {
    let refuse = |text: String| Err(ApiError::bad_request(text));
    let Some(block) = params.get("blockID") else { return Ok(None) };
    if records == Records::Given && (params.lenient("start") == 0 || params.lenient("end") == 0) {
        return refuse("start and end required".to_owned());
    }
    let text = |name: &str| params.get(name).unwrap_or_default();
    let integer = |name: &str| {
        let text = text(name);
        let wrong = |_| ApiError::bad_request(format!("invalid {name}: parsing {text:?}: {}", params::number_error(text)));
        text.parse::<i64>().map_err(wrong)
    };
    let first = integer("startPage")?;
    let Ok(first) = u32::try_from(first) else {
        return refuse(format!("startPage must be non-negative. received: {first}"));
    };
    let number = integer("pagesToSearch")?;
    let Some(number) = u32::try_from(number).ok().filter(|number| *number > 0) else {
        return refuse(format!("pagesToSearch must be greater than 0. received: {number}"));
    };
    let block = BlockId::try_parse(block).map_err(|error| ApiError::bad_request(format!("invalid blockID: {error}")))?;
    let size = |name: &str, required: bool| {
        let text = text(name);
        if text.is_empty() && !required {
            return Ok(0);
        }
        let wrong = |_| ApiError::bad_request(format!("invalid {name} {text}: parsing {text:?}: {}", params::number_error(text)));
        text.parse::<u64>().map_err(wrong)
    };
    if records == Records::Given {
        size("indexPageSize", true)?;
        let total = integer("totalRecords")?;
        if total <= 0 {
            return refuse(format!("totalRecords must be greater than 0. received {total}"));
        }
        if text("version").is_empty() {
            return refuse("version required".to_owned());
        }
    }
    size("size", records == Records::Given)?;
    size("footerSize", records == Records::Given)?;
    if let Some(columns) = params.get("dc") {
        let columns: Result<Vec<serde_json::Map<String, serde_json::Value>>, _> = serde_json::from_str(columns);
        columns.map_err(|error| ApiError::bad_request(format!("invalid dc: {error}")))?;
    }
    Ok(Some(Pages { block, first, number }))
}

/// The blocks that a look-up of a trace is about: all that are not excluded.
fn block_ids(params: &Params) -> Result<RangeInclusive<BlockId>, ApiError> {
    let id = |name: &str, otherwise: BlockId| match params.get(name) {
        Some(text) => BlockId::try_parse(text).map_err(|error| ApiError::bad_request(format!("invalid value for {name}: {error}"))),
        None => Ok(otherwise),
    };
    Ok(id("blockStart", BlockId::nil())?..=id("blockEnd", BlockId::max())?)
}

/// Queriers compare what is accepted exactly.
fn show<M: Message + ToJson>(headers: &HeaderMap, message: &M) -> Response {
    let is_protobuf = headers.get(header::ACCEPT).is_some_and(|value| value.as_bytes() == PROTOBUF.as_bytes());
    if is_protobuf { Format::Protobuf } else { Format::Json }.show(message)
}

async fn trace_v1(State(querier): State<Arc<Querier>>, Path(id): Path<String>, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    let found = querier.trace(&headers, &uri, &id).await?;
    if found.truncated {
        return Err(QueryError::TraceTooLarge { max_bytes: found.max_bytes }.into());
    }
    crate::engine::refuse_incomplete(found.incomplete)?;
    let is_empty = found.resource_spans.is_empty();
    let mut response = show(&headers, &answers::show_trace(found));
    if is_empty {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    Ok(response)
}

async fn trace_v2(State(querier): State<Arc<Querier>>, Path(id): Path<String>, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    Ok(show(&headers, &answers::show_trace(querier.trace(&headers, &uri, &id).await?)))
}

async fn search(State(querier): State<Arc<Querier>>, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    let (tenant, asked) = querier.asked(&headers, &uri)?;
    let mut answer = querier.searched(&tenant, &asked.params, Records::Given).await?.search(&asked).await?;
    answer.metrics = answer.metrics.map(|proto::SearchMetrics { inspected_traces, inspected_bytes, .. }| proto::SearchMetrics {
        inspected_traces,
        inspected_bytes,
        ..proto::SearchMetrics::default()
    });
    Ok(show(&headers, &answer))
}

async fn query_range(State(querier): State<Arc<Querier>>, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    let (tenant, asked) = querier.asked(&headers, &uri)?;
    let request = metrics::part_request(&asked.params, &querier.api.settings)?;
    let part = match (asked.params.get("mode"), pages(&asked.params, Records::Absent)?) {
        (Some("recent"), _) => Part::Recent,
        (_, Some(pages)) => Part::RowGroups(querier.block(&tenant, pages).await?),
        (_, None) => return Err(ApiError::bad_request("invalid blockID: it is required unless mode is recent")),
    };
    let answer = querier.api.engine.about(part).query_part(&asked.tenants, Arc::new(request)).await?;
    Ok(show(&headers, &answer))
}

async fn tags_v1(State(querier): State<Arc<Querier>>, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    let (tenant, asked) = querier.asked(&headers, &uri)?;
    let api = querier.searched(&tenant, &asked.params, Records::Given).await?;
    let (_, query) = api.names_query(&asked, false)?;
    let limit = asked.params.lenient("limit");
    // The scope that shows what was found, and nothing else.
    let answer = answers::show_names(ScopeParam::Trace, limit, api.names(&asked, query).await?);
    Ok(show(&headers, &answer))
}

async fn tags_v2(State(querier): State<Arc<Querier>>, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    let (tenant, asked) = querier.asked(&headers, &uri)?;
    let api = querier.searched(&tenant, &asked.params, Records::Given).await?;
    let (_, query) = api.names_query(&asked, true)?;
    let answer = answers::show_names_by_scope(ScopeParam::Trace, api.names(&asked, query).await?);
    Ok(show(&headers, &answer))
}

async fn values_v1(State(querier): State<Arc<Querier>>, Path(rest): Path<String>, uri: Uri, headers: HeaderMap) -> Response {
    let Some(tag) = tag_of(&rest) else { return not_found() };
    let answer = async {
        let (tenant, asked) = querier.asked(&headers, &uri)?;
        let answer = querier.searched(&tenant, &asked.params, Records::Given).await?.tag_values(&asked, tag).await?;
        Ok::<_, ApiError>(show(&headers, &answer))
    };
    named(answer.await.into_response(), &querier.api, "/api/search/tag/{tagName}/values")
}

async fn values_v2(State(querier): State<Arc<Querier>>, Path(rest): Path<String>, uri: Uri, headers: HeaderMap) -> Response {
    let Some(tag) = tag_of(&rest) else { return not_found() };
    let answer = async {
        let (tenant, asked) = querier.asked(&headers, &uri)?;
        let answer = querier.searched(&tenant, &asked.params, Records::Given).await?.typed_tag_values(&asked, tag).await?;
        Ok::<_, ApiError>(show(&headers, &answer))
    };
    named(answer.await.into_response(), &querier.api, "/api/v2/search/tag/{tagName}/values")
}
