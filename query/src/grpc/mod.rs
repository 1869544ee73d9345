//! `tempopb.StreamingQuerier`: the query API over gRPC, as Grafana streams it.
//!
//! ```text
//!  request ─► tenant (metadata) ─► the same parameters as over HTTP ─► Api ─► messages ─► packets ─► stream
//! ```
//!
//! Twice a second a query tells what is new and will not change any more: traces, names and values that were found, samples of times for
//! which all data were read. The last message of a stream repeats everything, whatever was sent before it. A message that is larger than
//! clients may receive is cut into packets, each with a part of the entries. Dropping the stream, which is what a client that goes away
//! amounts to, drops the query with all its work.

mod packets;
mod querier;
mod status;

use std::{sync::Arc, time::Duration};

use futures::{
    Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use tonic::{Request, Response, Status, metadata::MetadataMap};

#[cfg(test)]
pub(crate) use self::querier::recent_queries;
pub use self::querier::{RecentQueries, recent_metrics, recent_querier};
pub use crate::proto::streaming_querier_server::StreamingQuerierServer;
use crate::{
    api::{
        ApiSettings,
        answers::{Api, Asked},
        error::ApiError,
        params::Params,
        tenant,
    },
    engine::Engine,
    proto::{self, streaming_querier_server::StreamingQuerier},
};
use packets::Packets;

/// A stream of messages.
pub type Messages<M> = BoxStream<'static, Result<M, Status>>;

/// The service. See the module documentation.
#[derive(Debug)]
pub struct StreamingQueries {
    api: Arc<Api>,
}

/// The gRPC service of the engine.
pub fn streaming_querier(engine: Arc<Engine>, settings: ApiSettings) -> StreamingQuerierServer<StreamingQueries> {
    StreamingQuerierServer::new(streaming_queries(engine, settings))
}

pub(crate) fn streaming_queries(engine: Arc<Engine>, settings: ApiSettings) -> StreamingQueries {
    StreamingQueries { api: Arc::new(Api { engine, settings }) }
}

impl StreamingQueries {
    /// Answers what the URL of `path` and `params` would ask for over HTTP.
    fn answer<M, S>(
        &self,
        metadata: &MetadataMap,
        path: &str,
        params: Params,
        run: impl FnOnce(Arc<Api>, Asked) -> S,
    ) -> Result<Response<Messages<M>>, Status>
    where
        M: Packets,
        S: Stream<Item = Result<M, ApiError>> + Send + 'static,
    {
        let tenants = self.api.tenancy().tenants_of_call(metadata)?;
        let settings = &self.api.settings;
        let prefix = settings.http_api_prefix.trim_end_matches('/');
        self.api.check_url(&format!("{prefix}{path}?{}", params.to_query())).map_err(|error| status::of(&error))?;
        let max_bytes = settings.max_packet_bytes;
        let messages = run(Arc::clone(&self.api), Asked { tenants, params }).map(|message| message.map_err(|error| status::of(&error)));
        let packets = move |message: Result<M, Status>| match message {
            Ok(message) => stream::iter(message.packets(max_bytes).into_iter().map(Ok).collect::<Vec<_>>()),
            Err(status) => stream::iter(vec![Err(status)]),
        };
        Ok(Response::new(within(settings.api_timeout, messages.boxed()).flat_map(packets).boxed()))
    }
}

/// A stream that ends with an error when it takes longer than `timeout`; zero means any time.
fn within<M: Send + 'static>(timeout: Duration, messages: Messages<M>) -> Messages<M> {
    if timeout.is_zero() {
        return messages;
    }
    let deadline = tokio::time::Instant::now() + timeout;
    let next = move |messages: Option<Messages<M>>| async move {
        let mut messages = messages?;
        match tokio::time::timeout_at(deadline, messages.next()).await {
            Ok(message) => message.map(|message| (message, Some(messages))),
            Err(_) => Some((Err(Status::deadline_exceeded("context deadline exceeded")), None)),
        }
    };
    stream::unfold(Some(messages), next).boxed()
}

/// Parameters of those fields of a request that are set.
fn params<const N: usize>(fields: [(&str, String); N]) -> Params {
    Params::new(fields.into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| (name.to_owned(), value)).collect())
}

/// A number as a parameter; zero is what an absent field looks like.
fn number(value: u32) -> String {
    if value == 0 { String::new() } else { value.to_string() }
}

/// A number of milliseconds as a parameter.
fn milliseconds(value: u32) -> String {
    if value == 0 { String::new() } else { format!("{value}ms") }
}

fn names_params(request: &proto::SearchTagsRequest) -> Params {
    params([
        ("scope", request.scope.clone()),
        ("q", request.query.clone()),
        ("start", number(request.start)),
        ("end", number(request.end)),
        ("limit", number(request.max_tags_per_scope)),
        ("maxStaleValues", number(request.stale_values_threshold)),
    ])
}

