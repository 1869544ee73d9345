//! From a duration to its buckets.
//!
//! Durations are whole nanoseconds, bounds are seconds in floating point. Tempo divides the one by 1e9 and compares; so that nothing
//! has to be divided per span, each bound is turned once into the greatest number of nanoseconds for which that comparison holds.

use std::sync::Arc;

use super::{
    agg::{Agg, Buckets, Weight},
    series::{Layout, Parts},
    settings::{Common, Histograms},
};

/// Puts durations into the buckets of one [`Layout`].
#[derive(Clone, Debug)]
pub struct Bucketer {
    layout: Arc<Layout>,
    /// For each classic bound: the longest duration inside.
    nanoseconds: Vec<u64>,
    /// For each exponential bucket between 0.5 and 1: its upper bound. Empty where schema is 0 or less, or there is no native histogram.
    fractions: Vec<f64>,
}

/// Values up to this many seconds are in the zero bucket: Prometheus' default.
pub const ZERO_THRESHOLD: f64 = 2.938735877055719e-39;

/// Prometheus' schemas: from buckets that grow by 65536 to buckets that grow by 2^(1/256).
const SCHEMAS: std::ops::RangeInclusive<i8> = -4..=8;

/// The schema with the widest buckets that grow by at most `factor`; the finest one where none does.
pub fn schema(factor: f64) -> i8 {
    SCHEMAS.into_iter().find(|schema| 2f64.powf(2f64.powi(-i32::from(*schema))) <= factor).unwrap_or(*SCHEMAS.end())
}

impl Bucketer {
    /// Of a tenant's settings.
    pub fn new(bounds: &Arc<[f64]>, parts: Parts, common: &Common) -> Self {
        let classic = matches!(common.histograms, Histograms::Classic | Histograms::Both).then(|| Arc::clone(bounds));
        let native = matches!(common.histograms, Histograms::Native | Histograms::Both);
        let native = native.then(|| schema(common.native_histogram_bucket_factor));
        Self::of(Layout { parts, classic, native })
    }

    /// Of a layout.
    pub fn of(layout: Layout) -> Self {
        let nanoseconds = layout.classic.iter().flat_map(|bounds| bounds.iter()).map(|bound| longest(*bound)).collect();
        let fractions = layout.native.filter(|schema| *schema > 0).map_or_else(Vec::new, |schema| {
            let steps = 1u32 << schema;
            (0..steps).map(|step| 2f64.powf(f64::from(step) / f64::from(steps)) / 2.0).collect()
        });
        Self { layout: Arc::new(layout), nanoseconds, fractions }
    }

    /// The layout.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Adds a duration. Returns its [`Self::exemplar_bucket`].
    pub fn observe(&self, agg: &mut Agg, nanoseconds: u64, weight: Weight) -> i32 {
        agg.count.0 = agg.count.0.wrapping_add(weight.0);
        agg.sum = agg.sum.wrapping_add(weight.times(nanoseconds));
        let classic = self.layout.classic.is_some().then(|| self.classic(nanoseconds));
        if let Some(bucket) = classic {
            agg.classic.add(bucket, weight);
        }
        let native = self.layout.native.map(|schema| self.native(nanoseconds, schema));
        if let Some(bucket) = native {
            agg.native.add(bucket, weight);
        }
        classic.or(native).unwrap_or_default()
    }

    /// The bucket whose exemplar a duration may be: of a native histogram only where there is no classic one.
    pub fn exemplar_bucket(&self, nanoseconds: u64) -> i32 {
        match self.layout.native {
            Some(schema) if self.layout.classic.is_none() => self.native(nanoseconds, schema),
            _ => self.classic(nanoseconds),
        }
    }

    fn classic(&self, nanoseconds: u64) -> i32 {
        self.nanoseconds.partition_point(|longest| *longest < nanoseconds) as i32
    }

