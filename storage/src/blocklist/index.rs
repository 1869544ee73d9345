//! The tenant index: what one process found below a tenant, for those that need not look themselves (block-format.md §3.2).
//!
//! ```text
//!  index.pb.zst     a zstd frame of protobuf     what readers take
//!  index.json.gz    gzip of JSON                 what they take when there is no protobuf: releases of Tempo up to 2.6 know only this
//! ```
//!
//! It says what the folders say and draws no conclusions from lineage, so that Tempo and Rubato read the same from it. Rubato's own
//! [`Meta::compacted_from`] is a key of the JSON and field 50000 of the protobuf (16 bytes for each id, one after the other; the number is
//! from the range that protobuf leaves for use in-house); [`Meta::created_at`] is one and field 50001. Tempo passes over them.
//!
//! Bytes come from a bucket: what is decompressed is bounded, and what does not fit together is an error that names it.

use std::{
    io::{self, Read, Write as _},
    sync::Arc,
    time::Duration,
};

use flate2::{Compression, GzBuilder, bufread::MultiGzDecoder};
use prost::Message as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::Found;
use crate::{
    block::{DedicatedColumn, Meta, rfc3339},
    id::{BlockId, InvalidTenant, Tenant},
};

/// Name of the protobuf.
pub const PROTOBUF: &str = "index.pb.zst";
/// Name of the JSON.
pub const JSON: &str = "index.json.gz";

/// Compressed bytes of an index, at most.
pub(super) const MAX_BYTES: u64 = 64 << 20;
/// Bytes of an index, at most: some hundred thousand blocks.
const MAX_DECOMPRESSED: u64 = 512 << 20;

/// The years 1 to 9999: the times that protobuf's `Timestamp` can stand for.
const TIMES: std::ops::RangeInclusive<i64> = Meta::NO_TIME..=253_402_300_799;

/// What is known of a tenant's blocks, and as of when.
#[derive(Clone, Debug, PartialEq)]
pub struct TenantIndex {
    /// When it was made, since the Unix epoch.
    pub created_at: Duration,
    /// The blocks. Nothing is known of `no_compact`.
    pub found: Found,
}

