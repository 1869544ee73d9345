//! The difference of the collections: what one or many observations add to a series.
//!
//! [`Agg`] is a group: adding is associative and commutative, zero is neutral, each value has an inverse. So it does not matter in which
//! order, in which ticks or on which worker observations meet, and what was added can be taken away again. There is no floating point
//! inside, hence sums are equal to the bit however they came about.
//!
//! *Weights.* A span that stands for 1/v spans (`span_multiplier_key`) adds 1/v. A [`Weight`] is that number in units of 2⁻³² in 128 bits:
//! 1/v is rounded once, when the span is seen, and whole numbers are exact. Arithmetic wraps, which is what makes it a group; it takes
//! 2⁶³ spans of a century each to get there.

use std::cmp::Ordering;

use differential_dataflow::difference::{Abelian, IsZero, Monoid, Semigroup};
use serde::{Deserialize, Serialize};

/// How many spans an observation stands for, in units of 2⁻³². Sums of weights are of this type, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Weight(pub i128);

impl Weight {
    /// Stands for nothing.
    pub const ZERO: Self = Self(0);
    /// Stands for itself.
    pub const ONE: Self = Self(1 << 32);

    /// The weight of a span whose multiplier attribute is `v`: 1/v, or one when `v` is not a positive number. At most 2⁶⁴ spans.
    pub fn of_ratio(v: f64) -> Self {
        if v > 0.0 { Self(((1.0 / v) * Self::ONE.0 as f64).round().min(2f64.powi(96)) as i128) } else { Self::ONE }
    }

    /// The weight of a span that was sampled because 56 random bits were not below `threshold`: 2⁵⁶/(2⁵⁶ − threshold), or one when that
    /// cannot be.
    pub fn of_threshold(threshold: u64) -> Self {
        let Some(kept) = (1u64 << 56).checked_sub(threshold).filter(|kept| *kept > 0) else { return Self::ONE };
        let kept = i128::from(kept);
        Self(((1i128 << 88) + kept / 2) / kept)
    }

    /// As a number.
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / Self::ONE.0 as f64
    }

    /// This many nanoseconds, once for each span that the weight stands for: what an observation adds to [`Agg::sum`].
    pub fn times(self, nanoseconds: u64) -> i128 {
        self.0.wrapping_mul(i128::from(nanoseconds))
    }
}

/// Weights by bucket, sparse: sorted by bucket, none of them zero. Most series see few buckets, most ticks one or two of them.
///
/// Of a classic histogram the bucket is the index of the first bound that is not smaller than the value, one past the last for `+Inf`.
/// Of a native histogram it is the exponential index of the value in seconds, or [`Buckets::ZERO`]. Not cumulative.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Buckets(Vec<(i32, Weight)>);

impl Buckets {
    /// The bucket of a native histogram for values that are too small for any other.
    pub const ZERO: i32 = i32::MIN;

    /// Adds to one bucket.
    pub fn add(&mut self, bucket: i32, weight: Weight) {
        match self.0.binary_search_by_key(&bucket, |entry| entry.0) {
            Ok(index) => {
                let sum = &mut self.0[index].1.0;
                *sum = sum.wrapping_add(weight.0);
                if *sum == 0 {
                    self.0.remove(index);
                }
            }
            Err(index) if weight.0 != 0 => self.0.insert(index, (bucket, weight)),
            Err(_) => {}
        }
    }

    /// The buckets that hold something, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (i32, Weight)> + '_ {
        self.0.iter().copied()
    }

    /// Whether no bucket holds anything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn plus(&mut self, other: &Self) {
        if self.0.is_empty() {
            self.0.clone_from(&other.0);
            return;
        }
        // A tick touches few buckets of many.
        if other.0.len() < 4 {
            other.iter().for_each(|(bucket, weight)| self.add(bucket, weight));
            return;
        }
        let mut merged = Vec::with_capacity(self.0.len() + other.0.len());
        let (mut ours, mut theirs) = (self.0.iter().copied().peekable(), other.0.iter().copied().peekable());
        loop {
            let next = match (ours.peek(), theirs.peek()) {
                (Some(our), Some(their)) => match our.0.cmp(&their.0) {
                    Ordering::Less => ours.next(),
                    Ordering::Greater => theirs.next(),
                    Ordering::Equal => {
                        let sum = our.1.0.wrapping_add(their.1.0);
                        theirs.next();
                        ours.next().map(|(bucket, _)| (bucket, Weight(sum)))
                    }
                },
                (Some(_), None) => ours.next(),
                (None, _) => theirs.next(),
            };
            match next {
                Some((_, Weight(0))) => {}
                Some(entry) => merged.push(entry),
                None => break,
            }
        }
        self.0 = merged;
    }
}

