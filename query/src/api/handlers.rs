//! The routes: from HTTP to a question, from the answer to HTTP.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, Request, State},
    http::Uri,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use opentelemetry_proto::tonic::trace::v1::TracesData;
use prost::Message as _;

use super::{
    answers::Api,
    error::ApiError,
    format::{Format, JSON, PROTOBUF, with_type},
    json, llm,
};
use crate::{
    engine::{QueryError, refuse_incomplete},
    metrics::RouteName,
};

/// Longest body of a search, or of a message.
pub(super) const MAX_BODY_BYTES: usize = 1 << 20;

pub(super) async fn echo() -> Response {
    let mut response = Response::new(Body::from("echo\n"));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

pub(super) async fn build_info(State(api): State<Arc<Api>>) -> Response {
    match serde_json::to_vec(&api.settings.build) {
        Ok(body) => with_type(body, JSON),
        Err(error) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

pub(super) async fn trace_v1(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let asked = api.asked(&headers, &uri)?;
    let found = api.find(&asked, &id).await?;
    if found.truncated {
        return Err(QueryError::TraceTooLarge { max_bytes: found.max_bytes }.into());
    }
    // There is no other way to say so here.
    refuse_incomplete(found.incomplete)?;
    if found.resource_spans.is_empty() {
        return Ok(StatusCode::NOT_FOUND.into_response());
    }
    Ok(match Format::of(&headers) {
        Format::Protobuf => with_type(TracesData { resource_spans: found.resource_spans }.encode_to_vec(), PROTOBUF),
        Format::Json | Format::Llm => with_type(json::batches(&found.resource_spans), JSON),
    })
}

pub(super) async fn trace_v2(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let answer = api.trace(&api.asked(&headers, &uri)?, &id).await?;
    Ok(Format::of(&headers).show_or(&answer, llm::trace))
}

pub(super) async fn search(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let mut asked = api.asked(&parts.headers, &parts.uri)?;
    let body = axum::body::to_bytes(body, MAX_BODY_BYTES).await.map_err(unreadable)?;
    // Forms and anything else are ignored.
    if body.trim_ascii_start().starts_with(b"{") {
        asked.params.add_json(&body)?;
    }
    Ok(Format::of(&parts.headers).show(&api.search(&asked).await?))
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
pub(super) fn unreadable(error: axum::Error) -> ApiError {
    use std::error::Error as _;
    if error.source().is_some_and(|source| source.is::<http_body_util::LengthLimitError>()) {
        return ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "http: request body too large");
    }
    ApiError::bad_request(format!("request body cannot be read: {error}"))
}

pub(super) async fn tags_v1(State(api): State<Arc<Api>>, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    let answer = api.tag_names(&api.asked(&headers, &uri)?).await?;
    Ok(Format::of(&headers).show(&answer))
}

pub(super) async fn tags_v2(State(api): State<Arc<Api>>, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    let answer = api.tag_names_by_scope(&api.asked(&headers, &uri)?).await?;
    Ok(Format::of(&headers).show(&answer))
}

pub(super) async fn values_v1(State(api): State<Arc<Api>>, Path(rest): Path<String>, uri: Uri, headers: HeaderMap) -> Response {
    let Some(tag) = tag_of(&rest) else {
        return not_found();
    };
    let answer = async {
        let answer = api.tag_values(&api.asked(&headers, &uri)?, tag).await?;
        Ok::<_, ApiError>(Format::of(&headers).show(&answer))
    };
    named(answer.await.into_response(), &api, "/api/search/tag/{tagName}/values")
}

pub(super) async fn values_v2(State(api): State<Arc<Api>>, Path(rest): Path<String>, uri: Uri, headers: HeaderMap) -> Response {
    let Some(tag) = tag_of(&rest) else {
        return not_found();
    };
    let answer = async {
        let answer = api.typed_tag_values(&api.asked(&headers, &uri)?, tag).await?;
        Ok::<_, ApiError>(Format::of(&headers).show_or(&answer, llm::values))
    };
    named(answer.await.into_response(), &api, "/api/v2/search/tag/{tagName}/values")
}

/// The tag of a path that ends in `/values`.
pub(super) fn tag_of(rest: &str) -> Option<&str> {
    rest.strip_suffix("/values").or((rest == "values").then_some(""))
}

pub(super) fn not_found() -> Response {
    let mut response = ApiError::early(StatusCode::NOT_FOUND, "404 page not found").into_response();
    response.extensions_mut().insert(RouteName("notfound".to_owned()));
    response
}

pub(super) fn named(mut response: Response, api: &Api, template: &str) -> Response {
    let name = crate::metrics::route_name(&format!("{}{template}", api.settings.http_api_prefix));
    response.extensions_mut().insert(RouteName(name));
    response
}
