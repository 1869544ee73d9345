//! Zipkin's v2 span, as every encoding of it comes out.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use serde::Deserialize;

/// A span of Zipkin's v2 model. Times are microseconds, 0 means that there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) trace_id: [u8; 16],
    pub(super) id: [u8; 8],
    pub(super) parent_id: Option<[u8; 8]>,
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) timestamp: u64,
    pub(super) duration: u64,
    pub(super) local: Endpoint,
    pub(super) remote: Endpoint,
    pub(super) annotations: Vec<Annotation>,
    /// The last of several tags of one name.
    pub(super) tags: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    #[default]
    Unspecified,
    Client,
    Server,
    Producer,
    Consumer,
}

/// A place in the network; nothing of it needs to be known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) service: String,
    pub(super) ipv4: Option<Ipv4Addr>,
    pub(super) ipv6: Option<Ipv6Addr>,
    pub(super) port: u16,
}

/// An [`Endpoint`] in JSON, the same in v1 and v2.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct JsonEndpoint {
    #[serde(default)]
    service_name: Option<String>,
    #[serde(default)]
    ipv4: Option<String>,
    #[serde(default)]
    ipv6: Option<String>,
    #[serde(default)]
    port: Option<u16>,
}

impl JsonEndpoint {
    pub(super) fn into_endpoint(self) -> Result<Endpoint, String> {
        let written = |text: Option<String>| text.filter(|text| !text.is_empty());
        let ipv4 = written(self.ipv4).map(|text| text.parse::<Ipv4Addr>().map_err(|_| format!("\"{text}\" is not an IPv4 address")));
        let ipv6 = written(self.ipv6).map(|text| text.parse::<Ipv6Addr>().map_err(|_| format!("\"{text}\" is not an IPv6 address")));
        Ok(Endpoint {
            service: self.service_name.unwrap_or_default(),
            ipv4: ipv4.transpose()?,
            ipv6: ipv6.transpose()?,
            port: self.port.unwrap_or_default(),
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Annotation {
    pub(super) timestamp: u64,
    pub(super) value: String,
}

/// Why a body is not spans. Names the span by its number, from 0, and the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("{0}")]
    Encoding(String),
    #[error("span {span}: {field}: {why}")]
    Field { span: usize, field: &'static str, why: String },
}

/// Reads 1 to 32 hexadecimal digits; a short id is one whose first digits are 0.
pub(super) fn trace_id(text: &str) -> Result<[u8; 16], String> {
    let number = hex(text, 32)?;
    if number == 0 { Err("valid trace id required".to_owned()) } else { Ok(number.to_be_bytes()) }
}

/// Reads 1 to 16 hexadecimal digits.
pub(super) fn span_id(text: &str) -> Result<[u8; 8], String> {
    let number = u64::try_from(hex(text, 16)?).map_err(|_| "more than 16 digits".to_owned())?;
    if number == 0 { Err("valid span id required".to_owned()) } else { Ok(number.to_be_bytes()) }
}

fn hex(text: &str, digits: usize) -> Result<u128, String> {
    if text.is_empty() || text.len() > digits || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let shown: String = text.chars().take(40).collect();
        return Err(format!("\"{shown}\" is not 1 to {digits} hexadecimal digits"));
    }
    u128::from_str_radix(text, 16).map_err(|error| error.to_string())
}
