//! Sums that do not depend on the order of what is summed.
//!
//! Jobs are cut one way today and another way tomorrow, and answers arrive in any order; a sum of doubles would differ in its last digits each
//! time. Integers are summed in 128 bits. Doubles are kept as an expansion: a few doubles that do not overlap and whose sum is exact
//! (Shewchuk 1997). Both are rounded once, when the sum is read.

/// An exact sum of integers and doubles.
#[derive(Clone, Debug, Default)]
pub(super) struct ExactSum {
    pub(super) integers: i128,
    pub(super) doubles: Option<Box<Expansion>>,
}

impl ExactSum {
    pub(super) fn add_integer(&mut self, value: i64) {
        self.integers += i128::from(value);
    }

    pub(super) fn add_double(&mut self, value: f64) {
        self.doubles.get_or_insert_default().add(value);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.integers = self.integers.saturating_add(other.integers);
        if let Some(doubles) = &other.doubles {
            self.doubles.get_or_insert_default().merge(doubles);
        }
    }

    /// The sum, rounded once.
    pub(super) fn value(&self) -> f64 {
        let Some(doubles) = &self.doubles else {
            return self.integers as f64;
        };
        let mut all = doubles.as_ref().clone();
        // 128 bits as doubles of at most 53 bits, each exact.
        let mut rest = self.integers.unsigned_abs();
        while rest != 0 {
            let shift = (u128::BITS - rest.leading_zeros()).saturating_sub(f64::MANTISSA_DIGITS);
            let top = rest >> shift << shift;
            all.add(if self.integers < 0 { -(top as f64) } else { top as f64 });
            rest -= top;
        }
        all.value()
    }
}

/// An exact sum of doubles.
#[derive(Clone, Debug, Default)]
pub(super) struct Expansion {
    /// Do not overlap; ascending in magnitude; none is 0.
    pub(super) parts: Vec<f64>,
    /// Sum of what is not finite, or became so.
    pub(super) special: f64,
}

impl Expansion {
    pub(super) fn add(&mut self, value: f64) {
        if !value.is_finite() {
            self.special += value;
            return;
        }
        let mut sum = value;
        let mut kept = 0;
        for index in 0..self.parts.len() {
            let (high, low) = two_sum(sum, self.parts[index]);
            if low != 0.0 {
                self.parts[kept] = low;
                kept += 1;
            }
            sum = high;
        }
        self.parts.truncate(kept);
        if !sum.is_finite() {
            self.parts.clear();
            self.special += sum;
        } else if sum != 0.0 {
            self.parts.push(sum);
        }
    }

    fn merge(&mut self, other: &Self) {
        self.special += other.special;
        other.parts.iter().for_each(|part| self.add(*part));
    }

    fn value(&self) -> f64 {
        if self.special != 0.0 || self.special.is_nan() {
            return self.special;
        }
        let mut parts = self.parts.iter().rev().copied();
        let mut sum = parts.next().unwrap_or(0.0);
        let mut rest = 0.0;
        for part in parts.by_ref() {
            let (high, low) = two_sum(sum, part);
            sum = high;
            if low != 0.0 {
                rest = low;
                break;
            }
        }
        // Half way between two doubles, what is left below decides.
        if let Some(next) = parts.next()
            && (rest < 0.0) == (next < 0.0)
        {
            let doubled = rest * 2.0;
            let up = sum + doubled;
            if doubled == up - sum {
                return up;
            }
        }
        sum
    }
}

/// `a + b` rounded, and what rounding lost.
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let of_b = sum - a;
    let of_a = sum - of_b;
    (sum, (a - of_a) + (b - of_b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(values: &[f64]) -> ExactSum {
        let mut sum = ExactSum::default();
        values.iter().for_each(|value| sum.add_double(*value));
        sum
    }

    #[test]
    fn nothing_is_lost_between_large_and_small() {
        assert_eq!(sum(&[1e100, 1.0, -1e100]).value(), 1.0);
        assert_eq!(sum(&[0.1; 10]).value(), 1.0);
        let mut mixed = sum(&[0.5, 0.25]);
        mixed.add_integer(i64::MAX);
        mixed.add_integer(-i64::MAX);
        mixed.add_integer(-3);
        assert_eq!(mixed.value(), -2.25);
        assert!(sum(&[f64::INFINITY, f64::NEG_INFINITY]).value().is_nan());
        assert_eq!(sum(&[f64::INFINITY, 1.0]).value(), f64::INFINITY);
        assert_eq!(ExactSum::default().value(), 0.0);
    }

    fn doubles() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(prop_oneof![-1e3..1e3f64, -1e18..1e18f64, -1e-9..1e-9f64], 0..40)
    }

    proptest! {
        #[test]
        fn neither_order_nor_split_matters(mut values in doubles(), integers in prop::collection::vec(any::<i64>(), 0..5), cut in 0usize..40) {
            let mut whole = sum(&values);
            integers.iter().for_each(|value| whole.add_integer(*value));
            values.reverse();
            let (left, right) = values.split_at(cut.min(values.len()));
            let (mut left, mut right) = (sum(left), sum(right));
            integers.iter().for_each(|value| right.add_integer(*value));
            let other = left.clone();
            left.merge(&right);
            right.merge(&other);
            prop_assert_eq!(whole.value().to_bits(), left.value().to_bits());
            prop_assert_eq!(whole.value().to_bits(), right.value().to_bits());
        }
    }
}
