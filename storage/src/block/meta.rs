//! `meta.json`: what a block says of itself, in the words and the key order of Tempo (block-format.md §3).
//!
//! Readers locate the Parquet footer by `size` and `footerSize`, choose the bloom shard by `bloomShards` and name the dedicated columns
//! by `dedicatedColumns`, so a block whose meta does not fit its data cannot be read. Unknown keys are ignored and missing keys are zero.
//! `encoding`, `dataEncoding`, `minID` and `maxID`, which old releases wrote, are read over and never written.

use serde::{Deserialize, Serialize};

use super::format::Format;
use crate::id::{BlockId, Tenant};

/// How blocks are written.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Version of the block format.
    pub version: Format,
    /// False-positive rate of the bloom filters.
    pub bloom_filter_false_positive: f64,
    /// Bytes of one bloom shard.
    pub bloom_filter_shard_size_bytes: usize,
    /// Estimated bytes of a row group before it is cut. The estimate is Tempo's (§6.1), far from real bytes.
    pub row_group_size_bytes: usize,
    /// Attributes with a column of their own.
    pub dedicated_columns: Vec<DedicatedColumn>,
}

impl Settings {
    /// The dedicated columns that stand in the `meta.json` of a block of this version.
    pub fn columns_kept(&self) -> Vec<DedicatedColumn> {
        super::dedicated::kept(self.version, &self.dedicated_columns)
    }
}

impl Default for Settings {
    /// Tempo's defaults: one false positive in a hundred, shards of 100 KiB, the dedicated columns that 2.10 and later come with.
    fn default() -> Self {
        let column = |scope: &str, name: &str, kind: &str| DedicatedColumn {
            scope: scope.to_owned(),
            name: name.to_owned(),
            kind: kind.to_owned(),
            options: Vec::new(),
        };
        Self {
            version: Format::V4,
            bloom_filter_false_positive: 0.01,
            bloom_filter_shard_size_bytes: 102_400,
            row_group_size_bytes: 100_000_000,
            dedicated_columns: vec![
                column("resource", "k8s.cluster.name", "string"),
                column("resource", "k8s.namespace.name", "string"),
                column("resource", "k8s.pod.name", "string"),
                column("resource", "k8s.container.name", "string"),
                column("span", "http.request.method", "string"),
                column("span", "http.response.status_code", "int"),
                column("span", "url.path", "string"),
                column("span", "url.route", "string"),
                column("span", "server.address", "string"),
                column("span", "server.port", "int"),
                column("span", "http.method", "string"),
                column("span", "http.url", "string"),
                column("span", "http.route", "string"),
                column("span", "http.status_code", "int"),
            ],
        }
    }
}

/// An attribute with a column of its own. Field names are those of `meta.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DedicatedColumn {
    /// `resource`, `span` or `event`.
    #[serde(rename = "s", default = "span_scope", skip_serializing_if = "is_span_scope")]
    pub scope: String,
    /// Attribute name.
    #[serde(rename = "n")]
    pub name: String,
    /// `string` or `int`.
    #[serde(rename = "t", default = "string_type", skip_serializing_if = "is_string_type")]
    pub kind: String,
    /// `array`, `blob`.
    #[serde(rename = "o", default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

fn span_scope() -> String {
    "span".to_owned()
}

fn is_span_scope(scope: &str) -> bool {
    scope == "span"
}

fn string_type() -> String {
    "string".to_owned()
}

fn is_string_type(kind: &str) -> bool {
    kind == "string"
}