/// Why bytes are not an index of the tenant.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// It cannot be decompressed, or is too large.
    #[error("cannot be decompressed")]
    Compression(#[from] io::Error),
    /// It is no such JSON.
    #[error("is not valid JSON")]
    Json(#[from] serde_json::Error),
    /// It is no such protobuf.
    #[error("is not valid protobuf")]
    Protobuf(#[from] prost::DecodeError),
    /// The name of a tenant is none.
    #[error("names an invalid tenant")]
    Tenant(#[from] InvalidTenant),
    /// A value makes no sense.
    #[error("has a wrong {0}")]
    Field(&'static str),
    /// It has blocks of another tenant.
    #[error("has a block of tenant \"{0}\"")]
    Foreign(Tenant),
}

impl TenantIndex {
    /// The bytes of `index.json.gz`.
    ///
    /// # Errors
    /// Never for an index that this crate made.
    pub fn to_json(&self) -> Result<Vec<u8>, IndexError> {
        // Tempo writes `null` for a list without entries.
        fn list<T>(entries: Vec<T>) -> Option<Vec<T>> {
            (!entries.is_empty()).then_some(entries)
        }
        let compacted = self.found.compacted.iter().map(|(meta, at)| CompactedJson { meta, compacted_time: rfc3339::format(*at) });
        let json = IndexJson {
            created_at: format_nanos(self.created_at),
            meta: list(self.found.live.iter().map(Arc::as_ref).collect()),
            compacted: list(compacted.collect()),
        };
        let mut gzip = GzBuilder::new().filename("index.json").write(Vec::new(), Compression::default());
        gzip.write_all(&serde_json::to_vec(&json)?)?;
        Ok(gzip.finish()?)
    }

    /// Reads `index.json.gz` of a tenant.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(bytes: &[u8], tenant: &Tenant) -> Result<Self, IndexError> {
        let bytes = bounded(MultiGzDecoder::new(bytes), MAX_DECOMPRESSED)?;
        let read: ReadIndexJson = serde_json::from_slice(&bytes)?;
        let created_at = parse_nanos(&read.created_at).ok_or(IndexError::Field("created_at"))?;
        let live = read.meta.into_iter().map(Arc::new).collect();
        let compacted = read.compacted.into_iter().map(|compacted| (Arc::new(compacted.meta), compacted.compacted_time)).collect();
        Self { created_at, found: Found { live, compacted, ..Found::default() } }.of_tenant(tenant)
    }

    /// The bytes of `index.pb.zst`.
    ///
    /// # Errors
    /// Never for an index that this crate made.
    pub fn to_protobuf(&self) -> Result<Vec<u8>, IndexError> {
        let seconds = i64::try_from(self.created_at.as_secs()).map_err(|_| IndexError::Field("created_at"))?;
        let compacted = self.found.compacted.iter().map(|(meta, at)| {
            let compacted_time = Some(timestamp(*at));
            Ok(proto::CompactedBlockMeta { meta: Some(to_proto(meta)?), compacted_time })
        });
        let index = proto::TenantIndex {
            created_at: Some(proto::Timestamp { seconds, nanos: self.created_at.subsec_nanos().cast_signed() }),
            meta: self.found.live.iter().map(|meta| to_proto(meta)).collect::<Result<_, IndexError>>()?,
            compacted: compacted.collect::<Result<_, IndexError>>()?,
        };
        Ok(zstd::encode_all(index.encode_to_vec().as_slice(), 0)?)
    }

    /// Reads `index.pb.zst` of a tenant.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_protobuf(bytes: &[u8], tenant: &Tenant) -> Result<Self, IndexError> {
        let bytes = bounded(zstd::Decoder::with_buffer(bytes)?, MAX_DECOMPRESSED)?;
        let read = proto::TenantIndex::decode(bytes.as_slice())?;
        let time = read.created_at.ok_or(IndexError::Field("created_at"))?;
        let seconds = u64::try_from(time.seconds).map_err(|_| IndexError::Field("created_at"))?;
        let nanos = u32::try_from(time.nanos).ok().filter(|nanos| *nanos < 1_000_000_000).ok_or(IndexError::Field("created_at"))?;
        let compacted = read.compacted.into_iter().map(|compacted| {
            let meta = from_proto(compacted.meta.ok_or(IndexError::Field("compacted block"))?)?;
            let at = bounded_time(compacted.compacted_time, "compacted_time")?.ok_or(IndexError::Field("compacted_time"))?;
            Ok((Arc::new(meta), at))
        });
        let found = Found {
            live: read.meta.into_iter().map(|meta| from_proto(meta).map(Arc::new)).collect::<Result<_, IndexError>>()?,
            compacted: compacted.collect::<Result<_, IndexError>>()?,
            ..Found::default()
        };
        Self { created_at: Duration::new(seconds, nanos), found }.of_tenant(tenant)
    }

    fn of_tenant(self, tenant: &Tenant) -> Result<Self, IndexError> {
        let mut metas = self.found.live.iter().chain(self.found.compacted.iter().map(|(meta, _)| meta));
        match metas.find(|meta| meta.tenant_id != *tenant) {
            Some(foreign) => Err(IndexError::Foreign(foreign.tenant_id.clone())),
            None => Ok(self),
        }
    }
}

/// Everything that is read, unless it is too much.
fn bounded(reader: impl Read, max: u64) -> Result<Vec<u8>, io::Error> {
    let mut bytes = Vec::new();
    reader.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::other(format!("more than {max} bytes")));
    }
    Ok(bytes)
}

#[derive(Serialize)]
struct IndexJson<'a> {
    created_at: String,
    meta: Option<Vec<&'a Meta>>,
    compacted: Option<Vec<CompactedJson<'a>>>,
}

#[derive(Serialize)]
struct CompactedJson<'a> {
    #[serde(flatten)]
    meta: &'a Meta,
    #[serde(rename = "compactedTime")]
    compacted_time: String,
}

#[derive(Deserialize)]
struct ReadIndexJson {
    created_at: String,
    #[serde(default, deserialize_with = "or_null")]
    meta: Vec<Meta>,
    #[serde(default, deserialize_with = "or_null")]
    compacted: Vec<ReadCompactedJson>,
}

