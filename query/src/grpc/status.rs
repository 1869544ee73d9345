//! Errors of the API as gRPC statuses. The texts are those of HTTP; Grafana shows them, and matches some.

use http::StatusCode;
use tonic::{Code, Status};

use crate::api::error::ApiError;

/// The status that says what an answer over HTTP says.
pub(super) fn of(error: &ApiError) -> Status {
    let code = match error.status() {
        StatusCode::BAD_REQUEST => Code::InvalidArgument,
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
        status if status.as_u16() == 499 => Code::Cancelled,
        status if status.is_server_error() => Code::Internal,
        _ => Code::Unknown,
    };
    Status::new(code, error.text())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_translated() {
        for (status, code) in [
            (400, Code::InvalidArgument),
            (401, Code::Unknown),
            (404, Code::NotFound),
            (422, Code::Unknown),
            (429, Code::ResourceExhausted),
            (499, Code::Cancelled),
            (500, Code::Internal),
            (503, Code::Internal),
            (504, Code::Internal),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            let translated = of(&ApiError::early(status, "why"));
            assert_eq!((translated.code(), translated.message()), (code, "why"), "{status}");
        }
    }
}
