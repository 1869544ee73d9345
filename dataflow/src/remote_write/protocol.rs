//! The messages of Prometheus' remote write protocols, and how a batch of series becomes the body of a request.
//!
//! ```text
//!  Batch ──► v1: prometheus.WriteRequest        label texts in every series
//!        └─► v2: io.prometheus.write.v2.Request  label texts once, in `symbols`; series refer to them
//!                     └──► protobuf ──► snappy (block format) ──► body
//! ```
//!
//! Field numbers are those of `prompb/types.proto`, `prompb/remote.proto` and `prompb/io/prometheus/write/v2/types.proto` of Prometheus.
//! Samples, histograms and their spans are the same in both protocols but for the time when their series began, which only 2.0 has. Receivers
//! look for that time in one of two places, by their age: drafts of 2.0 had it in the series, later ones have it in each sample. Where protobuf says `string` and we hold shared text, the field is
//! declared as `bytes`, which is the same on the wire and is cloned without a copy; where it says `oneof` of two scalars, both are optional.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use prost::Message;

/// A label of protocol 1.0, and ours in memory. Both are UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Message)]
pub(crate) struct Label {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) name: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) value: Bytes,
}

/// A value at a time, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Sample {
    #[prost(double, tag = "1")]
    pub(crate) value: f64,
    #[prost(int64, tag = "2")]
    pub(crate) timestamp: i64,
    /// When the series began; 0 if that is not said. Protocol 2.0.
    #[prost(int64, tag = "3")]
    pub(crate) start_timestamp: i64,
}

/// An exemplar of protocol 1.0.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Exemplar {
    #[prost(message, repeated, tag = "1")]
    pub(crate) labels: Vec<Label>,
    #[prost(double, tag = "2")]
    pub(crate) value: f64,
    #[prost(int64, tag = "3")]
    pub(crate) timestamp: i64,
}

/// Consecutive buckets of a native histogram.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct BucketSpan {
    /// Buckets between the end of the span before and this one; of the first, its index.
    #[prost(sint32, tag = "1")]
    pub(crate) offset: i32,
    #[prost(uint32, tag = "2")]
    pub(crate) length: u32,
}

/// A native histogram with integer counts. Durations are never negative, so the negative half of the message is left out.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Histogram {
    #[prost(uint64, optional, tag = "1")]
    pub(crate) count_int: Option<u64>,
    #[prost(double, tag = "3")]
    pub(crate) sum: f64,
    #[prost(sint32, tag = "4")]
    pub(crate) schema: i32,
    #[prost(double, tag = "5")]
    pub(crate) zero_threshold: f64,
    #[prost(uint64, optional, tag = "6")]
    pub(crate) zero_count_int: Option<u64>,
    #[prost(message, repeated, tag = "11")]
    pub(crate) positive_spans: Vec<BucketSpan>,
    /// Each bucket's count less that of the bucket before.
    #[prost(sint64, repeated, tag = "12")]
    pub(crate) positive_deltas: Vec<i64>,
    /// 0 is unknown: the receiver looks for resets itself.
    #[prost(int32, tag = "14")]
    pub(crate) reset_hint: i32,
    #[prost(int64, tag = "15")]
    pub(crate) timestamp: i64,
    /// When the series began; 0 if that is not said. Protocol 2.0.
    #[prost(int64, tag = "17")]
    pub(crate) start_timestamp: i64,
}

/// What a metric is, by the numbers that both protocols give to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetricType {
    Counter = 1,
    Gauge = 2,
    Histogram = 3,
}

/// What a metric is and means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Family {
    /// The name without the suffixes of a histogram's series.
    pub(crate) name: Bytes,
    pub(crate) kind: MetricType,
    pub(crate) help: Bytes,
    /// Empty if there is none.
    pub(crate) unit: Bytes,
}

/// A series of protocol 1.0, and ours in memory: samples or histograms, never both.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TimeSeries {
    /// Sorted by name, without empty values.
    #[prost(message, repeated, tag = "1")]
    pub(crate) labels: Vec<Label>,
    /// In the order of time.
    #[prost(message, repeated, tag = "2")]
    pub(crate) samples: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) exemplars: Vec<Exemplar>,
    /// In the order of time.
    #[prost(message, repeated, tag = "4")]
    pub(crate) histograms: Vec<Histogram>,
}