/// `meta.json` (block-format.md §3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Version of the block format, such as `vParquet4`.
    pub format: String,
    /// Identity, and name of the folder.
    #[serde(rename = "blockID")]
    pub block_id: BlockId,
    /// Owner, and name of the folder above.
    #[serde(rename = "tenantID")]
    pub tenant_id: Tenant,
    /// Smallest start of a trace, in seconds since the Unix epoch; [`Meta::NO_TIME`] when no trace has one.
    #[serde(rename = "startTime", default = "no_time", with = "rfc3339")]
    pub start_time: i64,
    /// Largest end of a trace, in seconds since the Unix epoch, rounded down; [`Meta::NO_TIME`] when no trace has one.
    #[serde(rename = "endTime", default = "no_time", with = "rfc3339")]
    pub end_time: i64,
    /// Rows.
    #[serde(rename = "totalObjects", default)]
    pub total_objects: u64,
    /// Bytes of `data.parquet`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size: u64,
    /// How often the block went through compaction.
    #[serde(rename = "compactionLevel", default)]
    pub compaction_level: u32,
    /// Always 0 in Parquet blocks.
    #[serde(rename = "indexPageSize", default)]
    pub index_page_size: u32,
    /// Row groups; blocks of Tempo may say one more than the file has.
    #[serde(rename = "totalRecords", default)]
    pub total_records: u32,
    /// Number of `bloom-N` objects.
    #[serde(rename = "bloomShards", default)]
    pub bloom_shards: u32,
    /// Bytes of the Parquet footer, without its length and magic.
    #[serde(rename = "footerSize", default)]
    pub footer_size: u32,
    /// Attributes with a column of their own, in the order of the columns.
    #[serde(rename = "dedicatedColumns", default, skip_serializing_if = "Vec::is_empty")]
    pub dedicated_columns: Vec<DedicatedColumn>,
    /// 0: written by one of several replicas; 1: the only copy.
    #[serde(rename = "replicationFactor", default, skip_serializing_if = "is_zero_u32")]
    pub replication_factor: u32,
    /// Rubato's own: the blocks that were merged into this one. While it is live, they are not, whatever their folders say. Tempo passes
    /// over keys that it does not know.
    #[serde(rename = "compactedFrom", default, skip_serializing_if = "Vec::is_empty")]
    pub compacted_from: Vec<BlockId>,
    /// Rubato's own: when the youngest of the block's data was ingested by our clock, in seconds since the Unix epoch. The spans' own
    /// times say nothing of that: they may lie in 1970 or in 2100. Blocks of Tempo have none.
    #[serde(rename = "createdAt", default, skip_serializing_if = "Option::is_none", with = "optional_rfc3339")]
    pub created_at: Option<i64>,
}

impl Meta {
    /// The time `0001-01-01T00:00:00Z` in Unix seconds, which stands for "no time".
    pub const NO_TIME: i64 = -62_135_596_800;

    /// When the youngest of the block's data was ingested, in seconds since the Unix epoch: what the block's age is counted from. Where
    /// nothing says so it is the end of the spans, which Tempo keeps near the time of ingestion.
    pub fn ingested_at(&self) -> i64 {
        self.created_at.unwrap_or(self.end_time)
    }

    /// [`Meta::created_at`] of a block that is made of others. None where none of them has it: the end says the same then.
    pub fn created_at_of_all<'a>(inputs: impl IntoIterator<Item = &'a Meta> + Clone) -> Option<i64> {
        let is_known = inputs.clone().into_iter().any(|meta| meta.created_at.is_some());
        inputs.into_iter().map(Meta::ingested_at).max().filter(|_| is_known)
    }

    /// The bytes of `meta.json`.
    ///
    /// # Errors
    /// Never for a meta that this crate made.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Reads `meta.json`. The format may be one that this crate cannot read.
    ///
    /// # Errors
    /// What is wrong with the JSON.
    pub fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

fn no_time() -> i64 {
    Meta::NO_TIME
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

fn is_zero_u32(value: &u32) -> bool {
    *value == 0
}

/// Unix seconds as RFC 3339 text in UTC.
pub(crate) mod rfc3339 {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(seconds: &i64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format(*seconds))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).ok_or_else(|| D::Error::custom(format_args!("time \"{text}\" is not RFC 3339")))
    }

    /// Days are counted from 1 March of year 0, so that the leap day is the last one of its year.
    pub(crate) fn format(seconds: i64) -> String {
        let days = seconds.div_euclid(86_400) + 719_468;
        let second = seconds.rem_euclid(86_400);
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
    }

    pub(crate) fn parse(text: &str) -> Option<i64> {
        let number = |range: std::ops::Range<usize>| text.get(range).filter(|t| t.bytes().all(|b| b.is_ascii_digit()))?.parse::<i64>().ok();
        let mark = |at: usize, expected: &[u8]| text.as_bytes().get(at).is_some_and(|b| expected.contains(b));
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
        let marked = mark(4, b"-") && mark(7, b"-") && mark(10, b"Tt") && mark(13, b":") && mark(16, b":");
        if !marked || !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
            return None;
        }
        let mut rest = text.get(19..)?;
        if let Some(fraction) = rest.strip_prefix('.') {
            let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
            rest = fraction.get(digits..).filter(|_| digits > 0)?;
        }
        let offset = match rest {
            "Z" | "z" => 0,
            _ => {
                let at = text.len() - rest.len();
                let size = number(at + 1..at + 3)? * 3600 + number(at + 4..at + 6)? * 60;
                match (rest.len(), rest.as_bytes().first(), rest.as_bytes().get(3)) {
                    (6, Some(b'+'), Some(b':')) => size,
                    (6, Some(b'-'), Some(b':')) => -size,
                    _ => return None,
                }
            }
        };
        let shifted_year = if month <= 2 { year - 1 } else { year };
        let shifted_month = (month + 9) % 12;
        let era = shifted_year.div_euclid(400);
        let year_of_era = shifted_year.rem_euclid(400);
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + (153 * shifted_month + 2) / 5 + day - 1;
        Some((era * 146_097 + day_of_era - 719_468) * 86_400 + hour * 3600 + minute * 60 + second - offset)
    }
}

