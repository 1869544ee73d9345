//! What a series is: whose it is, which metric it belongs to, its labels, and how its durations are put into buckets.
//!
//! A [`Series`] is the key of the collection. It is its definition behind a pointer and, beside it, a 128-bit hash of the definition by
//! which it is compared, ordered and routed. The hash does not depend on process or order of labels.

use std::{
    cmp::Ordering,
    hash::{Hash, Hasher},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use storage::id::Tenant;
use twox_hash::XxHash64;

/// Label names and values, sorted by name; no name twice, no value empty. Without `__name__` and without external labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "Vec<(Arc<str>, Arc<str>)>")]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// The pairs in order. What is the same as before is left out: of two values under one name the later one counts, an empty one is as
    /// good as none.
    pub fn new(mut pairs: Vec<(Arc<str>, Arc<str>)>) -> Self {
        // Stable, so that of equal names the last is the last.
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        pairs.reverse();
        pairs.dedup_by(|later, earlier| later.0 == earlier.0);
        pairs.reverse();
        pairs.retain(|(_, value)| !value.is_empty());
        Self(pairs.into())
    }

    /// Name and value, by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// The pairs as they are kept.
    pub fn pairs(&self) -> &[(Arc<str>, Arc<str>)] {
        &self.0
    }

    /// The value under a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        let index = self.0.binary_search_by(|(there, _)| (**there).cmp(name)).ok()?;
        self.0.get(index).map(|(_, value)| &**value)
    }

    /// Whether there is no label at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Vec<(Arc<str>, Arc<str>)>> for Labels {
    fn from(pairs: Vec<(Arc<str>, Arc<str>)>) -> Self {
        Self::new(pairs)
    }
}

impl FromIterator<(Arc<str>, Arc<str>)> for Labels {
    fn from_iter<I: IntoIterator<Item = (Arc<str>, Arc<str>)>>(pairs: I) -> Self {
        Self::new(pairs.into_iter().collect())
    }
}

/// Which metric, or which metrics that share labels, a series belongs to, and what its [`Agg`](super::Agg) means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// `traces_spanmetrics_calls_total` (count), `traces_spanmetrics_latency` (histogram) and `traces_spanmetrics_size_total` (size), as
    /// many of them as [`Layout::parts`] says. They share labels, so they share a series here.
    SpanMetrics,
    /// `traces_target_info`, a gauge that is 1 while the series is there.
    TargetInfo,
    /// `traces_host_info`, a gauge that is 1 while the series is there.
    HostInfo,
    /// `traces_service_graph_request_total` (count).
    ServiceGraphRequests,
    /// `traces_service_graph_request_failed_total` (count).
    ServiceGraphFailed,
    /// `traces_service_graph_request_client_seconds` (histogram).
    ServiceGraphClient,
    /// `traces_service_graph_request_server_seconds` (histogram).
    ServiceGraphServer,
    /// `traces_service_graph_request_messaging_system_seconds` (histogram).
    ServiceGraphMessaging,
    /// Halves of edges that found no partner (count), by side and cause. Not sent to the remote.
    ServiceGraphUnpaired,
}

/// Which of the metrics of [`Family::SpanMetrics`] are wanted. All of them for every other family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Parts {
    /// `…_calls_total`.
    pub count: bool,
    /// `…_latency`.
    pub latency: bool,
    /// `…_size_total`.
    pub size: bool,
}

impl Parts {
    /// All of them.
    pub const ALL: Self = Self { count: true, latency: true, size: true };
}

/// How durations are put into buckets, and what of it is shown. Part of a series' identity: after a change of bounds counts begin anew.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layout {
    /// What is shown of it.
    pub parts: Parts,
    /// Upper bounds of the classic buckets in seconds, strictly increasing, without `+Inf`; `None` where there is no classic histogram.
    pub classic: Option<Arc<[f64]>>,
    /// Schema of the native histogram: buckets grow by 2^(2^-schema). `None` where there is no native histogram.
    pub native: Option<i8>,
}

impl Layout {
    /// No histogram: counters and gauges.
    pub const COUNTER: Self = Self { parts: Parts::ALL, classic: None, native: None };
}

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Definition {
    /// Whose it is.
    pub tenant: Tenant,
    /// Which metric.
    pub family: Family,
    /// Its labels.
    pub labels: Labels,
    /// Its buckets.
    pub layout: Arc<Layout>,
}

/// The identity of a series: a hash of all of its [`Definition`]. The upper half does not depend on the layout, so that series that look
/// the same to a reader have it in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeriesId(pub u128);

/// A series: cheap to clone, compared by identity.
#[derive(Clone, Debug)]
pub struct Series {
    id: SeriesId,
    definition: Arc<Definition>,
}

