//! Cuts messages into packets that clients may receive: theirs is a limit of 4 MiB unless they set another.
//!
//! ```text
//!  entries  a b c d e f g   + metrics  ──►  [a b c + metrics] [d e + metrics] [f g + metrics, status]
//! ```
//!
//! An entry (a trace, a series, a value) is never cut. What is not a list of entries is in every packet or in the last, as Tempo does it.

use prost::{Message, length_delimiter_len};

use crate::proto;

/// A message that can be cut.
pub(super) trait Packets: Message + Default + Send + 'static {
    /// The packets, at least one: each at most `max_bytes` long unless it has a single entry. 0 means that nothing is cut.
    fn packets(self, max_bytes: usize) -> Vec<Self>;
}

/// Bytes of a field of `length` bytes with its tag and length.
fn field(length: usize) -> usize {
    1 + length_delimiter_len(length) + length
}

/// Groups of entries of at most `room` bytes, at least one group.
fn groups<T>(entries: Vec<T>, room: usize, length: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut groups = vec![Vec::new()];
    let mut used = 0;
    for entry in entries {
        let bytes = field(length(&entry));
        if used > 0 && used + bytes > room {
            groups.push(Vec::new());
            used = 0;
        }
        used += bytes;
        if let Some(group) = groups.last_mut() {
            group.push(entry);
        }
    }
    groups
}

/// A message without entries, and its entries.
fn cut<M: Message + Clone, T>(
    rest: &M,
    entries: Vec<T>,
    max_bytes: usize,
    length: impl Fn(&T) -> usize,
    with: impl Fn(M, Vec<T>) -> M,
) -> Vec<M> {
    let room = if max_bytes == 0 { usize::MAX } else { max_bytes.saturating_sub(rest.encoded_len()) };
    groups(entries, room, length).into_iter().map(|group| with(rest.clone(), group)).collect()
}

impl Packets for proto::SearchResponse {
    fn packets(mut self, max_bytes: usize) -> Vec<Self> {
        let traces = std::mem::take(&mut self.traces);
        cut(&self, traces, max_bytes, Message::encoded_len, |rest, traces| Self { traces, ..rest })
    }
}

impl Packets for proto::SearchTagsResponse {
    fn packets(mut self, max_bytes: usize) -> Vec<Self> {
        let names = std::mem::take(&mut self.tag_names);
        cut(&self, names, max_bytes, String::len, |rest, tag_names| Self { tag_names, ..rest })
    }
}

impl Packets for proto::SearchTagValuesResponse {
    fn packets(mut self, max_bytes: usize) -> Vec<Self> {
        let values = std::mem::take(&mut self.tag_values);
        cut(&self, values, max_bytes, String::len, |rest, tag_values| Self { tag_values, ..rest })
    }
}

impl Packets for proto::SearchTagValuesV2Response {
    fn packets(mut self, max_bytes: usize) -> Vec<Self> {
        let values = std::mem::take(&mut self.tag_values);
        cut(&self, values, max_bytes, Message::encoded_len, |rest, tag_values| Self { tag_values, ..rest })
    }
}

impl Packets for proto::SearchTagsV2Response {
    /// The entries are names; the scope of each goes with it.
    fn packets(mut self, max_bytes: usize) -> Vec<Self> {
        let scopes = std::mem::take(&mut self.scopes);
        let names = scopes.into_iter().flat_map(|scope| {
            let name = scope.name;
            scope.tags.into_iter().map(move |tag| (name.clone(), tag))
        });
        // As if every name had a scope of its own: an upper bound.
        let length = |(scope, tag): &(String, String)| field(field(scope.len()) + field(tag.len()));
        cut(&self, names.collect(), max_bytes, length, |rest, names| {
            let mut scopes: Vec<proto::SearchTagsV2Scope> = Vec::new();
            for (name, tag) in names {
                match scopes.last_mut() {
                    Some(scope) if scope.name == name => scope.tags.push(tag),
                    _ => scopes.push(proto::SearchTagsV2Scope { name, tags: vec![tag] }),
                }
            }
            Self { scopes, ..rest }
        })
    }
}

