//! Checkpoints of the generator: what workers report, and how it is kept on the bucket.
//!
//! For a commit each process writes two objects beside the manifest that is going to name them, each once under a name of its own: the
//! series and waiting halves of its workers as of the checkpoint tick (`generator-<sequence>-<uuid>.series.zst`), and the identities of the
//! spans that they counted since the commit before (`generator-<sequence>-<uuid>.ids`, see [`super::identities`]). An object that no
//! manifest names is garbage of a crash. The next generation reads all of them and divides them anew.
//!
//! Layouts and tenants repeat from series to series, so they are listed once and series say which. The bytes are those of postcard: a
//! commit writes all series if one has changed, and a form without names and digits takes a fraction of the time that JSON takes.

use std::{
    borrow::Cow,
    collections::HashMap,
    io::{BufWriter, IntoInnerError, Read},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use storage::id::Tenant;

use super::{
    agg::Agg,
    identities::{self, Identities},
    metrics::Metrics,
    series::{Definition, Family, Labels, Layout, Series},
    service_graph::Half,
    snapshot::{Accumulated, Snapshot, Snapshots},
};
use crate::{
    ledger::Generated,
    letters::Kept,
    manifest::{IdentitiesObject, Manifest, ManifestError, ManifestStore},
    tick::Ticks,
    upload::Backoff,
};

/// What a worker reports as of a checkpoint tick.
#[derive(Clone, Debug)]
pub(crate) struct Shard {
    pub(crate) tick: u64,
    pub(crate) part: Part,
}

/// Each worker reports one of each.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    /// Its series, and whether they have changed since its last report.
    Series { series: Vec<Arc<Accumulated>>, changed: bool },
    /// Identities of the spans that it has seen since its last report, the halves that wait, and whether those may have changed.
    Observed { identities: Vec<u64>, halves: Vec<(Tenant, Half)>, changed: bool },
}

/// Everything as of a checkpoint tick.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Contents {
    pub(crate) series: Vec<Arc<Accumulated>>,
    pub(crate) halves: Vec<(Tenant, Half)>,
}

const VERSION: u32 = 2;

/// Bytes that are given to the compressor at a time.
const WRITE_BYTES: usize = 64 << 10;

/// More than this is not decompressed.
const MAX_BYTES: u64 = 4 << 30;

/// What follows the version.
#[derive(Serialize, Deserialize)]
struct File<'a> {
    tick: u64,
    tenants: Vec<Tenant>,
    layouts: Vec<Arc<Layout>>,
    series: Vec<Row<'a>>,
    halves: Cow<'a, [(Tenant, Half)]>,
}

#[derive(Serialize, Deserialize)]
struct Row<'a> {
    tenant: usize,
    family: Family,
    labels: Cow<'a, Labels>,
    layout: usize,
    agg: Cow<'a, Agg>,
    first: u64,
    last: u64,
}

