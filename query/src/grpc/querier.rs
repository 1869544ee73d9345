//! `tempopb.Querier` and `tempopb.Metrics`: what queriers of Tempo ask a process that takes spans in.
//!
//! Answers are about the recent data of the process, and about the blocks that it became lately: whoever asks may not have heard of those. Our
//! own queriers ask by `rubato.Recent`, which tells the two apart.

use std::{sync::Arc, time::Duration};

use opentelemetry_proto::tonic::trace::v1::TracesData;
use storage::id::{Tenant, TraceId};
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{milliseconds, names_params, number, params, status, values_params};
use crate::{
    api::{
        ApiSettings,
        answers::{Api, Asked},
        error::ApiError,
        params::{self as parameters, Params},
    },
    engine::{Engine, QueryError},
    job::{Answer, Job, TraceJob},
    proto::{
        self,
        metrics_server::{Metrics, MetricsServer},
        querier_server::{Querier, QuerierServer},
    },
    traceql_metrics::MetricsRequest,
};

/// The service. See the module documentation.
#[derive(Debug)]
pub struct RecentQueries {
    api: Arc<Api>,
}

/// The service over an engine that has recent data and lists no blocks.
pub fn recent_querier(engine: Arc<Engine>, settings: ApiSettings) -> QuerierServer<RecentQueries> {
    QuerierServer::new(recent_queries(engine, settings))
}

/// The service for metrics queries over such an engine.
pub fn recent_metrics(engine: Arc<Engine>, settings: ApiSettings) -> MetricsServer<RecentQueries> {
    MetricsServer::new(recent_queries(engine, settings))
}

pub(crate) fn recent_queries(engine: Arc<Engine>, settings: ApiSettings) -> RecentQueries {
    // What is hidden is decided by whoever asks.
    let settings = ApiSettings { query_end_cutoff: Duration::ZERO, ..settings };
    RecentQueries { api: Arc::new(Api { engine, settings }) }
}

impl RecentQueries {
    fn tenants(&self, metadata: &MetadataMap) -> Result<Vec<Tenant>, Status> {
        self.api.tenancy().tenants_of_call(metadata)
    }

    fn asked(&self, metadata: &MetadataMap, params: Params) -> Result<Asked, Status> {
        Ok(Asked { tenants: self.tenants(metadata)?, params })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
fn refused(error: ApiError) -> Status {
    status::of(&error)
}

fn failed(error: QueryError) -> Status {
    refused(error.into())
}

/// An id of up to 16 bytes.
fn trace_id(bytes: &[u8]) -> Result<TraceId, Status> {
    let mut id = [0; 16];
    let start = id.len().checked_sub(bytes.len()).ok_or_else(|| Status::invalid_argument("trace IDs can't be larger than 128 bits"))?;
    id[start..].copy_from_slice(bytes);
    Ok(TraceId(id))
}

#[tonic::async_trait]
impl Querier for RecentQueries {
    async fn find_trace_by_id(&self, request: Request<proto::TraceByIdRequest>) -> Result<Response<proto::TraceByIdResponse>, Status> {
        let id = trace_id(&request.get_ref().trace_id)?;
        let mut answer =
            proto::TraceByIdResponse { metrics: Some(proto::TraceByIdMetrics::default()), ..proto::TraceByIdResponse::default() };
        let mut trace = TracesData::default();
        for tenant in self.tenants(request.metadata())? {
            let max_bytes = self.api.engine.limits(&tenant).max_bytes_per_trace;
            let query = self.api.engine.begin(self.api.engine.settings().trace_timeout);
            let found = query.run(&tenant, Job::Trace(TraceJob { id, blocks: None, max_bytes })).await.map_err(failed)?;
            let Answer::Trace(found) = found else { return Err(failed(crate::engine::wrong_kind())) };
            if found.truncated {
                if !request.get_ref().allow_partial_trace {
                    return Err(failed(QueryError::TraceTooLarge { max_bytes }));
                }
                answer.status = proto::PartialStatus::Partial.into();
                answer.message = format!("Trace exceeds maximum size of {max_bytes} bytes, a partial trace is returned");
            }
            trace.resource_spans.extend(found.resource_spans);
        }
        answer.trace = (!trace.resource_spans.is_empty()).then_some(trace);
        Ok(Response::new(answer))
    }

    async fn search_recent(&self, request: Request<proto::SearchRequest>) -> Result<Response<proto::SearchResponse>, Status> {
        let asked = request.get_ref();
        let params = params([
            ("q", asked.query.clone()),
            ("tags", crate::engine::LegacyTags::print(&asked.tags)),
            ("minDuration", milliseconds(asked.min_duration_ms)),
            ("maxDuration", milliseconds(asked.max_duration_ms)),
            ("limit", number(asked.limit)),
            ("start", number(asked.start)),
            ("end", number(asked.end)),
            ("spss", number(asked.spans_per_span_set)),
        ]);
        let asked = self.asked(request.metadata(), params)?;
        self.api.search(&asked).await.map(Response::new).map_err(refused)
    }

    async fn search_block(&self, _request: Request<proto::SearchBlockRequest>) -> Result<Response<proto::SearchResponse>, Status> {
        Err(Status::unknown("SearchBlock not implemented in livestore"))
    }

    async fn search_tags(&self, request: Request<proto::SearchTagsRequest>) -> Result<Response<proto::SearchTagsResponse>, Status> {
        let asked = self.asked(request.metadata(), names_params(request.get_ref()))?;
        self.api.tag_names(&asked).await.map(Response::new).map_err(refused)
    }

    async fn search_tags_v2(&self, request: Request<proto::SearchTagsRequest>) -> Result<Response<proto::SearchTagsV2Response>, Status> {
        let asked = self.asked(request.metadata(), names_params(request.get_ref()))?;
        self.api.tag_names_by_scope(&asked).await.map(Response::new).map_err(refused)
    }

    async fn search_tag_values(
        &self,
        request: Request<proto::SearchTagValuesRequest>,
    ) -> Result<Response<proto::SearchTagValuesResponse>, Status> {
        let asked = self.asked(request.metadata(), values_params(request.get_ref()))?;
        self.api.tag_values(&asked, &request.get_ref().tag_name).await.map(Response::new).map_err(refused)
    }

    async fn search_tag_values_v2(
        &self,
        request: Request<proto::SearchTagValuesRequest>,
    ) -> Result<Response<proto::SearchTagValuesV2Response>, Status> {
        let asked = self.asked(request.metadata(), values_params(request.get_ref()))?;
        self.api.typed_tag_values(&asked, &request.get_ref().tag_name).await.map(Response::new).map_err(refused)
    }
}

#[tonic::async_trait]
impl Metrics for RecentQueries {
    /// Series of recent data as parts of an answer: whoever asks adds them to those of blocks, and finishes them.
    async fn query_range(&self, request: Request<proto::QueryRangeRequest>) -> Result<Response<proto::QueryRangeResponse>, Status> {
        let tenants = self.tenants(request.metadata())?;
        let asked = request.get_ref();
        super::required(asked.start, asked.end)?;
        if asked.step == 0 {
            return Err(Status::unknown("step required"));
        }
        let settings = &self.api.settings;
        parameters::check_query_size(&asked.query, settings.max_query_bytes).map_err(refused)?;
        let request =
            MetricsRequest::part_from_proto(asked, settings.metrics).map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.api.engine.query_part(&tenants, Arc::new(request)).await.map(Response::new).map_err(failed)
    }
}
