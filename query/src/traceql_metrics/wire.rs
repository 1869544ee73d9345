//! Partial results on their way from queriers to the frontend.
//!
//! The messages are ours. Cells are sparse: places and values of those that are not empty. Everything that comes in is checked: places are
//! in range, lists that belong together have one length, and groups have a value for each field, so that a foreign or damaged message is
//! an error and nothing else.

use prost::Message;
use storage::id::TraceId;

use super::{
    cells::{Cells, Number, Sum},
    compare::Attribute,
    error::MetricsError,
    exact::{ExactSum, Expansion},
    exemplars::Exemplar,
    labels::{Group, LabelRef, LabelValue, SortKey},
    partial::Partial,
    request::MetricsRequest,
};
use crate::traceql::{Kind, Status};

#[derive(Clone, PartialEq, Message)]
struct WirePartial {
    #[prost(message, repeated, tag = "1")]
    groups: Vec<WireGroup>,
    #[prost(message, repeated, tag = "2")]
    attributes: Vec<WireAttribute>,
    #[prost(message, repeated, tag = "3")]
    exemplars: Vec<WireExemplar>,
    #[prost(message, optional, tag = "4")]
    horizon: Option<WireHorizon>,
    #[prost(uint64, tag = "5")]
    intervals: u64,
}

#[derive(Clone, PartialEq, Message)]
struct WireHorizon {
    #[prost(uint64, tag = "1")]
    labels: u64,
    #[prost(string, tag = "2")]
    text: String,
}

#[derive(Clone, PartialEq, Message)]
struct WireGroup {
    #[prost(message, repeated, tag = "1")]
    values: Vec<WireValue>,
    /// Intervals of the cells that are not empty; for buckets of each bucket after the other.
    #[prost(uint32, repeated, tag = "2")]
    intervals: Vec<u32>,
    /// Counts, one per cell.
    #[prost(uint64, repeated, tag = "3")]
    counts: Vec<u64>,
    /// Extremes, one per cell.
    #[prost(double, repeated, tag = "4")]
    extremes: Vec<f64>,
    /// Sums, one per cell.
    #[prost(message, repeated, tag = "5")]
    sums: Vec<WireSum>,
    /// Exponents of the buckets.
    #[prost(uint32, repeated, tag = "6")]
    exponents: Vec<u32>,
    /// Cells of each bucket.
    #[prost(uint32, repeated, tag = "7")]
    lengths: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct WireSum {
    /// 128 bits, big-endian.
    #[prost(fixed64, tag = "1")]
    high: u64,
    #[prost(fixed64, tag = "2")]
    low: u64,
    #[prost(double, repeated, tag = "3")]
    parts: Vec<f64>,
    #[prost(double, tag = "4")]
    special: f64,
}

#[derive(Clone, PartialEq, Message)]
struct WireValue {
    /// None: the value is absent.
    #[prost(oneof = "Value", tags = "1, 2, 3, 4, 5, 6, 7")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Value {
    #[prost(sint64, tag = "1")]
    Int(i64),
    #[prost(fixed64, tag = "2")]
    Float(u64),
    #[prost(string, tag = "3")]
    Text(String),
    #[prost(bool, tag = "4")]
    Bool(bool),
    #[prost(sint64, tag = "5")]
    Duration(i64),
    /// OTLP's code.
    #[prost(int32, tag = "6")]
    Status(i32),
    /// OTLP's code.
    #[prost(int32, tag = "7")]
    Kind(i32),
}

#[derive(Clone, PartialEq, Message)]
struct WireAttribute {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, repeated, tag = "2")]
    totals: Vec<WireCounts>,
    #[prost(message, repeated, tag = "3")]
    values: Vec<WireValue>,
    #[prost(bool, tag = "4")]
    overflowed: bool,
    /// Number of the cells of each value.
    #[prost(uint32, repeated, tag = "5")]
    lengths: Vec<u32>,
    /// Cells of the values, one value after the other: twice the interval, and one more inside of the selection.
    #[prost(uint32, repeated, tag = "6")]
    places: Vec<u32>,
    /// Counts, one per cell.
    #[prost(uint64, repeated, tag = "7")]
    counts: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct WireCounts {
    #[prost(uint32, repeated, tag = "1")]
    intervals: Vec<u32>,
    #[prost(uint64, repeated, tag = "2")]
    counts: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct WireExemplar {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    group: Vec<WireValue>,
    #[prost(fixed64, tag = "3")]
    time: u64,
    #[prost(message, optional, tag = "4")]
    number: Option<WireValue>,
    #[prost(string, repeated, tag = "5")]
    keys: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    values: Vec<WireValue>,
}

fn foreign(what: &'static str) -> MetricsError {
    MetricsError::Foreign { what }
}

fn to_wire(value: &LabelValue) -> WireValue {
    let value = match value {
        LabelValue::Nil => None,
        LabelValue::Int(number) => Some(Value::Int(*number)),
        LabelValue::Float(bits) => Some(Value::Float(*bits)),
        LabelValue::Text(text) => Some(Value::Text(text.as_ref().to_owned())),
        LabelValue::Bool(value) => Some(Value::Bool(*value)),
        LabelValue::Duration(nanos) => Some(Value::Duration(*nanos)),
        LabelValue::Status(Status::Unset) => Some(Value::Status(0)),
        LabelValue::Status(Status::Ok) => Some(Value::Status(1)),
        LabelValue::Status(Status::Error) => Some(Value::Status(2)),
        LabelValue::Kind(kind) => Some(Value::Kind(match kind {
            Kind::Unspecified => 0,
            Kind::Internal => 1,
            Kind::Server => 2,
            Kind::Client => 3,
            Kind::Producer => 4,
            Kind::Consumer => 5,
        })),
    };
    WireValue { value }
}

fn from_wire(value: WireValue) -> LabelValue {
    match value.value {
        None => LabelValue::Nil,
        Some(Value::Int(number)) => LabelValue::Int(number),
        Some(Value::Float(bits)) => LabelValue::float(f64::from_bits(bits)),
        Some(Value::Text(text)) => LabelValue::Text(text.into_boxed_str()),
        Some(Value::Bool(value)) => LabelValue::Bool(value),
        Some(Value::Duration(nanos)) => LabelValue::Duration(nanos),
        Some(Value::Status(code)) => LabelValue::Status(Status::from_otlp(code)),
        Some(Value::Kind(code)) => LabelValue::Kind(Kind::from_otlp(code)),
    }
}

/// Places and values of the cells that are not empty.
fn sparse<T: Copy>(cells: &[T], is_empty: impl Fn(T) -> bool) -> (Vec<u32>, Vec<T>) {
    cells.iter().enumerate().filter(|(_, cell)| !is_empty(**cell)).map(|(place, cell)| (place as u32, *cell)).unzip()
}

fn to_wire_counts(counts: &[u64]) -> WireCounts {
    let (intervals, counts) = sparse(counts, |count| count == 0);
    WireCounts { intervals, counts }
}

/// Pairs places with values, both checked.
fn dense<'a, T>(intervals: &'a [u32], values: &'a [T], limit: usize) -> Result<impl Iterator<Item = (usize, &'a T)>, MetricsError> {
    if intervals.len() != values.len() {
        return Err(foreign("cells and values differ in number"));
    }
    if intervals.iter().any(|interval| *interval as usize >= limit) {
        return Err(foreign("cell out of range"));
    }
    Ok(intervals.iter().map(|interval| *interval as usize).zip(values))
}

