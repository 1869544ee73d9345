//! Quantiles of durations in buckets, as Prometheus' `histogram_quantile` reads them: linear inside a classic bucket, exponential inside
//! a native one. A value beyond the last bound counts as that bound.

use crate::generator::{Agg, Buckets, Layout, Weight};

/// The duration in seconds that a share `q` of the observations does not exceed; none without observations or buckets.
pub(super) fn quantile(layout: &Layout, agg: &Agg, q: f64) -> Option<f64> {
    match (layout.native, &layout.classic) {
        (Some(schema), _) => {
            let (bucket, share) = find(&agg.native, q)?;
            if bucket == Buckets::ZERO {
                return Some(0.0);
            }
            Some(((f64::from(bucket) - 1.0 + share) * 2f64.powi(-i32::from(schema))).exp2())
        }
        (None, Some(bounds)) => {
            let (bucket, share) = find(&agg.classic, q)?;
            let bucket = usize::try_from(bucket).ok()?;
            let below = bucket.checked_sub(1).map_or(Some(0.0), |below| bounds.get(below).copied())?;
            Some(bounds.get(bucket).map_or(below, |above| below + (above - below) * share))
        }
        (None, None) => None,
    }
}

/// The bucket that the quantile lies in, and how far in it.
fn find(buckets: &Buckets, q: f64) -> Option<(i32, f64)> {
    let total: f64 = buckets.iter().map(|(_, weight)| weight.as_f64()).sum();
    let mut rank = q * total;
    let mut last = None;
    for (bucket, weight) in buckets.iter().filter(|(_, weight)| *weight > Weight::ZERO) {
        let count = weight.as_f64();
        if rank <= count {
            return Some((bucket, rank / count));
        }
        rank -= count;
        last = Some((bucket, 1.0));
    }
    last
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::generator::{
        Parts,
        histogram::Bucketer,
        settings::{Common, Histograms},
    };

    fn observed(histograms: Histograms, seconds: &[f64]) -> (Arc<Layout>, Agg) {
        let bucketer = Bucketer::new(&[0.1, 0.2, 0.4].into(), Parts::ALL, &Common { histograms, ..Common::default() });
        let mut agg = Agg::default();
        let nanoseconds = |seconds: &f64| Duration::from_secs_f64(*seconds).as_nanos() as u64;
        seconds.iter().for_each(|seconds| _ = bucketer.observe(&mut agg, nanoseconds(seconds), Weight::ONE));
        (Arc::clone(bucketer.layout()), agg)
    }

    #[test]
    fn classic_buckets_are_linear_inside() {
        let (layout, agg) = observed(Histograms::Classic, &[0.05, 0.15, 0.15, 0.3]);
        let quantile = |q| quantile(&layout, &agg, q).expect("observed");
        assert_eq!([quantile(0.25), quantile(0.5), quantile(0.75)], [0.1, 0.15000000000000002, 0.2]);
        assert!((quantile(1.0) - 0.4).abs() < 1e-12);
        let (layout, beyond) = observed(Histograms::Classic, &[9.0, 9.0]);
        assert_eq!(super::quantile(&layout, &beyond, 0.5), Some(0.4));
        assert_eq!(super::quantile(&layout, &Agg::default(), 0.5), None);
        assert_eq!(super::quantile(&Layout::COUNTER, &beyond, 0.5), None);
    }

    #[test]
    fn native_buckets_are_close_to_the_truth() {
        let values: Vec<f64> = (1..=1000).map(|n| f64::from(n) / 1000.0).collect();
        let (layout, agg) = observed(Histograms::Native, &values);
        for q in [0.1, 0.5, 0.9, 0.99] {
            let found = quantile(&layout, &agg, q).expect("observed");
            assert!((found / q - 1.0).abs() < 0.05, "{q}: {found}");
        }
        let (layout, zero) = observed(Histograms::Both, &[0.0, 0.0, 1.0]);
        assert_eq!(quantile(&layout, &zero, 0.5), Some(0.0));
    }
}