impl Packets for proto::QueryRangeResponse {
    /// Status and message are in the last packet only.
    fn packets(mut self, max_bytes: usize) -> Vec<Self> {
        let series = std::mem::take(&mut self.series);
        let (status, message) = (self.status, self.message.clone());
        let mut packets = cut(&self, series, max_bytes, Message::encoded_len, |rest, series| Self {
            series,
            status: proto::PartialStatus::Complete.into(),
            message: String::new(),
            ..rest
        });
        if let Some(last) = packets.last_mut() {
            (last.status, last.message) = (status, message);
        }
        packets
    }
}

impl Packets for proto::QueryInstantResponse {
    /// Never cut: the last message takes the place of all before it.
    fn packets(self, _max_bytes: usize) -> Vec<Self> {
        vec![self]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn metrics() -> Option<proto::MetadataMetrics> {
        Some(proto::MetadataMetrics { inspected_bytes: 7, ..proto::MetadataMetrics::default() })
    }

    /// Within the limit, or with a single entry; and never without what is in every packet.
    fn check<M: Message>(packets: &[M], max_bytes: usize, entries: impl Fn(&M) -> usize) -> Result<(), TestCaseError> {
        prop_assert!(!packets.is_empty());
        for packet in packets {
            prop_assert!(packet.encoded_len() <= max_bytes || entries(packet) <= 1, "{} bytes", packet.encoded_len());
        }
        prop_assert!(packets.len() == 1 || packets.iter().all(|packet| entries(packet) > 0));
        Ok(())
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_no_packet_is_too_large(
            names in prop::collection::vec(prop::collection::vec("[a-z]{0,40}", 0..30), 0..4),
            max_bytes in 20usize..400,
        ) {
            let flat: Vec<String> = names.iter().flatten().cloned().collect();
            let response = proto::SearchTagsResponse { tag_names: flat.clone(), metrics: metrics() };
            let packets = response.packets(max_bytes);
            check(&packets, max_bytes, |packet| packet.tag_names.len())?;
            prop_assert!(packets.iter().all(|packet| packet.metrics == metrics()));
            let merged: Vec<String> = packets.into_iter().flat_map(|packet| packet.tag_names).collect();
            prop_assert_eq!(merged, flat);

            let scopes = names.iter().enumerate().map(|(number, tags)| proto::SearchTagsV2Scope { name: number.to_string(), tags: tags.clone() });
            let response = proto::SearchTagsV2Response { scopes: scopes.collect(), metrics: metrics() };
            let packets = response.packets(max_bytes);
            check(&packets, max_bytes, |packet| packet.scopes.iter().map(|scope| scope.tags.len()).sum())?;
            let mut merged = vec![Vec::new(); names.len()];
            for scope in packets.into_iter().flat_map(|packet| packet.scopes) {
                merged[scope.name.parse::<usize>().expect("a number")].extend(scope.tags);
            }
            prop_assert_eq!(merged, names);
        }
    }

    #[test]
    fn the_last_packet_of_a_range_says_that_it_is_partial() {
        let series = |value: f64| proto::TimeSeries { samples: vec![proto::Sample { value, timestamp_ms: 1 }; 10], ..Default::default() };
        let response = proto::QueryRangeResponse {
            series: (1..6).map(|number| series(f64::from(number))).collect(),
            metrics: Some(proto::SearchMetrics { inspected_spans: 3, ..Default::default() }),
            status: proto::PartialStatus::Partial.into(),
            message: "why".to_owned(),
        };
        assert_eq!(response.clone().packets(0), std::slice::from_ref(&response));
        let packets = response.packets(300);
        assert!(packets.len() > 1);
        let (last, before) = packets.split_last().expect("several");
        assert!(before.iter().all(|packet| packet.status == 0 && packet.message.is_empty() && packet.metrics.is_some()));
        assert_eq!((last.status(), last.message.as_str()), (proto::PartialStatus::Partial, "why"));
        assert_eq!(packets.iter().map(|packet| packet.series.len()).sum::<usize>(), 5);
    }
}
