//! What an answer looks like on the wire, by what the client accepts.

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderValue, header};
use prost::Message;

use super::json::ToJson;

pub(crate) const JSON: &str = "application/json";
pub(crate) const PROTOBUF: &str = "application/protobuf";
/// What is asked for; the answer says `+json`.
const LLM: &str = "application/vnd.grafana.llm";
const LLM_JSON: &str = "application/vnd.grafana.llm+json";

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The protobuf JSON mapping.
    Json,
    /// The message itself.
    Protobuf,
    /// Short JSON for language models, where an answer has it; else as [`Format::Json`].
    Llm,
}

impl Format {
    /// What `Accept` names first by Tempo's order, which is not that of the header.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let accepts =
            |name: &str| headers.get_all(header::ACCEPT).iter().any(|value| value.to_str().is_ok_and(|value| value.contains(name)));
        match () {
            () if accepts(PROTOBUF) => Self::Protobuf,
            () if accepts(JSON) => Self::Json,
            () if accepts(LLM) => Self::Llm,
            () => Self::Json,
        }
    }

    pub(crate) fn show<M: Message + ToJson>(self, message: &M) -> Response {
        match self {
            Self::Protobuf => with_type(message.encode_to_vec(), PROTOBUF),
            Self::Json | Self::Llm => with_type(message.to_json(), JSON),
        }
    }

    /// As [`Self::show`], of an answer that has a form for language models.
    pub(crate) fn show_or<M: Message + ToJson>(self, message: &M, llm: impl FnOnce(&M) -> serde_json::Value) -> Response {
        match self {
            Self::Llm => with_type(llm(message).to_string().into_bytes(), LLM_JSON),
            Self::Json | Self::Protobuf => self.show(message),
        }
    }
}

pub(crate) fn with_type(body: Vec<u8>, content_type: &'static str) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_not_that_of_the_header() {
        for (accept, expected) in [
            (&[][..], Format::Json),
            (&["*/*"], Format::Json),
            (&["text/html"], Format::Json),
            (&["application/json, application/protobuf;q=0.1"], Format::Protobuf),
            (&["application/vnd.grafana.llm"], Format::Llm),
            (&["application/vnd.grafana.llm, application/json"], Format::Json),
            (&["application/vnd.grafana.llm", "application/protobuf"], Format::Protobuf),
        ] {
            let mut headers = HeaderMap::new();
            accept.iter().for_each(|value| {
                headers.append(header::ACCEPT, HeaderValue::from_static(value));
            });
            assert_eq!(Format::of(&headers), expected, "{accept:?}");
        }
    }
}