impl Series {
    /// Of a definition.
    pub fn new(definition: Definition) -> Self {
        Self { id: SeriesId(hash(&definition)), definition: Arc::new(definition) }
    }

    /// Its identity.
    pub fn id(&self) -> SeriesId {
        self.id
    }

    /// What it is.
    pub fn definition(&self) -> &Definition {
        &self.definition
    }

    /// The tenant whose it is.
    pub fn tenant(&self) -> &Tenant {
        &self.definition.tenant
    }

    /// Which metric it belongs to.
    pub fn family(&self) -> Family {
        self.definition.family
    }

    /// Its labels.
    pub fn labels(&self) -> &Labels {
        &self.definition.labels
    }

    /// How it puts durations into buckets.
    pub fn layout(&self) -> &Layout {
        &self.definition.layout
    }

    /// Identity apart from the layout, as a hash: the same for all series that are the same to a reader.
    pub fn name_hash(&self) -> u64 {
        (self.id.0 >> 64) as u64
    }

    /// Whether both are the same to a reader, whatever their layouts.
    pub fn is_named_as(&self, other: &Self) -> bool {
        let (this, other) = (&*self.definition, &*other.definition);
        (&this.tenant, this.family, &this.labels) == (&other.tenant, other.family, &other.labels)
    }
}

impl PartialEq for Series {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Series {}

impl PartialOrd for Series {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Series {
    fn cmp(&self, other: &Self) -> Ordering {
        self.id.cmp(&other.id)
    }
}

impl Hash for Series {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl Serialize for Series {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.definition.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Series {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Definition::deserialize(deserializer).map(Self::new)
    }
}

fn hash(definition: &Definition) -> u128 {
    fn part(text: &mut Vec<u8>, bytes: &[u8]) {
        text.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        text.extend_from_slice(bytes);
    }
    let mut text = Vec::with_capacity(256);
    part(&mut text, definition.tenant.as_str().as_bytes());
    part(&mut text, &[definition.family as u8]);
    for (name, value) in definition.labels.iter() {
        part(&mut text, name.as_bytes());
        part(&mut text, value.as_bytes());
    }
    let name = XxHash64::oneshot(0x5275_6261_746f_0001, &text);
    let Layout { parts, classic, native } = &*definition.layout;
    part(&mut text, &[u8::from(parts.count), u8::from(parts.latency), u8::from(parts.size), u8::from(classic.is_some())]);
    part(&mut text, &native.map_or(i64::MIN, i64::from).to_le_bytes());
    classic.iter().flat_map(|bounds| bounds.iter()).for_each(|bound| part(&mut text, &bound.to_bits().to_le_bytes()));
    u128::from(name) << 64 | u128::from(XxHash64::oneshot(0x5275_6261_746f_0002, &text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| (Arc::from(*name), Arc::from(*value))).collect()
    }

    fn series(labels: Labels, layout: Layout) -> Series {
        Series::new(Definition { tenant: Tenant::single(), family: Family::SpanMetrics, labels, layout: Arc::new(layout) })
    }

    #[test]
    fn of_equal_names_the_later_counts_and_nothing_is_empty() {
        let labels = labels(&[("b", "1"), ("a", "2"), ("b", "3"), ("c", "4"), ("c", "")]);
        assert_eq!(labels.iter().collect::<Vec<_>>(), [("a", "2"), ("b", "3")]);
        assert_eq!((labels.get("b"), labels.get("c")), (Some("3"), None));
    }

    #[test]
    fn identity_is_everything_and_not_the_order() {
        let buckets = Layout { classic: Some([0.1, 1.0].into()), ..Layout::COUNTER };
        let one = series(labels(&[("a", "1"), ("b", "2")]), Layout::COUNTER);
        assert_eq!(one, series(labels(&[("b", "2"), ("a", "1")]), Layout::COUNTER));
        assert_ne!(one, series(labels(&[("a", "1"), ("b", "3")]), Layout::COUNTER));
        assert_ne!(one, series(labels(&[("a", "1b"), ("", "2")]), Layout::COUNTER));
        let other = series(labels(&[("a", "1"), ("b", "2")]), buckets);
        assert_ne!(one, other);
        assert_eq!(one.name_hash(), other.name_hash());
    }

    #[test]
    fn a_series_comes_back_from_bytes() {
        let layout = Layout { classic: Some([0.002, 16.384].into()), native: Some(3), ..Layout::COUNTER };
        let series = series(labels(&[("service", "a"), ("span_name", "GET /")]), layout);
        let bytes = postcard::to_stdvec(&series).expect("encodes");
        let back: Series = postcard::from_bytes(&bytes).expect("decodes");
        assert_eq!(back, series);
        assert_eq!(back.definition(), series.definition());
    }
}