/// What one request carries.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Batch {
    pub(crate) series: Vec<TimeSeries>,
    /// The family of each series.
    pub(crate) families: Vec<Arc<Family>>,
    /// When each series began, in milliseconds; 0 or nothing if that is not known, or the series does not count.
    pub(crate) began: Vec<i64>,
}

/// How much something carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) samples: u64,
    pub(crate) histograms: u64,
    pub(crate) exemplars: u64,
}

impl Batch {
    pub(crate) fn count(&self) -> Count {
        let count = |of: fn(&TimeSeries) -> usize| self.series.iter().map(|series| of(series) as u64).sum();
        Count {
            samples: count(|series| series.samples.len()),
            histograms: count(|series| series.histograms.len()),
            exemplars: count(|series| series.exemplars.len()),
        }
    }

    /// The largest timestamp of a sample or a histogram.
    pub(crate) fn newest(&self) -> Option<i64> {
        let newest = |series: &TimeSeries| {
            let samples = series.samples.iter().map(|sample| sample.timestamp);
            samples.chain(series.histograms.iter().map(|histogram| histogram.timestamp)).max()
        };
        self.series.iter().filter_map(newest).max()
    }
}

/// Which protocol a request speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `prometheus.WriteRequest`.
    V1,
    /// `io.prometheus.write.v2.Request`. A receiver that doesn't know it is sent 1.0 instead.
    V2,
}

impl Protocol {
    /// The header `Content-Type`.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::V1 => "application/x-protobuf",
            Self::V2 => "application/x-protobuf;proto=io.prometheus.write.v2.Request",
        }
    }

    /// The header `X-Prometheus-Remote-Write-Version`.
    pub(crate) fn version(self) -> &'static str {
        match self {
            Self::V1 => "0.1.0",
            Self::V2 => "2.0.0",
        }
    }

    /// The body of a request: the batch as a message, compressed.
    pub(crate) fn encode(self, batch: &Batch) -> Bytes {
        match self {
            Self::V1 => {
                let mut message = Vec::new();
                prost::encoding::message::encode_repeated(v1::TIMESERIES, &batch.series, &mut message);
                compress(&message)
            }
            Self::V2 => compress(&v2::Request::new(batch).encode_to_vec()),
        }
    }
}

/// The body of a request of protocol 1.0 that tells what metrics are, and carries no sample.
pub(crate) fn encode_metadata(families: &[Arc<Family>]) -> Bytes {
    let metadata = |family: &Arc<Family>| v1::MetricMetadata {
        r#type: family.kind as i32,
        metric_family_name: family.name.clone(),
        help: family.help.clone(),
        unit: family.unit.clone(),
    };
    let request = v1::WriteRequest { timeseries: Vec::new(), metadata: families.iter().map(metadata).collect() };
    compress(&request.encode_to_vec())
}

#[expect(clippy::expect_used, reason = "snappy's block format holds 4 GiB, a request some thousand samples")]
fn compress(message: &[u8]) -> Bytes {
    snap::raw::Encoder::new().compress_vec(message).expect("a request is below 4 GiB").into()
}

/// Protocol 1.0.
pub(crate) mod v1 {
    use super::{Bytes, Message, TimeSeries};

    /// The number of the field `timeseries`.
    pub(super) const TIMESERIES: u32 = 1;

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct WriteRequest {
        #[prost(message, repeated, tag = "1")]
        pub(crate) timeseries: Vec<TimeSeries>,
        #[prost(message, repeated, tag = "3")]
        pub(crate) metadata: Vec<MetricMetadata>,
    }

    #[derive(Clone, PartialEq, Eq, Message)]
    pub(crate) struct MetricMetadata {
        #[prost(int32, tag = "1")]
        pub(crate) r#type: i32,
        #[prost(bytes = "bytes", tag = "2")]
        pub(crate) metric_family_name: Bytes,
        #[prost(bytes = "bytes", tag = "4")]
        pub(crate) help: Bytes,
        #[prost(bytes = "bytes", tag = "5")]
        pub(crate) unit: Bytes,
    }
}