fn from_wire_counts(counts: Option<&WireCounts>, intervals: usize) -> Result<Vec<u64>, MetricsError> {
    let Some(counts) = counts.filter(|counts| !counts.intervals.is_empty()) else {
        return Ok(Vec::new());
    };
    let mut cells = vec![0; intervals];
    for (interval, count) in dense(&counts.intervals, &counts.counts, intervals)? {
        cells[interval] = *count;
    }
    Ok(cells)
}

fn to_wire_attribute(key: &str, attribute: &Attribute, intervals: usize) -> WireAttribute {
    let mut wire = WireAttribute {
        key: key.to_owned(),
        totals: attribute.totals.iter().map(|counts| to_wire_counts(counts)).collect(),
        overflowed: attribute.overflowed,
        ..WireAttribute::default()
    };
    for (value, counts) in attribute.values.iter(intervals) {
        let begin = wire.places.len();
        for (side, counts) in (0..).zip(counts.chunks_exact(intervals)) {
            for (interval, count) in (0..).zip(counts).filter(|(_, count)| **count > 0) {
                wire.places.push(2 * interval + side);
                wire.counts.push(*count);
            }
        }
        wire.values.push(to_wire(value));
        wire.lengths.push((wire.places.len() - begin) as u32);
    }
    wire
}

