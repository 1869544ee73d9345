//! Reads spans: from wire bytes to halves.
//!
//! ```text
//!  span ── kind is neither client's nor server's ──► nothing (the common case: not a byte is looked at)
//!     │
//!     ▼
//!  values of the wanted keys in resource and span ──► Read { half, then: wait for the other | root | database }
//! ```
//!
//! What is looked up in the resource first and then in the span, and what only in the span, is Tempo's choice, attribute by attribute.

use std::borrow::Cow;

use super::{
    halves::{Half, Key, Side},
    intern::{Names, Symbol},
};
use crate::generator::{
    FirstSeen, Weight,
    attributes::{self, Any},
    scan::{KeyNumber, Keys, Look},
    settings::ServiceGraphs,
    span_metrics::sanitise,
};

/// OTLP's span kinds and status.
const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const PRODUCER: i32 = 4;
const CONSUMER: i32 = 5;
const STATUS_ERROR: i32 = 2;

/// Which half of a request a span is, by its kind, and whether it is of a message; none for other kinds.
pub(super) fn side(kind: i32) -> Option<(Side, bool)> {
    match kind {
        CLIENT => Some((Side::Client, false)),
        PRODUCER => Some((Side::Client, true)),
        SERVER => Some((Side::Server, false)),
        CONSUMER => Some((Side::Server, true)),
        _ => None,
    }
}

/// A span as half of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Read {
    pub(super) half: Half,
    pub(super) then: Then,
}

/// What is to be done with a half.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Then {
    /// The other half may come.
    Wait,
    /// Nobody has called it, so nobody will come.
    Root,
    /// The other side is this database.
    Database(Symbol),
}

/// Reads spans as the settings of one tenant say.
#[derive(Debug)]
pub(super) struct Reader {
    peer: Vec<KeyNumber>,
    database: Vec<KeyNumber>,
    peer_service: KeyNumber,
    server_address: KeyNumber,
    network_peer_address: KeyNumber,
    network_peer_port: KeyNumber,
    multiplier: Option<KeyNumber>,
    /// Where no attribute says how many spans one stands for, its trace state does.
    in_trace_state: bool,
    dimensions: Vec<Dimension>,
    // Lent for its memory.
    pairs: Vec<(Symbol, Symbol)>,
}

#[derive(Debug)]
struct Dimension {
    key: KeyNumber,
    /// Name of the label on a client's half.
    client: String,
    /// Name of the label on a server's half.
    server: String,
}

impl Reader {
    /// For these settings. `keys` get those that are wanted.
    pub(super) fn new(settings: &ServiceGraphs, keys: &mut Keys) -> Self {
        let mut numbers = |names: &[String]| names.iter().map(|name| keys.number(name)).collect::<Vec<_>>();
        let (peer, database) = (numbers(&settings.peer_attributes), numbers(&settings.database_name_attributes));
        let prefixed = |side: &str, name: &str| match settings.enable_client_server_prefix {
            true => sanitise(&format!("{side}_{name}")),
            false => sanitise(name),
        };
        let dimension =
            |name: &String| Dimension { key: keys.number(name), client: prefixed("client", name), server: prefixed("server", name) };
        let dimensions = settings.dimensions.iter().map(dimension).collect();
        Self {
            peer,
            database,
            peer_service: keys.number("peer.service"),
            server_address: keys.number("server.address"),
            network_peer_address: keys.number("network.peer.address"),
            network_peer_port: keys.number("network.peer.port"),
            multiplier: Some(settings.span_multiplier_key.as_str()).filter(|key| !key.is_empty()).map(|key| keys.number(key)),
            in_trace_state: settings.enable_tracestate_span_multiplier,
            dimensions,
            pairs: Vec::new(),
        }
    }

    /// Reads a span of a kind for which [`side`] has an answer, of a resource with a `service.name`.
    pub(super) fn read(&mut self, span: &FirstSeen<'_>, side: Side, messaging: bool, names: &mut Names) -> Read {
        let mut read = Read::bare(span, side, messaging, names.strings.intern(span.service));
        let alone = side == Side::Server && read.then == Then::Root;
        if self.in_trace_state {
            read.half.weight = attributes::sampling_weight(span.span);
        }
        if side == Side::Client || alone {
            let peer = self.peer.iter().find_map(|key| span.own_value(*key)).map(text);
            read.half.peer = peer.filter(|peer| !peer.is_empty()).map_or(Symbol::NONE, |peer| names.strings.intern(&peer));
        }
        if side == Side::Client
            && let Some(database) = self.database.iter().find_map(|key| span.value(*key))
        {
            let address = || {
                let address = span.value(self.network_peer_address).map(text)?;
                Some(match span.value(self.network_peer_port).map(text) {
                    Some(port) => Cow::Owned(format!("{address}:{port}")),
                    None => address,
                })
            };
            let server = span.value(self.peer_service).or_else(|| span.value(self.server_address)).map(text).or_else(address);
            let server = server.unwrap_or_else(|| text(database));
            if !server.is_empty() {
                read.then = Then::Database(names.strings.intern(&server));
            }
        }
        if let Some(key) = self.multiplier {
            // Tempo looks in this order here, and does not stop at a value of another kind.
            let ratio =
                [span.own_value(key), span.resource_value(key)].into_iter().flatten().find_map(|value| match attributes::any(value) {
                    Any::Double(ratio) if ratio > 0.0 => Some(ratio),
                    _ => None,
                });
            read.half.weight = ratio.map_or(read.half.weight, Weight::of_ratio);
        }
        if !self.dimensions.is_empty() {
            self.pairs.clear();
            for dimension in &self.dimensions {
                if let Some(value) = span.value(dimension.key) {
                    let label = if side == Side::Client { &dimension.client } else { &dimension.server };
                    self.pairs.push((names.strings.intern(label), names.strings.intern(&text(value))));
                }
            }
            read.half.dimensions = names.dimensions.intern(&self.pairs);
        }
        read
    }

    /// Whose attributes are looked at, of spans of a side.
    pub(super) fn looks(&self, side: Side) -> Look {
        match side {
            Side::Server if self.dimensions.is_empty() && self.multiplier.is_none() => Look::AtRoots,
            Side::Client | Side::Server => Look::Always,
        }
    }
}

impl Read {
    /// What needs no attributes.
    pub(super) fn bare(span: &FirstSeen<'_>, side: Side, messaging: bool, service: Symbol) -> Self {
        let (span_id, time_ns) = match side {
            Side::Client => (span.span_id, span.end_ns),
            Side::Server => (span.parent_span_id, span.start_ns),
        };
        let half = Half {
            key: Key { trace_id: span.trace_id, span_id },
            duration_ns: span.end_ns.saturating_sub(span.start_ns),
            time_ns,
            weight: Weight::ONE,
            service,
            peer: Symbol::NONE,
            dimensions: Symbol::NONE,
            side,
            messaging,
            failed: span.status == STATUS_ERROR,
            filtered: false,
            partner_filtered: false,
        };
        let then = if side == Side::Server && span.parent_span_id == 0 { Then::Root } else { Then::Wait };
        Self { half, then }
    }
}

/// An encoded `AnyValue` as the text of a label.
fn text(value: &[u8]) -> Cow<'_, str> {
    // Text was validated when it was acknowledged.
    attributes::text(value).unwrap_or_default()
}