/// Protocol 2.0.
pub(crate) mod v2 {
    use super::{Batch, Bytes, HashMap, Histogram, Label, Message, Sample};

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Request {
        /// Begins with the empty text.
        #[prost(bytes = "bytes", repeated, tag = "4")]
        pub(crate) symbols: Vec<Bytes>,
        #[prost(message, repeated, tag = "5")]
        pub(crate) timeseries: Vec<TimeSeries>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct TimeSeries {
        /// Names and values in turn, sorted by name.
        #[prost(uint32, repeated, tag = "1")]
        pub(crate) labels_refs: Vec<u32>,
        #[prost(message, repeated, tag = "2")]
        pub(crate) samples: Vec<Sample>,
        #[prost(message, repeated, tag = "3")]
        pub(crate) histograms: Vec<Histogram>,
        #[prost(message, repeated, tag = "4")]
        pub(crate) exemplars: Vec<Exemplar>,
        #[prost(message, optional, tag = "5")]
        pub(crate) metadata: Option<Metadata>,
        /// When the series began, as drafts of the protocol have it.
        #[prost(int64, tag = "6")]
        pub(crate) created_timestamp: i64,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Exemplar {
        #[prost(uint32, repeated, tag = "1")]
        pub(crate) labels_refs: Vec<u32>,
        #[prost(double, tag = "2")]
        pub(crate) value: f64,
        #[prost(int64, tag = "3")]
        pub(crate) timestamp: i64,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Message)]
    pub(crate) struct Metadata {
        #[prost(int32, tag = "1")]
        pub(crate) r#type: i32,
        #[prost(uint32, tag = "3")]
        pub(crate) help_ref: u32,
        #[prost(uint32, tag = "4")]
        pub(crate) unit_ref: u32,
    }

    /// The texts of a request, each once.
    struct Symbols {
        texts: Vec<Bytes>,
        index: HashMap<Bytes, u32>,
    }

    impl Symbols {
        #[expect(clippy::cast_possible_truncation, reason = "a request has some thousand texts")]
        fn refer(&mut self, text: &Bytes) -> u32 {
            if let Some(index) = self.index.get(text) {
                return *index;
            }
            let index = self.texts.len() as u32;
            self.texts.push(text.clone());
            self.index.insert(text.clone(), index);
            index
        }

        fn refer_all(&mut self, labels: &[Label]) -> Vec<u32> {
            labels.iter().flat_map(|label| [self.refer(&label.name), self.refer(&label.value)]).collect()
        }
    }

    impl Request {
        pub(super) fn new(batch: &Batch) -> Self {
            let mut symbols = Symbols { texts: vec![Bytes::new()], index: HashMap::from([(Bytes::new(), 0)]) };
            let mut timeseries = Vec::with_capacity(batch.series.len());
            for (index, (series, family)) in batch.series.iter().zip(&batch.families).enumerate() {
                let start_timestamp = batch.began.get(index).copied().unwrap_or_default();
                timeseries.push(TimeSeries {
                    labels_refs: symbols.refer_all(&series.labels),
                    samples: series.samples.iter().map(|sample| Sample { start_timestamp, ..*sample }).collect(),
                    histograms: series.histograms.iter().map(|histogram| Histogram { start_timestamp, ..histogram.clone() }).collect(),
                    exemplars: series
                        .exemplars
                        .iter()
                        .map(|exemplar| Exemplar {
                            labels_refs: symbols.refer_all(&exemplar.labels),
                            value: exemplar.value,
                            timestamp: exemplar.timestamp,
                        })
                        .collect(),
                    metadata: Some(Metadata {
                        r#type: family.kind as i32,
                        help_ref: symbols.refer(&family.help),
                        unit_ref: symbols.refer(&family.unit),
                    }),
                    created_timestamp: start_timestamp,
                });
            }
            Self { symbols: symbols.texts, timeseries }
        }
    }
}