    /// As Prometheus counts: bucket i holds what is above base^(i-1) and at most base^i.
    fn native(&self, nanoseconds: u64, schema: i8) -> i32 {
        let seconds = nanoseconds as f64 / 1e9;
        if seconds <= ZERO_THRESHOLD {
            return Buckets::ZERO;
        }
        let (fraction, exponent) = frexp(seconds);
        if schema > 0 {
            let step = self.fractions.partition_point(|bound| *bound < fraction) as i32;
            return step + (exponent - 1) * self.fractions.len() as i32;
        }
        // An exact power of two is the upper end of the bucket before.
        let key = if fraction == 0.5 { exponent - 1 } else { exponent };
        let shift = u32::from(schema.unsigned_abs());
        (key + (1 << shift) - 1) >> shift
    }
}

/// A positive, normal number as a fraction in [0.5, 1) and a power of two.
fn frexp(value: f64) -> (f64, i32) {
    let bits = value.to_bits();
    let exponent = (bits >> 52 & 0x7ff) as i32 - 1022;
    (f64::from_bits(bits & !(0x7ff << 52) | 1022 << 52), exponent)
}

/// The greatest number of nanoseconds that, as seconds, is not above `bound`.
fn longest(bound: f64) -> u64 {
    let inside = |nanoseconds: u64| nanoseconds as f64 / 1e9 <= bound;
    let mut longest = (bound * 1e9) as u64;
    while longest > 0 && !inside(longest) {
        longest -= 1;
    }
    while longest < u64::MAX && inside(longest + 1) {
        longest += 1;
    }
    longest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::generator::settings::SPAN_METRICS_BUCKETS;

    fn bucketer(classic: Option<&[f64]>, native: Option<i8>) -> Bucketer {
        Bucketer::of(Layout { parts: Parts::ALL, classic: classic.map(Arc::from), native })
    }

    #[test]
    fn the_default_factor_is_schema_three() {
        assert_eq!((schema(1.1), schema(2.0), schema(65536.0), schema(1.0)), (3, 0, -4, 8));
    }

    #[test]
    fn bounds_belong_to_the_bucket_below() {
        let bucketer = bucketer(Some(&SPAN_METRICS_BUCKETS), None);
        assert_eq!([0, 2_000_000, 2_000_001, 16_384_000_000, 16_384_000_001].map(|ns| bucketer.classic(ns)), [0, 0, 1, 13, 14]);
    }

    #[test]
    fn powers_of_two_end_their_native_bucket() {
        let second = 1_000_000_000;
        for (schema, expected) in [(0, [-1, 0, 1, 2]), (3, [-8, 0, 8, 16]), (-1, [0, 0, 1, 1])] {
            let bucketer = bucketer(None, Some(schema));
            assert_eq!([second / 2, second, 2 * second, 4 * second].map(|ns| bucketer.native(ns, schema)), expected, "schema {schema}");
        }
        assert_eq!(bucketer(None, Some(3)).native(0, 3), Buckets::ZERO);
    }

    proptest! {
        #[test]
        fn classic_buckets_are_those_of_floating_point(ns in 0u64..40_000_000_000) {
            let expected = SPAN_METRICS_BUCKETS.iter().position(|bound| ns as f64 / 1e9 <= *bound).unwrap_or(SPAN_METRICS_BUCKETS.len());
            prop_assert_eq!(bucketer(Some(&SPAN_METRICS_BUCKETS), None).classic(ns), expected as i32);
        }

        #[test]
        fn native_buckets_hold_their_values(ns in 1u64..40_000_000_000, schema in -4i8..=8) {
            let bucket = f64::from(bucketer(None, Some(schema)).native(ns, schema));
            let width = 2f64.powi(-i32::from(schema));
            let value = (ns as f64 / 1e9).log2();
            prop_assert!(value <= bucket * width + 1e-9 && value > (bucket - 1.0) * width - 1e-9);
        }
    }
}