#[derive(Deserialize)]
struct ReadCompactedJson {
    #[serde(flatten)]
    meta: Meta,
    #[serde(rename = "compactedTime", with = "rfc3339")]
    compacted_time: i64,
}

fn or_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Option::<Vec<T>>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// RFC 3339 in UTC with as many digits of the second as it takes.
fn format_nanos(time: Duration) -> String {
    let seconds = rfc3339::format(i64::try_from(time.as_secs()).unwrap_or(i64::MAX / 2));
    let fraction = format!("{:09}", time.subsec_nanos());
    match fraction.trim_end_matches('0') {
        "" => seconds,
        fraction => format!("{}.{fraction}Z", seconds.trim_end_matches('Z')),
    }
}

fn parse_nanos(text: &str) -> Option<Duration> {
    let seconds = u64::try_from(rfc3339::parse(text)?).ok()?;
    let fraction = text.split_once('.').map_or("", |(_, fraction)| fraction);
    let digits: String = fraction.chars().take_while(char::is_ascii_digit).take(9).collect();
    let nanos = format!("{digits:0<9}").parse().ok()?;
    Some(Duration::new(seconds, nanos))
}

fn timestamp(seconds: i64) -> proto::Timestamp {
    proto::Timestamp { seconds, nanos: 0 }
}

/// A time as it can stand in JSON, too. Whoever computes with it need not fear an overflow.
fn bounded_time(time: Option<proto::Timestamp>, field: &'static str) -> Result<Option<i64>, IndexError> {
    match time {
        Some(time) if !TIMES.contains(&time.seconds) => Err(IndexError::Field(field)),
        time => Ok(time.map(|time| time.seconds)),
    }
}

fn to_proto(meta: &Meta) -> Result<proto::BlockMeta, IndexError> {
    let dedicated_columns = if meta.dedicated_columns.is_empty() { Vec::new() } else { serde_json::to_vec(&meta.dedicated_columns)? };
    Ok(proto::BlockMeta {
        version: meta.format.clone(),
        block_id: meta.block_id.as_bytes().to_vec(),
        tenant_id: meta.tenant_id.as_str().to_owned(),
        start_time: Some(timestamp(meta.start_time)),
        end_time: Some(timestamp(meta.end_time)),
        total_objects: i64::try_from(meta.total_objects).map_err(|_| IndexError::Field("total_objects"))?,
        size: meta.size,
        compaction_level: meta.compaction_level,
        index_page_size: meta.index_page_size,
        total_records: meta.total_records,
        bloom_shard_count: meta.bloom_shards,
        footer_size: meta.footer_size,
        // Present in every record, even when it is empty.
        dedicated_columns: Some(dedicated_columns),
        replication_factor: meta.replication_factor,
        compacted_from: meta.compacted_from.iter().flat_map(|id| *id.as_bytes()).collect(),
        created_at: meta.created_at.map(timestamp),
    })
}

fn from_proto(meta: proto::BlockMeta) -> Result<Meta, IndexError> {
    let id = |bytes: &[u8]| BlockId::from_slice(bytes).map_err(|_| IndexError::Field("block_id"));
    let dedicated_columns: Vec<DedicatedColumn> = match meta.dedicated_columns.as_deref() {
        None | Some([]) => Vec::new(),
        Some(json) => serde_json::from_slice::<Option<_>>(json)?.unwrap_or_default(),
    };
    Ok(Meta {
        format: meta.version,
        block_id: id(&meta.block_id)?,
        tenant_id: Tenant::new(&meta.tenant_id)?,
        start_time: bounded_time(meta.start_time, "start_time")?.unwrap_or(Meta::NO_TIME),
        end_time: bounded_time(meta.end_time, "end_time")?.unwrap_or(Meta::NO_TIME),
        total_objects: u64::try_from(meta.total_objects).map_err(|_| IndexError::Field("total_objects"))?,
        size: meta.size,
        compaction_level: meta.compaction_level,
        index_page_size: meta.index_page_size,
        total_records: meta.total_records,
        bloom_shards: meta.bloom_shard_count,
        footer_size: meta.footer_size,
        dedicated_columns,
        replication_factor: meta.replication_factor,
        compacted_from: meta.compacted_from.chunks(16).map(id).collect::<Result<_, IndexError>>()?,
        created_at: bounded_time(meta.created_at, "created_at")?,
    })
}