fn from_wire_attribute(wire: &WireAttribute, intervals: usize) -> Result<Attribute, MetricsError> {
    let side = |side: usize| from_wire_counts(wire.totals.get(side), intervals);
    let mut attribute = Attribute { totals: [side(0)?, side(1)?], overflowed: wire.overflowed, ..Attribute::default() };
    if wire.values.len() != wire.lengths.len() {
        return Err(foreign("values and lengths differ in number"));
    }
    let mut cells = dense(&wire.places, &wire.counts, 2 * intervals)?;
    for (value, length) in wire.values.iter().zip(&wire.lengths) {
        let value = from_wire(value.clone());
        let row = attribute.values.place(&LabelRef::from(&value), intervals, wire.values.len());
        let row = row.ok_or_else(|| foreign("too many values"))?;
        let counts = attribute.values.counts_mut(row, intervals);
        for (place, count) in cells.by_ref().take(*length as usize) {
            counts[place % 2 * intervals + place / 2] = *count;
        }
    }
    Ok(attribute)
}

impl Partial {
    /// The partial result as bytes, for another process of the same release.
    pub fn encode(&self) -> Vec<u8> {
        let intervals = self.groups.intervals;
        let group = |(group, at): (&Group, usize)| {
            let row = at * intervals..(at + 1) * intervals;
            let mut wire = WireGroup { values: group.iter().map(to_wire).collect(), ..WireGroup::default() };
            match &self.groups.cells {
                Cells::Counts(cells) => (wire.intervals, wire.counts) = sparse(&cells[row], |count| count == 0),
                Cells::Min(cells) | Cells::Max(cells) => (wire.intervals, wire.extremes) = sparse(&cells[row], f64::is_nan),
                Cells::Sums(cells) => {
                    for (place, sum) in cells[row].iter().enumerate().filter(|(_, sum)| sum.count > 0) {
                        wire.intervals.push(place as u32);
                        wire.counts.push(sum.count);
                        wire.sums.push(to_wire_sum(&sum.total));
                    }
                }
                Cells::Buckets(groups) => {
                    for (exponent, counts) in groups[at].sorted() {
                        let (places, counts) = sparse(counts, |count| count == 0);
                        wire.exponents.push(exponent.into());
                        wire.lengths.push(places.len() as u32);
                        wire.intervals.extend(places);
                        wire.counts.extend(counts);
                    }
                }
            }
            wire
        };
        let attribute = |(key, attribute)| to_wire_attribute(key, attribute, intervals);
        let exemplar = |(trace, exemplar): (TraceId, &Exemplar)| WireExemplar {
            trace_id: trace.0.to_vec(),
            group: exemplar.group.iter().map(to_wire).collect(),
            time: exemplar.time,
            number: exemplar.number.map(|number| match number {
                Number::Int(value) => to_wire(&LabelValue::Int(value)),
                Number::Float(value) => to_wire(&LabelValue::float(value)),
            }),
            keys: exemplar.labels.iter().map(|(key, _)| key.as_ref().to_owned()).collect(),
            values: exemplar.labels.iter().map(|(_, value)| to_wire(value)).collect(),
        };
        let horizon = self.groups.horizon.as_ref().map(SortKey::to_parts);
        let wire = WirePartial {
            groups: self.groups.iter().map(group).collect(),
            attributes: self.comparison.iter().map(attribute).collect(),
            exemplars: self.exemplars.iter().map(exemplar).collect(),
            horizon: horizon.map(|(labels, text)| WireHorizon { labels, text: text.to_owned() }),
            intervals: intervals as u64,
        };
        wire.encode_to_vec()
    }

    /// Reads a partial result of the same query.
    ///
    /// # Errors
    /// The bytes are none, or of another query, or do not fit into memory.
    pub fn decode(request: &MetricsRequest, bytes: &[u8]) -> Result<Self, MetricsError> {
        Self::decode_part(request, request, bytes)
    }