fn values_params(request: &proto::SearchTagValuesRequest) -> Params {
    params([
        ("q", request.query.clone()),
        ("start", number(request.start)),
        ("end", number(request.end)),
        ("limit", number(request.max_tag_values)),
        ("maxStaleValues", number(request.stale_value_threshold)),
    ])
}

#[tonic::async_trait]
impl StreamingQuerier for StreamingQueries {
    type SearchStream = Messages<proto::SearchResponse>;
    type SearchTagsStream = Messages<proto::SearchTagsResponse>;
    type SearchTagsV2Stream = Messages<proto::SearchTagsV2Response>;
    type SearchTagValuesStream = Messages<proto::SearchTagValuesResponse>;
    type SearchTagValuesV2Stream = Messages<proto::SearchTagValuesV2Response>;
    type MetricsQueryRangeStream = Messages<proto::QueryRangeResponse>;
    type MetricsQueryInstantStream = Messages<proto::QueryInstantResponse>;

    async fn search(&self, request: Request<proto::SearchRequest>) -> Result<Response<Self::SearchStream>, Status> {
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
        self.answer(request.metadata(), "/api/search", params, |api, asked| api.search_stream(asked))
    }

    async fn search_tags(&self, request: Request<proto::SearchTagsRequest>) -> Result<Response<Self::SearchTagsStream>, Status> {
        let params = names_params(request.get_ref());
        self.answer(request.metadata(), "/api/search/tags", params, |api, asked| api.tag_names_stream(asked))
    }

    async fn search_tags_v2(&self, request: Request<proto::SearchTagsRequest>) -> Result<Response<Self::SearchTagsV2Stream>, Status> {
        let params = names_params(request.get_ref());
        self.answer(request.metadata(), "/api/v2/search/tags", params, |api, asked| api.tag_names_by_scope_stream(asked))
    }

    async fn search_tag_values(
        &self,
        request: Request<proto::SearchTagValuesRequest>,
    ) -> Result<Response<Self::SearchTagValuesStream>, Status> {
        let tag = request.get_ref().tag_name.clone();
        let params = values_params(request.get_ref());
        let path = format!("/api/search/tag/{tag}/values");
        self.answer(request.metadata(), &path, params, |api, asked| api.tag_values_stream(asked, &tag))
    }

    async fn search_tag_values_v2(
        &self,
        request: Request<proto::SearchTagValuesRequest>,
    ) -> Result<Response<Self::SearchTagValuesV2Stream>, Status> {
        let tag = request.get_ref().tag_name.clone();
        let params = values_params(request.get_ref());
        let path = format!("/api/v2/search/tag/{tag}/values");
        self.answer(request.metadata(), &path, params, |api, asked| api.typed_tag_values_stream(asked, &tag))
    }

    async fn metrics_query_range(
        &self,
        request: Request<proto::QueryRangeRequest>,
    ) -> Result<Response<Self::MetricsQueryRangeStream>, Status> {
        let asked = request.get_ref();
        required(asked.start, asked.end)?;
        let step = if asked.step == 0 { String::new() } else { format!("{}ns", asked.step) };
        let params = params([
            ("q", asked.query.clone()),
            ("start", nanoseconds(asked.start)),
            ("end", nanoseconds(asked.end)),
            ("step", step),
            ("exemplars", number(asked.exemplars)),
            ("maxSeries", number(asked.max_series)),
        ]);
        self.answer(request.metadata(), "/api/metrics/query_range", params, |api, asked| api.query_range_stream(asked))
    }

    async fn metrics_query_instant(
        &self,
        request: Request<proto::QueryInstantRequest>,
    ) -> Result<Response<Self::MetricsQueryInstantStream>, Status> {
        let asked = request.get_ref();
        required(asked.start, asked.end)?;
        let params = params([("q", asked.query.clone()), ("start", nanoseconds(asked.start)), ("end", nanoseconds(asked.end))]);
        self.answer(request.metadata(), "/api/metrics/query", params, |api, asked| api.query_instant_stream(asked))
    }
}

/// Metrics queries have no default range over gRPC.
fn required(start: u64, end: u64) -> Result<(), Status> {
    match (start, end) {
        (0, _) => Err(Status::unknown("start required")),
        (_, 0) => Err(Status::unknown("end required")),
        _ => Ok(()),
    }
}

/// A time as a parameter that is read as nanoseconds, however small it is.
fn nanoseconds(time: u64) -> String {
    format!("{time:011}")
}

impl tenant::Tenancy {
    /// The tenants of a gRPC call. Tempo fails without a status when they are not named exactly once.
    fn tenants_of_call(self, metadata: &MetadataMap) -> Result<Vec<storage::id::Tenant>, Status> {
        if self.enabled && metadata.get_all(tenant::ORG_ID).iter().count() != 1 {
            return Err(Status::unknown("no org id"));
        }
        self.tenants(metadata.as_ref()).map_err(|error| status::of(&error))
    }
}