/// Why an object cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    #[error("cannot be decompressed")]
    Compression(#[from] std::io::Error),
    #[error("is not what it should be")]
    Postcard(#[from] postcard::Error),
    #[error("has version {0}, this program knows {VERSION}")]
    Version(u32),
    #[error("refers to tenant or layout {0}, which it does not have")]
    Reference(usize),
}

impl Contents {
    pub(crate) fn encode(&self, tick: u64) -> Result<Vec<u8>, CheckpointError> {
        let (mut tenants, mut layouts) = (Vec::new(), Vec::<Arc<Layout>>::new());
        let (mut tenant_of, mut layout_of) = (HashMap::new(), HashMap::new());
        let rows = self.series.iter().map(|accumulated| {
            let Definition { tenant, family, labels, layout } = accumulated.series.definition();
            let tenant = *tenant_of.entry(tenant.clone()).or_insert_with(|| {
                tenants.push(tenant.clone());
                tenants.len() - 1
            });
            let layout = *layout_of.entry(Arc::as_ptr(layout)).or_insert_with(|| {
                layouts.push(Arc::clone(layout));
                layouts.len() - 1
            });
            let Accumulated { agg, first, last, .. } = &**accumulated;
            let (labels, agg) = (Cow::Borrowed(labels), Cow::Borrowed(agg));
            Row { tenant, family: *family, labels, layout, agg, first: *first, last: *last }
        });
        let series = rows.collect();
        let file = File { tick, tenants, layouts, series, halves: Cow::Borrowed(&self.halves) };
        let mut encoder = zstd::Encoder::new(Vec::new(), 1)?;
        encoder.include_checksum(true)?;
        // Numbers are written one by one.
        let writer = BufWriter::with_capacity(WRITE_BYTES, encoder);
        let writer = postcard::to_io(&file, postcard::to_io(&VERSION, writer)?)?;
        Ok(writer.into_inner().map_err(IntoInnerError::into_error)?.finish()?)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let mut plain = Vec::new();
        zstd::Decoder::new(bytes)?.take(MAX_BYTES).read_to_end(&mut plain)?;
        let (version, rest) = postcard::take_from_bytes(&plain)?;
        if version != VERSION {
            return Err(CheckpointError::Version(version));
        }
        let file: File<'_> = postcard::from_bytes(rest)?;
        let accumulated = |row: Row<'_>| {
            let tenant = file.tenants.get(row.tenant).ok_or(CheckpointError::Reference(row.tenant))?.clone();
            let layout = Arc::clone(file.layouts.get(row.layout).ok_or(CheckpointError::Reference(row.layout))?);
            let series = Series::new(Definition { tenant, family: row.family, labels: row.labels.into_owned(), layout });
            Ok(Arc::new(Accumulated { series, agg: row.agg.into_owned(), first: row.first, last: row.last, exemplars: Vec::new() }))
        };
        Ok(Self {
            series: file.series.into_iter().map(accumulated).collect::<Result<_, CheckpointError>>()?,
            halves: file.halves.into_owned(),
        })
    }
}

/// Keeps checkpoints beside the manifests, and publishes what has been committed.
#[derive(Clone, Debug)]
pub(crate) struct Keeper {
    pub(crate) snapshots: Snapshots,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) ticks: Ticks,
    /// Identities are listed for this many ticks.
    pub(crate) window: u64,
}

/// What a generation begins with.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    pub(crate) contents: Contents,
    pub(crate) counted: Option<Arc<Identities>>,
}

impl Keeper {
    /// Writes what this process has come to, for the manifest with this number, however long it takes. `before` is what was written the
    /// last time: series that have not changed since are not written again.
    ///
    /// # Errors
    /// It cannot be encoded, so there must be no manifest that says that it was counted.
    pub(crate) async fn write(
        &self,
        store: &ManifestStore,
        sequence: u64,
        tick: u64,
        generated: &Generated,
        before: Option<&Kept>,
    ) -> Result<Kept, String> {
        let series = match before {
            Some(before) if !generated.changed => before.series.clone(),
            _ if generated.contents == Contents::default() => None,
            _ => {
                let contents = generated.contents.clone();
                let encode = tokio::task::spawn_blocking(move || contents.encode(tick).map_err(|error| error.to_string()));
                let encoded = encode.await.unwrap_or_else(|died| Err(died.to_string()));
                Some(self.put(store, sequence, "series.zst", "series", encoded?.into()).await)
            }
        };
        let identities = if generated.identities.is_empty() {
            None
        } else {
            let bytes = identities::encode(&generated.identities).into();
            Some(self.put(store, sequence, "ids", "identities", bytes).await)
        };
        Ok(Kept { series, identities })
    }

    async fn put(&self, store: &ManifestStore, sequence: u64, extension: &str, content: &str, body: Bytes) -> String {
        let mut backoff = Backoff::default();
        loop {
            match store.put_object(sequence, extension, body.clone()).await {
                Ok(name) => {
                    self.metrics.checkpoint_bytes.with_label_values(&[content]).inc_by(body.len() as u64);
                    return name;
                }
                Err(error) => backoff.wait("checkpoint of the metrics-generator", &error).await,
            }
        }
    }