/// [`rfc3339`], or no such key.
mod optional_rfc3339 {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::rfc3339;

    pub(super) fn serialize<S: Serializer>(seconds: &Option<i64>, serializer: S) -> Result<S::Ok, S::Error> {
        match seconds {
            Some(seconds) => rfc3339::serialize(seconds, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        let seconds = rfc3339::parse(&text);
        seconds.map(Some).ok_or_else(|| D::Error::custom(format_args!("time \"{text}\" is not RFC 3339")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::fixtures;

    #[test]
    fn times_are_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_790_000_000, "2026-09-21T14:13:20Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (Meta::NO_TIME, "0001-01-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339::format(seconds), text);
            assert_eq!(rfc3339::parse(text), Some(seconds));
        }
        assert_eq!(rfc3339::parse("1970-01-01T01:00:00.25+01:00"), Some(0));
        for bad in [
            "",
            "1970-01-01",
            "1970-01-01T00:00:00",
            "1970-13-01T00:00:00Z",
            "1970-01-01T00:00:00.Z",
            "+970-01-01T00:00:00Z",
            "1970-01-01T00:00:00é",
        ] {
            assert_eq!(rfc3339::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn metas_of_tempo_are_written_back_byte_for_byte() {
        for version in ["vParquet2", "vParquet3", "vParquet4", "vParquet5"] {
            let Some(blocks) = fixtures::blocks(version) else { return };
            assert!(!blocks.is_empty());
            for block in blocks {
                let name = if block.join("meta.json").exists() { "meta.json" } else { "meta.compacted.json" };
                let bytes = std::fs::read(block.join(name)).expect("meta");
                let meta = Meta::from_json(&bytes).expect("meta is read");
                // Releases that still wrote vParquet2 also wrote two keys that have been dropped since.
                let bytes = String::from_utf8_lossy(&bytes).replace(r#""encoding":"none","#, "").replace(r#""dataEncoding":"","#, "");
                assert_eq!(String::from_utf8_lossy(&meta.to_json().expect("json")), bytes);
            }
        }
    }

    #[test]
    fn the_time_of_ingestion_is_kept_where_it_is_known() {
        let of_tempo = Meta::from_json(
            br#"{"format":"vParquet4","blockID":"b18beca6-4d7f-4464-9f72-f343e688a4a0","tenantID":"a","endTime":"1970-01-01T00:00:09Z"}"#,
        )
        .expect("meta");
        assert_eq!((of_tempo.created_at, of_tempo.ingested_at()), (None, 9));
        assert!(!String::from_utf8_lossy(&of_tempo.to_json().expect("json")).contains("createdAt"));
        let ours = Meta { created_at: Some(1_790_000_000), ..of_tempo.clone() };
        let json = ours.to_json().expect("json");
        assert!(String::from_utf8_lossy(&json).contains(r#""createdAt":"2026-09-21T14:13:20Z""#));
        assert_eq!(Meta::from_json(&json).expect("meta"), ours);
        assert_eq!(ours.ingested_at(), 1_790_000_000);

        let late = Meta { end_time: 1_800_000_000, ..of_tempo.clone() };
        assert_eq!(Meta::created_at_of_all([&of_tempo, &late]), None);
        assert_eq!(Meta::created_at_of_all([&of_tempo, &ours]), Some(1_790_000_000));
        assert_eq!(Meta::created_at_of_all([&late, &ours]), Some(1_800_000_000), "the end of the one that says nothing else");
        let wrong = br#"{"format":"v","blockID":"b18beca6-4d7f-4464-9f72-f343e688a4a0","tenantID":"a","createdAt":"now"}"#;
        assert!(Meta::from_json(wrong).is_err());
    }

    #[test]
    fn old_and_sparse_metas_are_read() {
        let meta = Meta::from_json(
            br#"{"format":"v2","blockID":"b18beca6-4d7f-4464-9f72-f343e688a4a0","minID":"AA==","tenantID":"single-tenant","encoding":"zstd","x":[1]}"#,
        )
        .expect("unknown keys are ignored");
        assert_eq!((meta.format.as_str(), meta.start_time, meta.size), ("v2", Meta::NO_TIME, 0));
        assert!(Meta::from_json(br#"{"format":"vParquet4","blockID":"x","tenantID":"a"}"#).is_err());
        assert!(Meta::from_json(br#"{"format":"vParquet4","blockID":"b18beca6-4d7f-4464-9f72-f343e688a4a0","tenantID":"../a"}"#).is_err());
    }
}