/// What observations add to a series. Which fields mean something depends on the series' [`Family`](super::Family).
///
/// It travels between processes in a form without names: no field may ever be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Agg {
    /// Number of observations, weighted.
    pub count: Weight,
    /// Sum of durations: nanoseconds times weight, so in units of 2⁻³² ns. See [`Self::seconds`].
    pub sum: i128,
    /// Encoded size of spans in bytes, not weighted.
    pub size: i128,
    /// Durations in the buckets of the classic histogram; empty where there is none.
    pub classic: Buckets,
    /// Durations in the buckets of the native histogram; empty where there is none.
    pub native: Buckets,
}

impl Agg {
    /// An observation without duration.
    pub fn counted(weight: Weight) -> Self {
        Self { count: weight, ..Self::default() }
    }

    /// The sum of durations in seconds.
    pub fn seconds(&self) -> f64 {
        self.sum as f64 / Weight::ONE.0 as f64 / 1e9
    }
}

impl IsZero for Agg {
    fn is_zero(&self) -> bool {
        self.count.0 == 0 && self.sum == 0 && self.size == 0 && self.classic.is_empty() && self.native.is_empty()
    }
}

impl Semigroup for Agg {
    fn plus_equals(&mut self, other: &Self) {
        self.count.0 = self.count.0.wrapping_add(other.count.0);
        self.sum = self.sum.wrapping_add(other.sum);
        self.size = self.size.wrapping_add(other.size);
        self.classic.plus(&other.classic);
        self.native.plus(&other.native);
    }
}

impl Monoid for Agg {
    fn zero() -> Self {
        Self::default()
    }
}

impl Abelian for Agg {
    fn negate(&mut self) {
        self.count.0 = self.count.0.wrapping_neg();
        self.sum = self.sum.wrapping_neg();
        self.size = self.size.wrapping_neg();
        for buckets in [&mut self.classic, &mut self.native] {
            buckets.0.iter_mut().for_each(|(_, weight)| weight.0 = weight.0.wrapping_neg());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn aggs() -> impl Strategy<Value = Agg> {
        let observation = (0..40i32, any::<i64>(), any::<i128>(), any::<bool>());
        prop::collection::vec(observation, 0..12).prop_map(|observations| {
            let mut agg = Agg::default();
            for (bucket, weight, sum, native) in observations {
                let weight = Weight(i128::from(weight));
                agg.count.0 += weight.0;
                agg.sum = agg.sum.wrapping_add(sum);
                agg.size = agg.size.wrapping_sub(sum);
                if native { agg.native.add(bucket, weight) } else { agg.classic.add(bucket, weight) }
            }
            agg
        })
    }

    fn plus(a: &Agg, b: &Agg) -> Agg {
        let mut sum = a.clone();
        sum.plus_equals(b);
        sum
    }

    proptest! {
        #[test]
        fn is_an_abelian_group(a in aggs(), b in aggs(), c in aggs()) {
            prop_assert_eq!(plus(&plus(&a, &b), &c), plus(&a, &plus(&b, &c)));
            prop_assert_eq!(plus(&a, &b), plus(&b, &a));
            prop_assert_eq!(&plus(&a, &Agg::zero()), &a);
            let mut inverse = a.clone();
            inverse.negate();
            prop_assert!(plus(&a, &inverse).is_zero());
            prop_assert_eq!(plus(&plus(&a, &b), &inverse), b);
            prop_assert_eq!(a.is_zero(), a == Agg::zero());
        }

        #[test]
        fn comes_back_from_bytes(a in aggs()) {
            let bytes = postcard::to_stdvec(&a).expect("encodes");
            prop_assert_eq!(postcard::from_bytes::<Agg>(&bytes).expect("decodes"), a);
        }
    }

    #[test]
    fn weights_are_inverse_ratios() {
        assert_eq!(Weight::of_ratio(0.25).as_f64(), 4.0);
        assert_eq!(Weight::of_ratio(0.001).as_f64(), 1000.0);
        assert_eq!(Weight::of_ratio(2.0).as_f64(), 0.5);
        for ratio in [0.0, -1.0, f64::NAN] {
            assert_eq!(Weight::of_ratio(ratio), Weight::ONE);
        }
        assert_eq!(Weight::of_ratio(f64::INFINITY), Weight::ZERO);
        assert!(Weight::of_ratio(f64::MIN_POSITIVE).0 > 0);
    }
}