    /// Shows the series of this process as a manifest that is on the bucket holds them. See [`Snapshot::recovered`].
    pub(crate) fn publish<'a>(
        &self,
        sequence: u64,
        tick: u64,
        recovered: Option<u64>,
        series: impl IntoIterator<Item = &'a Arc<Accumulated>>,
    ) {
        let mut tenants: HashMap<Tenant, Vec<Arc<Accumulated>>> = HashMap::new();
        for accumulated in series {
            tenants.entry(accumulated.series.tenant().clone()).or_default().push(Arc::clone(accumulated));
        }
        let sorted = |mut series: Vec<Arc<Accumulated>>| {
            series.sort_unstable_by_key(|accumulated| accumulated.series.id());
            Arc::from(series)
        };
        let tenants = tenants.into_iter().map(|(tenant, series)| (tenant, sorted(series))).collect();
        let at = Duration::from_nanos(u64::try_from(self.ticks.length().as_nanos()).unwrap_or(u64::MAX).saturating_mul(tick + 1));
        self.snapshots.publish(Snapshot { sequence, tick, at, tick_length: self.ticks.length(), recovered, tenants });
    }

    /// Reads what a manifest names. What is gone or corrupt is counted and told, and passed over: no waiting brings it back.
    ///
    /// # Errors
    /// The store refused.
    pub(crate) async fn restore(&self, store: &ManifestStore, manifest: &Manifest) -> Result<Restored, ManifestError> {
        let Some(objects) = &manifest.generator else { return Ok(Restored::default()) };
        let lost = |object: &str, cause: &str| {
            tracing::error!(object, cause, "checkpoint of the metrics-generator is lost, its series begin anew");
            self.metrics.lost_checkpoints.inc();
        };
        let mut contents = Contents::default();
        for object in &objects.series {
            match store.get_object(object).await?.map(|bytes| Contents::decode(&bytes)) {
                Some(Ok(part)) => {
                    contents.series.extend(part.series);
                    contents.halves.extend(part.halves);
                }
                Some(Err(error)) => lost(object, &error.to_string()),
                None => lost(object, "it is not there"),
            }
        }
        let mut counted = Identities::until(manifest.tick.saturating_add(self.window));
        for IdentitiesObject { object, .. } in &objects.identities {
            match store.get_object(object).await?.as_deref().and_then(identities::decode) {
                Some(identities) => counted.extend(&identities),
                None => tracing::warn!(object, "identities of counted spans cannot be read: late copies of them may count twice"),
            }
        }
        Ok(Restored { contents, counted: (!counted.is_empty()).then(|| Arc::new(counted)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::{Parts, Weight};

    fn contents() -> Contents {
        let layout = Arc::new(Layout { parts: Parts::ALL, classic: Some([0.1, 1.0].into()), native: Some(3) });
        let accumulated = |n: u64| {
            let tenant = Tenant::new(if n.is_multiple_of(2) { "a" } else { "b" }).expect("valid");
            let labels = Labels::new(vec![("service".into(), format!("service {n}").into())]);
            let series = Series::new(Definition { tenant, family: Family::SpanMetrics, labels, layout: Arc::clone(&layout) });
            let mut agg = Agg { sum: i128::MAX - i128::from(n), size: -5, ..Agg::counted(Weight(i128::MIN + 7)) };
            agg.classic.add(2, Weight(3));
            agg.native.add(i32::MIN, Weight(i128::from(n) + 1));
            Arc::new(Accumulated { series, agg, first: n, last: u64::MAX, exemplars: Vec::new() })
        };
        Contents { series: (0..50).map(accumulated).collect(), halves: Vec::new() }
    }

    #[test]
    fn other_versions_are_told_apart() {
        let of = |plain: &[u8]| zstd::encode_all(plain, 1).expect("compresses");
        for (plain, says) in
            [(&[1, 0, 0][..], "has version 1, this program knows 2"), (b"{\"version\":1}", "has version 123, this program knows 2")]
        {
            assert_eq!(Contents::decode(&of(plain)).expect_err("another version").to_string(), says);
        }
    }

    #[test]
    fn comes_back_or_not_at_all() {
        let contents = contents();
        let bytes = contents.encode(7).expect("encodes");
        assert_eq!(Contents::decode(&bytes).expect("decodes"), contents);
        for cut in (0..bytes.len()).step_by(7) {
            assert!(Contents::decode(&bytes[..cut]).is_err());
            let mut flipped = bytes.clone();
            flipped[cut] ^= 0x10;
            assert!(Contents::decode(&flipped).map_or(true, |there| there == contents), "the checksum tells");
        }
    }
}
