//! Errors as clients of Tempo see them: plain text, no envelope, no trailing newline, except where Tempo answers before the query side
//! proper (authentication, unknown routes), which ends the line and forbids sniffing.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};

use crate::engine::QueryError;

/// An answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    status: StatusCode,
    body: String,
    /// Whether the line is ended and sniffing forbidden.
    early: bool,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, body: body.into(), early: false }
    }

    /// 400 with a text.
    pub(crate) fn bad_request(body: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, body)
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// What clients are told, without the end of a line.
    pub(crate) fn text(&self) -> &str {
        self.body.trim_end_matches('\n')
    }

    /// An error of a request that did not get as far as a query.
    pub(crate) fn early(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, body: body.into() + "\n", early: true }
    }
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::warn!(%error, "query failed");
        }
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.early {
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        }
        response
    }
}
