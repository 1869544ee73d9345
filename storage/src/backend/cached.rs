//! Reading a bucket through a cache, by the keys that Tempo uses (block-format.md §10.4).
//!
//! ```text
//!  read          <tenant>:<block>:<name>                    a whole object
//!  read_ranges   <tenant>:<block>:<name>:<offset>:<length>  each range by itself; what is not cached is fetched together
//!  put           blooms and index are cached when they are written
//! ```
//!
//! What comes out of a cache is taken only if it can be the thing: a range has the length that was asked for, a bloom filter says of
//! itself how long it is. Anything else is fetched again.

use std::ops::Range;

use bytes::Bytes;
use futures::future;

use super::{Store, StoreError};
use crate::{
    block::{Meta, is_filter},
    cache::{Cache, Role},
    id::{BlockId, Tenant},
};

fn object_key(tenant: &Tenant, block: BlockId, name: &str) -> String {
    format!("{tenant}:{block}:{name}")
}

fn range_key(tenant: &Tenant, block: BlockId, name: &str, range: &Range<u64>) -> String {
    format!("{tenant}:{block}:{name}:{}:{}", range.start, length(range))
}

fn length(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

fn is_whole(range: &Range<u64>, bytes: &Bytes) -> bool {
    bytes.len() as u64 == length(range)
}

/// Whether a range is one that is cached in this role.
fn is_cached(cache: &Cache, role: Role, range: &Range<u64>) -> bool {
    length(range) > 0 && (role != Role::ParquetPage || length(range) <= cache.max_page_bytes())
}

impl Store {
    /// The same bucket, read through a cache.
    #[must_use]
    pub fn with_cache(self, cache: Cache) -> Self {
        Self { cache: Some(cache), ..self }
    }

    /// The cache that the bucket is read through.
    pub fn cache(&self) -> Option<&Cache> {
        self.cache.as_ref()
    }

    /// A whole object of a block, from the cache if its role is cached. Of those who want it at the same time one fetches it.
    ///
    /// # Errors
    /// The bucket refused it.
    pub async fn read(&self, role: Role, tenant: &Tenant, block: BlockId, name: &str) -> Result<Bytes, StoreError> {
        let Some(cache) = &self.cache else { return self.get(tenant, block, name).await };
        let key = object_key(tenant, block, name);
        let is_whole = |bytes: &Bytes| role != Role::Bloom || is_filter(bytes);
        cache.get_or_fetch(role, &key, is_whole, self.get(tenant, block, name)).await
    }

    /// A bloom filter of a block, from the cache if those of such blocks are cached.
    ///
    /// # Errors
    /// The bucket refused it.
    pub async fn read_bloom(&self, meta: &Meta, shard: u32) -> Result<Bytes, StoreError> {
        let (tenant, block, name) = (&meta.tenant_id, meta.block_id, format!("bloom-{shard}"));
        match &self.cache {
            Some(cache) if !cache.takes_blooms_of(meta) => self.get(tenant, block, &name).await,
            _ => self.read(Role::Bloom, tenant, block, &name).await,
        }
    }

    /// Ranges of an object of a block as [`Store::get_ranges`] has them, each from the cache if its role is cached and it is not too large.
    /// A range that is asked for alone is fetched by one of those who want it at the same time.
    ///
    /// # Errors
    /// The bucket refused one.
    pub async fn read_ranges(
        &self,
        tenant: &Tenant,
        block: BlockId,
        name: &str,
        ranges: &[(Role, Range<u64>)],
    ) -> Result<Vec<Bytes>, StoreError> {
        let plain: Vec<_> = ranges.iter().map(|(_, range)| range.clone()).collect();
        let Some(cache) = &self.cache else { return self.get_ranges(tenant, block, name, &plain).await };
        if let [(role, range)] = ranges
            && is_cached(cache, *role, range)
        {
            let fetch = async { Ok(self.get_ranges(tenant, block, name, &plain).await?.pop().unwrap_or_default()) };
            let key = range_key(tenant, block, name, range);
            return Ok(vec![cache.get_or_fetch(*role, &key, |bytes| is_whole(range, bytes), fetch).await?]);
        }
        let mut found: Vec<Option<Bytes>> = vec![None; ranges.len()];
        let by_role = Role::ALL.map(|role| async move {
            let cached = ranges.iter().enumerate().filter(|(_, (other, range))| *other == role && is_cached(cache, role, range));
            let (places, keys): (Vec<_>, Vec<_>) = cached.map(|(place, (_, range))| (place, range_key(tenant, block, name, range))).unzip();
            let is_whole = |index: usize, bytes: &Bytes| places.get(index).is_some_and(|place| is_whole(&ranges[*place].1, bytes));
            let values = if keys.is_empty() { Vec::new() } else { cache.get_whole(role, &keys, is_whole).await };
            (places, values)
        });
        for (places, values) in future::join_all(by_role).await {
            for (place, value) in places.into_iter().zip(values) {
                found[place] = value;
            }
        }
        let missing: Vec<_> = found.iter().enumerate().filter(|(_, found)| found.is_none()).map(|(place, _)| place).collect();
        let wanted: Vec<_> = missing.iter().map(|place| plain[*place].clone()).collect();
        let fetched = self.get_ranges(tenant, block, name, &wanted).await?;
        for (place, bytes) in missing.into_iter().zip(fetched) {
            let (role, range) = &ranges[place];
            if is_cached(cache, *role, range) && is_whole(range, &bytes) {
                // A part of all that was fetched, which would be kept whole.
                cache.put(*role, range_key(tenant, block, name, range), Bytes::copy_from_slice(&bytes));
            }
            found[place] = Some(bytes);
        }
        Ok(found.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// Caches what was written of a block and will be read as a whole.
    pub(crate) fn wrote(&self, meta: &Meta, blooms: &[Bytes], index: &Bytes) {
        let Some(cache) = &self.cache else { return };
        let key = |name: &str| object_key(&meta.tenant_id, meta.block_id, name);
        if cache.takes_blooms_of(meta) {
            blooms.iter().enumerate().for_each(|(shard, bloom)| cache.put(Role::Bloom, key(&format!("bloom-{shard}")), bloom.clone()));
        }
        cache.put(Role::TraceIdIndex, key("index"), index.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::{ObjectStore, memory::InMemory};
    use prometheus::Registry;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        backend::counting::Counting,
        block::Encoded,
        cache::{Settings, tests::meta},
        clock::SystemClock,
    };

    fn stores(settings: Settings) -> (Arc<Counting>, Store, Store) {
        let counting = Counting::new(Arc::new(InMemory::new()));
        let plain = Store::new(Arc::clone(&counting) as Arc<dyn ObjectStore>, "p");
        let cache = Cache::start(settings, Arc::new(SystemClock), &Registry::new()).expect("the settings are right");
        (counting, plain.clone(), plain.with_cache(cache))
    }

    /// The reads that something takes.
    async fn reads<T>(counting: &Counting, of: impl Future<Output = T>) -> (u64, T) {
        let before = counting.counts().gets;
        let answer = of.await;
        (counting.counts().gets - before, answer)
    }

    /// A filter of one word.
    fn bloom() -> Bytes {
        [64u64, 1, 64, 0].iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    fn block() -> Encoded {
        Encoded { meta: meta(0, 0), data: Bytes::from_static(b"0123456789"), blooms: vec![bloom()], index: Bytes::from_static(b"{}") }
    }

    #[tokio::test]
    async fn what_was_written_or_read_is_not_read_again() {
        let (counting, plain, store) = stores(Settings { max_bloom_compaction_level: 1, ..Settings::default() });
        let written = block();
        let (tenant, id) = (&written.meta.tenant_id, written.meta.block_id);
        store.put(&written).await.expect("put");
        let (count, read) = reads(&counting, store.read_bloom(&written.meta, 0)).await;
        assert_eq!((count, read.expect("it is there")), (0, bloom()));
        for expected in [1, 0, 0] {
            let (count, read) = reads(&counting, store.read(Role::TraceIdIndex, tenant, id, "index")).await;
            assert_eq!((count, read.expect("it is there")), (expected, Bytes::from_static(b"{}")));
        }
        // Written by somebody else; then of a block whose blooms are not cached.
        let mut other = block();
        plain.put(&other).await.expect("put");
        for (level, expected) in [(0, 1), (0, 0), (2, 1), (2, 1)] {
            other.meta.compaction_level = level;
            assert_eq!(reads(&counting, store.read_bloom(&other.meta, 0)).await.0, expected, "level {level}");
        }
        // What is not there is an error every time, and what is no filter is not cached.
        assert!(store.read(Role::Bloom, tenant, id, "bloom-1").await.is_err());
        plain.put_named(tenant, id, "bloom-1", Bytes::from_static(b"torn")).await.expect("put");
        assert_eq!(store.read(Role::Bloom, tenant, id, "bloom-1").await.expect("it is there"), "torn");
        plain.put_named(tenant, id, "bloom-1", bloom()).await.expect("put");
        assert_eq!(store.read(Role::Bloom, tenant, id, "bloom-1").await.expect("it is there"), bloom());
    }

    #[tokio::test]
    async fn ranges_by_themselves_and_together() {
        let (counting, plain, store) = stores(Settings { max_page_bytes: 1000, ..Settings::default() });
        let (tenant, id) = (&Tenant::single(), BlockId::new_v4());
        let object: Vec<u8> = (0..300_000u32).map(|at| ((at * 7) >> 3) as u8).collect();
        plain.put_named(tenant, id, "data", object.clone().into()).await.expect("put");
        let page = |range| (Role::ParquetPage, range);
        for (expected, ranges) in [
            (1, vec![(Role::ParquetFooter, 200_000..299_000)]),
            (0, vec![(Role::ParquetFooter, 200_000..299_000)]),
            // Both pages at once, then each by itself and again with a third.
            (1, vec![page(0..1000), page(1500..1600)]),
            (0, vec![page(1500..1600)]),
            (0, vec![page(0..1000), (Role::ParquetFooter, 200_000..299_000), page(5..5)]),
            (1, vec![page(1500..1600), page(100_000..100_001), page(0..1000), page(100_000..100_001)]),
            (0, vec![page(100_000..100_001), page(0..1000)]),
            // Too large for a page, and beyond the end.
            (1, vec![page(0..1001)]),
            (1, vec![page(0..1001)]),
            (1, vec![page(299_990..300_010)]),
            (1, vec![page(299_990..300_010)]),
            (1, vec![page(299_990..300_010), page(0..1000)]),
            (0, vec![]),
        ] {
            let (count, found) = reads(&counting, store.read_ranges(tenant, id, "data", &ranges)).await;
            let found = found.expect("ranges");
            assert_eq!((count, found.len()), (expected, ranges.len()), "{ranges:?}");
            for ((_, range), found) in ranges.iter().zip(found) {
                let end = (range.end as usize).min(object.len());
                assert!(found == object[range.start as usize..end], "{range:?} of {ranges:?}");
            }
        }
        assert!(store.read_ranges(tenant, id, "nothing", &[page(0..1), page(5..6)]).await.is_err());
    }

    /// A small part of something large must not keep all of it.
    #[tokio::test]
    async fn parts_are_kept_by_themselves() {
        let (_, plain, store) = stores(Settings::default());
        let (tenant, id) = (&Tenant::single(), BlockId::new_v4());
        plain.put_named(tenant, id, "data", vec![7; 1 << 20].into()).await.expect("put");
        let ranges = [(Role::ParquetPage, 0..10), (Role::ParquetPage, 500..510)];
        let fetched = store.read_ranges(tenant, id, "data", &ranges).await.expect("ranges");
        let cached = store.read_ranges(tenant, id, "data", &ranges).await.expect("ranges");
        let at = |bytes: &Bytes| bytes.as_ptr() as usize;
        assert_eq!(at(&fetched[1]) - at(&fetched[0]), 500, "they were fetched together");
        assert_ne!(at(&cached[1]).wrapping_sub(at(&cached[0])), 500);
    }

    #[test]
    fn keys_are_those_of_tempo() {
        let (tenant, id) = (Tenant::new("a-b").expect("a tenant"), BlockId::from_u128(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f));
        assert_eq!(object_key(&tenant, id, "bloom-3"), "a-b:00010203-0405-0607-0809-0a0b0c0d0e0f:bloom-3");
        let range = range_key(&tenant, id, "data.parquet", &(4..1029));
        assert_eq!(range, "a-b:00010203-0405-0607-0809-0a0b0c0d0e0f:data.parquet:4:1025");
        // The longest that there can be is short enough for memcached.
        let longest = Tenant::new(&"t".repeat(150)).expect("a tenant");
        assert!(range_key(&longest, id, "data.parquet", &(1_u64 << 63..u64::MAX)).len() <= 250);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever is cached of it: the answers are those of the bucket.
        #[test]
        fn answers_are_those_of_the_bucket(
            asks in prop::collection::vec(prop::collection::vec((0usize..7, 0u64..4_000, 0u64..1_500), 0..12), 1..8),
            local_bytes in prop::sample::select(vec![0u64, 5_000, 1 << 20]),
        ) {
            let object: Vec<u8> = (0..5_000u32).map(|at| ((at * 7) >> 3) as u8).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let (_, plain, store) = stores(Settings { max_page_bytes: 1000, local_bytes, ..Settings::default() });
                let (tenant, id) = (&Tenant::single(), BlockId::nil());
                plain.put_named(tenant, id, "o", object.clone().into()).await.expect("put");
                for ask in asks {
                    let ranges: Vec<_> = ask.iter().map(|&(role, start, length)| (Role::ALL[role], start..start + length)).collect();
                    let expected: Vec<_> = ranges.iter().map(|(_, range)| range.clone()).collect();
                    let expected = plain.get_ranges(tenant, id, "o", &expected).await.expect("ranges");
                    let found = store.read_ranges(tenant, id, "o", &ranges).await.expect("ranges");
                    prop_assert!(found == expected, "{:?}", ranges);
                }
                Ok(())
            })?;
        }
    }
}