/// The messages of `index.pb.zst`. Fields 11 and 14, which old releases wrote, are read over.
mod proto {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Timestamp {
        #[prost(int64, tag = "1")]
        pub(super) seconds: i64,
        #[prost(int32, tag = "2")]
        pub(super) nanos: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct TenantIndex {
        #[prost(message, optional, tag = "1")]
        pub(super) created_at: Option<Timestamp>,
        #[prost(message, repeated, tag = "2")]
        pub(super) meta: Vec<BlockMeta>,
        #[prost(message, repeated, tag = "3")]
        pub(super) compacted: Vec<CompactedBlockMeta>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct CompactedBlockMeta {
        #[prost(message, optional, tag = "1")]
        pub(super) meta: Option<BlockMeta>,
        #[prost(message, optional, tag = "2")]
        pub(super) compacted_time: Option<Timestamp>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct BlockMeta {
        #[prost(string, tag = "1")]
        pub(super) version: String,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) block_id: Vec<u8>,
        #[prost(string, tag = "5")]
        pub(super) tenant_id: String,
        #[prost(message, optional, tag = "6")]
        pub(super) start_time: Option<Timestamp>,
        #[prost(message, optional, tag = "7")]
        pub(super) end_time: Option<Timestamp>,
        #[prost(int64, tag = "8")]
        pub(super) total_objects: i64,
        #[prost(uint64, tag = "9")]
        pub(super) size: u64,
        #[prost(uint32, tag = "10")]
        pub(super) compaction_level: u32,
        #[prost(uint32, tag = "12")]
        pub(super) index_page_size: u32,
        #[prost(uint32, tag = "13")]
        pub(super) total_records: u32,
        #[prost(uint32, tag = "15")]
        pub(super) bloom_shard_count: u32,
        #[prost(uint32, tag = "16")]
        pub(super) footer_size: u32,
        #[prost(bytes = "vec", optional, tag = "17")]
        pub(super) dedicated_columns: Option<Vec<u8>>,
        #[prost(uint32, tag = "18")]
        pub(super) replication_factor: u32,
        #[prost(bytes = "vec", tag = "50000")]
        pub(super) compacted_from: Vec<u8>,
        #[prost(message, optional, tag = "50001")]
        pub(super) created_at: Option<Timestamp>,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use proptest::prelude::*;

    use super::*;
    use crate::{block::fixtures, blocklist::tests::meta};

    /// Every tenant index of Tempo: its folder and its tenant.
    fn indexes() -> Option<Vec<(PathBuf, Tenant)>> {
        let root = fixtures::root()?;
        let mut tenants = Vec::new();
        for bucket in ["vParquet2", "vParquet3", "vParquet4", "vParquet5", "upstream/tenant-index-v3.0.3", "upstream/tenant-index-v2.10.8"]
        {
            for folder in fs::read_dir(root.join(bucket)).expect("bucket") {
                let folder = folder.expect("folder").path();
                if folder.join(JSON).exists() || folder.join(PROTOBUF).exists() {
                    let tenant = folder.file_name().and_then(|name| name.to_str()).expect("name");
                    tenants.push((folder.clone(), Tenant::new(tenant).expect("tenant")));
                }
            }
        }
        assert!(tenants.len() >= 10, "{tenants:?}");
        Some(tenants)
    }

    /// Without the fractions of seconds in `compactedTime`, and without the keys that releases no longer write.
    fn as_we_write(json: &str) -> String {
        let mut parts = json.split(r#""compactedTime":""#);
        let mut written = parts.next().expect("a first part").to_owned();
        for part in parts {
            let (time, rest) = part.split_once('"').expect("closed");
            let seconds = time.split_once('.').map_or(time.trim_end_matches('Z'), |(seconds, _)| seconds);
            written += &format!(r#""compactedTime":"{seconds}Z"{rest}"#);
        }
        written.replace(r#""encoding":"none","#, "").replace(r#""dataEncoding":"","#, "")
    }

    #[test]
    fn indexes_of_tempo_are_read_and_written_back() {
        let Some(indexes) = indexes() else { return };
        for (folder, tenant) in indexes {
            let protobuf = fs::read(folder.join(PROTOBUF)).ok();
            let json = fs::read(folder.join(JSON)).ok();
            let of_protobuf = protobuf.as_ref().map(|bytes| TenantIndex::from_protobuf(bytes, &tenant).expect("protobuf"));
            let of_json = json.as_ref().map(|bytes| TenantIndex::from_json(bytes, &tenant).expect("json"));
            if let (Some(a), Some(b)) = (&of_protobuf, &of_json) {
                assert_eq!(a.found, b.found, "{}", folder.display());
            }
            let index = of_protobuf.or(of_json).expect("one of them");
            let blocks: Vec<_> = index.found.live.iter().chain(index.found.compacted.iter().map(|(meta, _)| meta)).collect();
            assert!(!blocks.is_empty());
            for meta in blocks {
                let block = folder.join(meta.block_id.to_string());
                let Ok(bytes) = fs::read(block.join("meta.json")).or_else(|_| fs::read(block.join("meta.compacted.json"))) else {
                    continue;
                };
                // The metas of the older of the two upstream buckets are not those that its index was made of.
                if !folder.to_string_lossy().contains("v2.10.8") {
                    assert_eq!(**meta, Meta::from_json(&bytes).expect("meta"));
                }
            }
            assert_eq!(TenantIndex::from_protobuf(&index.to_protobuf().expect("encode"), &tenant).expect("decode"), index);
            assert_eq!(TenantIndex::from_json(&index.to_json().expect("encode"), &tenant).expect("decode"), index);
            assert!(matches!(
                TenantIndex::from_protobuf(&index.to_protobuf().expect("encode"), &Tenant::new("another").expect("tenant")),
                Err(IndexError::Foreign(_))
            ));
            // The upstream ones are from before the order of keys was what it is.
            let is_upstream = folder.to_string_lossy().contains("upstream");
            if let Some(json) = json.filter(|_| !is_upstream) {
                let index = TenantIndex::from_json(&json, &tenant).expect("json");
                let text =
                    |bytes: &[u8]| String::from_utf8(bounded(MultiGzDecoder::new(bytes), MAX_DECOMPRESSED).expect("gzip")).expect("text");
                assert!(as_we_write(&text(&json)) == text(&index.to_json().expect("encode")), "{}", folder.display());
                assert_eq!(index.to_json().expect("encode")[10..21], json[10..21], "the name in the header");
            }
            if let Some(protobuf) = protobuf.filter(|_| !is_upstream) {
                // Fields 11 and 14 and fractions of seconds apart, the bytes are the same.
                let theirs = bounded(zstd::Decoder::with_buffer(protobuf.as_slice()).expect("zstd"), MAX_DECOMPRESSED).expect("zstd");
                let ours = index.to_protobuf().expect("encode");
                let ours = bounded(zstd::Decoder::with_buffer(ours.as_slice()).expect("zstd"), MAX_DECOMPRESSED).expect("zstd");
                if index.found.compacted.is_empty() && !folder.to_string_lossy().contains("vParquet2") {
                    assert_eq!(ours, theirs, "{}", folder.display());
                }
            }
        }
    }

    #[test]
    fn a_large_index_of_tempo_is_whole() {
        let Some(root) = fixtures::root() else { return };
        let json = fs::read(root.join("upstream/tenant-index-v3.0.3/3").join(JSON)).expect("index");
        let index = TenantIndex::from_json(&json, &Tenant::new("3").expect("tenant")).expect("index");
        assert_eq!((index.found.live.len(), index.found.compacted.len()), (22_435, 3_264));
        assert_eq!(format_nanos(index.created_at), "2024-10-01T03:23:41.935630083Z");
    }

    #[test]
    fn our_own_keys_are_kept_and_empty_lists_are_null() {
        let tenant = Tenant::single();
        let compacted_from = vec![BlockId::from_u128(1), BlockId::from_u128(2)];
        let live = vec![Arc::new(Meta { compacted_from, created_at: Some(1_790_000_000), ..meta(&tenant, 7) })];
        let index = TenantIndex { created_at: Duration::from_millis(1_500), found: Found { live, ..Found::default() } };
        assert_eq!(TenantIndex::from_protobuf(&index.to_protobuf().expect("encode"), &tenant).expect("decode"), index);
        let json = index.to_json().expect("encode");
        assert_eq!(TenantIndex::from_json(&json, &tenant).expect("decode"), index);
        let text = String::from_utf8(bounded(MultiGzDecoder::new(json.as_slice()), MAX_DECOMPRESSED).expect("gzip")).expect("text");
        assert!(
            text.starts_with(r#"{"created_at":"1970-01-01T00:00:01.5Z","meta":[{"format":"#) && text.ends_with(r#""compacted":null}"#),
            "{text}"
        );
    }

    #[test]
    fn times_that_cannot_be_are_refused() {
        let tenant = Tenant::single();
        let read = |change: fn(&mut Meta)| {
            let mut wrong = meta(&tenant, 7);
            change(&mut wrong);
            let found = Found { live: vec![Arc::new(wrong)], ..Found::default() };
            let index = TenantIndex { created_at: Duration::ZERO, found };
            TenantIndex::from_protobuf(&index.to_protobuf().expect("encode"), &tenant)
        };
        assert!(read(|meta| meta.end_time = *TIMES.end()).is_ok());
        assert!(matches!(read(|meta| meta.end_time = i64::MIN), Err(IndexError::Field("end_time"))));
        assert!(matches!(read(|meta| meta.start_time = i64::MAX), Err(IndexError::Field("start_time"))));
        assert!(matches!(read(|meta| meta.created_at = Some(TIMES.end() + 1)), Err(IndexError::Field("created_at"))));
    }

    #[test]
    fn a_bomb_is_refused() {
        let bomb = zstd::encode_all(vec![0; 1 << 20].as_slice(), 1).expect("zstd");
        assert!(bomb.len() < 1 << 10);
        let decoder = || zstd::Decoder::with_buffer(bomb.as_slice()).expect("zstd");
        assert_eq!(bounded(decoder(), 1 << 20).expect("just so many").len(), 1 << 20);
        assert!(bounded(decoder(), (1 << 20) - 1).is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let tenant = Tenant::single();
            prop_assert!(TenantIndex::from_json(&bytes, &tenant).is_err());
            prop_assert!(bytes.is_empty() || TenantIndex::from_protobuf(&bytes, &tenant).is_err());
            let frame = zstd::encode_all(bytes.as_slice(), 0).expect("zstd");
            let _ = TenantIndex::from_protobuf(&frame, &tenant);
        }

        #[test]
        fn damage_never_panics(at in 0usize..4096, to in any::<u8>(), cut in 0usize..4096) {
            let tenant = Tenant::single();
            let columns = vec![DedicatedColumn { scope: "event".into(), name: "a".into(), kind: "int".into(), options: vec!["blob".into()] }];
            let live = (0..3).map(|n| Arc::new(Meta { block_id: BlockId::from_u128(n), dedicated_columns: columns.clone(), ..meta(&tenant, 7) }));
            let compacted = (3..5).map(|n| (Arc::new(Meta { block_id: BlockId::from_u128(n), ..meta(&tenant, 7) }), 5));
            let found = Found { live: live.collect(), compacted: compacted.collect(), ..Found::default() };
            let index = TenantIndex { created_at: Duration::from_secs(9), found };
            let compressed = index.to_protobuf().expect("encode");
            let mut bytes = bounded(zstd::Decoder::with_buffer(compressed.as_slice()).expect("zstd"), MAX_DECOMPRESSED).expect("zstd");
            let length = bytes.len();
            bytes[at % length] = to;
            bytes.truncate(cut % (length + 1));
            let _ = TenantIndex::from_protobuf(&zstd::encode_all(bytes.as_slice(), 0).expect("zstd"), &tenant);
        }
    }
}