    /// Reads a partial result of a part of the intervals, see [`MetricsRequest::within`].
    ///
    /// # Errors
    /// As of [`Partial::decode`], or it is no part.
    pub fn decode_part(request: &MetricsRequest, part: &MetricsRequest, bytes: &[u8]) -> Result<Self, MetricsError> {
        let mut wire = WirePartial::decode(bytes).map_err(|_| foreign("not a message of this release"))?;
        let mut partial = Self::new(request);
        let intervals = partial.groups.intervals;
        let theirs = part.window().intervals();
        if wire.intervals != theirs as u64 {
            return Err(foreign("another number of intervals"));
        }
        wire.shift(request.offset_of(part).ok_or_else(|| foreign("other intervals"))?, theirs)?;
        if let Some(WireHorizon { labels, text }) = wire.horizon {
            partial.groups.cut_at(request, SortKey::from_parts(labels, text));
        }
        for group in wire.groups {
            let values = from_wire_group(request, group.values.clone())?;
            let Some(at) = partial.groups.find(request, &values)? else { continue };
            let at = at as usize;
            read_group(&mut partial.groups.cells, at, intervals, &group)?;
        }
        for wire in wire.attributes {
            partial.comparison.insert(&wire.key, from_wire_attribute(&wire, intervals)?);
        }
        for wire in wire.exemplars {
            if wire.keys.len() != wire.values.len() {
                return Err(foreign("keys and values differ in number"));
            }
            let trace_id = TraceId(wire.trace_id.try_into().map_err(|_| foreign("trace id is not of 16 bytes"))?);
            let number = match wire.number.map(from_wire) {
                None => None,
                Some(LabelValue::Int(value)) => Some(Number::Int(value)),
                Some(LabelValue::Float(bits)) => Some(Number::Float(f64::from_bits(bits))),
                Some(_) => return Err(foreign("value of an exemplar is no number")),
            };
            let labels = wire.keys.into_iter().map(String::into_boxed_str).zip(wire.values.into_iter().map(from_wire)).collect();
            let exemplar = Exemplar { group: from_wire_group(request, wire.group)?, time: wire.time, number, labels };
            partial.exemplars.offer(request, trace_id, exemplar);
        }
        Ok(partial)
    }
}

impl WirePartial {
    /// Moves all cells to later intervals; they are among the first `limit` before.
    fn shift(&mut self, offset: u32, limit: usize) -> Result<(), MetricsError> {
        if offset == 0 {
            return Ok(());
        }
        let shift = |place: &mut u32, step: u32| {
            if *place as usize >= limit * step as usize {
                return Err(foreign("cell out of range"));
            }
            *place = place.saturating_add(offset.saturating_mul(step));
            Ok(())
        };
        self.groups.iter_mut().flat_map(|group| &mut group.intervals).try_for_each(|place| shift(place, 1))?;
        for attribute in &mut self.attributes {
            attribute.totals.iter_mut().flat_map(|counts| &mut counts.intervals).try_for_each(|place| shift(place, 1))?;
            attribute.places.iter_mut().try_for_each(|place| shift(place, 2))?;
        }
        Ok(())
    }
}

fn from_wire_group(request: &MetricsRequest, values: Vec<WireValue>) -> Result<Group, MetricsError> {
    if values.len() != request.by().len() {
        return Err(foreign("another number of labels"));
    }
    Ok(values.into_iter().map(from_wire).collect())
}

fn to_wire_sum(sum: &ExactSum) -> WireSum {
    let bits = sum.integers as u128;
    let (parts, special) = sum.doubles.as_ref().map_or_else(Default::default, |doubles| (doubles.parts.clone(), doubles.special));
    WireSum { high: (bits >> 64) as u64, low: bits as u64, parts, special }
}

fn from_wire_sum(sum: &WireSum) -> ExactSum {
    let mut doubles = Expansion { special: sum.special, ..Expansion::default() };
    sum.parts.iter().for_each(|part| doubles.add(*part));
    let is_empty = doubles.parts.is_empty() && doubles.special == 0.0;
    let integers = (u128::from(sum.high) << 64 | u128::from(sum.low)) as i128;
    ExactSum { integers, doubles: (!is_empty).then(|| Box::new(doubles)) }
}

fn read_group(cells: &mut Cells, at: usize, intervals: usize, group: &WireGroup) -> Result<(), MetricsError> {
    let row = at * intervals..(at + 1) * intervals;
    match cells {
        Cells::Counts(cells) => {
            dense(&group.intervals, &group.counts, intervals)?.for_each(|(place, count)| cells[row.start + place] = *count);
        }
        Cells::Min(cells) | Cells::Max(cells) => {
            dense(&group.intervals, &group.extremes, intervals)?.for_each(|(place, value)| cells[row.start + place] = *value);
        }
        Cells::Sums(cells) => {
            let sums = dense(&group.intervals, &group.sums, intervals)?;
            for ((place, sum), count) in sums.zip(&group.counts) {
                cells[row.start + place] = Sum { count: *count, total: from_wire_sum(sum) };
            }
        }
        Cells::Buckets(groups) => {
            if group.exponents.len() != group.lengths.len() {
                return Err(foreign("buckets and lengths differ in number"));
            }
            let mut all = dense(&group.intervals, &group.counts, intervals)?;
            for (exponent, length) in group.exponents.iter().zip(&group.lengths) {
                let exponent = u8::try_from(*exponent).ok().filter(|exponent| (1..64).contains(exponent));
                let counts = groups[at].row(exponent.ok_or_else(|| foreign("bucket out of range"))?, intervals);
                for (place, count) in all.by_ref().take(*length as usize) {
                    counts[place] = *count;
                }
            }
        }
    }
    Ok(())
}
